"""Students cut from another encoder than the teacher's: narrower, or of another family, by every method."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file

from pmd.batches import tokenise
from pmd.cli import main
from pmd.encoder import load_encoder, resolve_encoder
from pmd.evaluation import model_scores
from pmd.families import layer_stack
from pmd.grade import load_grade
from pmd.serving.known import TEST
from tests.tiny_encoder import (
    roberta_tokenizer,
    tiny_graph,
    write_encoder,
    write_family,
    write_graph,
    write_recipe,
)
from tests.toy_ladder import toy_ladder


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    root = tmp_path_factory.mktemp("material")
    wide = write_encoder(root / "wide", layers=3, width=48)
    narrow = write_encoder(root / "narrow", layers=3, width=32, seed=1)
    return write_graph(root / "tiny"), wide, narrow


GRADES = {"pmd": {"grades": [3, 2], "mask_rates": [0.3, 0.1]}, "pkd": {"grades": [3], "mask_rates": [0.0]}}


def ladder(material, out, method="pmd", *, on_epoch=None, resume=False, reuse=(), **changes):
    data, wide, narrow = material
    settings = {"method": method, "student_encoder": str(narrow), "batch_size": 24} | GRADES.get(method, {})
    return toy_ladder(out, data, wide, settings | changes, on_epoch=on_epoch, resume=resume, reuse=reuse)


@pytest.fixture(scope="module")
def runs(material, tmp_path_factory):
    """A finished ladder by method; the second takes its teacher from the first."""
    root, made = tmp_path_factory.mktemp("runs"), {}
    for method in GRADES:
        shared = [root / "teacher"] if made else []
        made[method] = (root / method, ladder(material, root / method, method, reuse=shared))
        if not shared:
            shutil.copytree(root / method / "teacher", root / "teacher" / "teacher")
    return made


@pytest.mark.parametrize("method", GRADES)
def test_the_grades_are_the_narrow_encoders(runs, method):
    out, facts = runs[method]
    sources = [("teacher", "pretrained"), ("grade-3", "pretrained"), ("grade-2", "grade-3")]
    assert [(stage["stage"], stage["source"]) for stage in facts["stages"]] == sources[
        : 1 + len(GRADES[method]["grades"])
    ]
    for stage in facts["stages"]:
        grade = load_grade(out / stage["stage"])
        expected = (48, "wide") if stage["stage"] == "teacher" else (32, "narrow")
        assert (grade.model.width, grade.info.encoder) == expected
    assert facts["encoder"] == "wide"
    parameters = [stage["parameters"] for stage in facts["stages"]]
    assert parameters == sorted(parameters, reverse=True)


@pytest.mark.parametrize("method", GRADES)
def test_the_projection_is_no_part_of_a_grade(runs, method):
    out, _ = runs[method]
    names = set(load_file(out / "grade-3" / "model.safetensors"))
    assert {name.split(".")[0] for name in names} == {"query", "entity", "log_inverse_temperature"}
    assert not any("projection" in name for name in names)


class Killed(Exception):
    pass


@pytest.mark.parametrize("method", ["pmd", pytest.param("pkd", marks=pytest.mark.slow)])
def test_a_killed_student_goes_on_with_its_projection(runs, material, tmp_path, method):
    out, facts = runs[method]
    again = tmp_path / "run"

    def kill(stage, record):
        if (stage, record["epoch"]) == ("grade-3", 1):
            raise Killed

    with pytest.raises(Killed):
        ladder(material, again, method, on_epoch=kill, checkpoint_seconds=1e-9, reuse=[out.parent / "teacher"])
    with safe_open(again / "checkpoint.safetensors", framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys() if name.startswith("projection.")}
    assert shapes == {"projection.weight": [48, 32]}
    ladder(material, again, method, resume=True, checkpoint_seconds=1e-9)
    for stage in facts["stages"]:
        weights = [(run / stage["stage"] / "model.safetensors").read_bytes() for run in (out, again)]
        assert weights[0] == weights[1], stage["stage"]


@pytest.mark.slow
def test_a_narrow_student_learns_a_wide_teachers_scores(runs, material, tmp_path):
    """The score term compares cosines: a vector's width does not matter to them."""
    out, _ = runs["pmd"]
    settings = {"grades": [3], "mask_rates": [0.0], "alpha": 0.9, "beta": 0.0, "stage_epochs": {"grade-3": 12}}
    facts = ladder(material, tmp_path / "run", "lkd", reuse=[out.parent / "teacher"], **settings)
    gaps = [record["score"] for record in facts["stages"][1]["history"]]
    assert gaps[-1] < 0.7 * gaps[0]


def test_a_baseline_is_cut_from_the_students_encoder(material, tmp_path):
    ladder(material, tmp_path / "run", "baseline", grades=[2], mask_rates=[0.0], epochs=1)
    grade = load_grade(tmp_path / "run" / "grade-2")
    assert (grade.model.width, grade.info.encoder) == (32, "narrow")


@pytest.mark.parametrize(
    "roles",
    [pytest.param(roles, marks=pytest.mark.slow) for roles in (("bert", "distilbert"), ("distilbert", "bert"))],
)
def test_teacher_and_student_may_be_of_two_families(material, tmp_path, roles):
    """One of them cannot share rows, so both get a row per text, and both what token types they know."""
    wide, narrow = (
        write_family(tmp_path / role, family, layers=2, width=width)
        for role, family, width in zip(("wide", "narrow"), roles, (48, 32), strict=True)
    )
    facts = ladder((material[0], wide, narrow), tmp_path / "run", grades=[2], mask_rates=[0.3], epochs=1)
    assert [stage["stage"] for stage in facts["stages"]] == ["teacher", "grade-2"]
    before = load_encoder(resolve_encoder(str(narrow)), dropout=0.1, temperature=0.05)
    after = load_grade(tmp_path / "run" / "grade-2").model
    for old, new in zip(layer_stack(before.query), layer_stack(after.query), strict=True):
        assert not any(a.equal(b) for a, b in zip(old.parameters(), new.parameters(), strict=True))


def test_another_tokenizer_is_refused_in_one_line(material, tmp_path):
    data, wide, _ = material
    other = write_encoder(tmp_path / "other", width=32)
    (other / "tokenizer.json").write_text(roberta_tokenizer().to_str(), encoding="utf-8")
    recipe = write_recipe(tmp_path / "toy.yaml", data, wide, student_encoder=str(other))
    result = CliRunner().invoke(main, ["--recipe", str(recipe), "--out", str(tmp_path / "run"), "--quiet"])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: student_encoder other has another tokenizer")
    assert not (tmp_path / "run").exists()


def test_a_narrow_grade_is_exported_and_answers(runs, tmp_path):
    pytest.importorskip("onnxruntime")
    out, _ = runs["pmd"]
    from pmd.export.cli import main as export
    from pmd.export.parity import queries_of
    from pmd.serving import Scorer

    target = tmp_path / "bundle"
    arguments = ["--grade", "2", "--run", out, "--precision", "fp32", "--out", target, "--quiet"]
    result = CliRunner().invoke(export, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.stderr
    assert json.loads((target / "manifest.json").read_text())["width"] == 32
    grade = load_grade(out / "grade-2")
    known = tiny_graph().known()
    heads, relations = queries_of(known, TEST)
    texts = tokenise(tiny_graph(), grade.tokenizer, grade.info.templates)
    expected = model_scores(grade.model, texts, np.stack([heads, relations], axis=1))(heads, relations)
    found = Scorer.load(target).split_scores("test")(heads, relations)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
