"""`pmd-study` from end to end with the real training core on a toy graph, and its command line."""

import json

import pytest
from click.testing import CliRunner

from pmd.study.cli import STUDIES as NAMES
from pmd.study.cli import main
from pmd.study.variants import STUDIES
from tests.tiny_encoder import write_encoder, write_graph, write_recipe


def run(*args):
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    root = tmp_path_factory.mktemp("material")
    data, encoder = write_graph(root / "tiny"), write_encoder(root / "encoder", layers=2, width=16)
    return write_recipe(root / "toy.yaml", data, encoder, grades=[1], mask_rates=[0.2], epochs=1)


def test_a_study_from_end_to_end(recipe, tmp_path):
    """The teacher is trained once for both variants, and a second call has nothing left to do."""
    args = ("methods", "--recipe", recipe, "--seeds", "0", "--out", tmp_path / "out", "--quiet")
    only = ("--only", "pmd", "--only", "lkd")
    code, stdout, stderr = run(*args, *only)
    assert (code, stderr) == (0, "")
    last = json.loads(stdout.splitlines()[-1])
    assert (last["schema"], last["done"], last["dataset"]) == ("pmd-study/1", True, "tiny")
    assert [(row["variant"], row["grade"]) for row in last["table"]] == [
        ("lkd", "teacher"),
        ("lkd", "1"),
        ("pmd", "teacher"),
        ("pmd", "1"),
    ]
    assert "| pmd " in stdout
    events = (tmp_path / "out" / "pmd-seed-0" / "events.jsonl").read_text()
    assert '"stage": "grade-1"' in events
    assert '"stage": "teacher"' not in events
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*-seed-0/*")}
    assert run(*args, *only)[0] == 0
    assert made == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*-seed-0/*")}


def test_a_search_from_end_to_end(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("pmd.study.report.draw", lambda _study: {"png": b"\x89PNG"})  # drawn for real above
    args = ("weights", "--recipe", recipe, "--seeds", "0", "--out", tmp_path / "out", "--trials", "2", "--quiet")
    code, _, stderr = run(*args, "--time-limit", "0")
    assert (code, stderr) == (75, "")
    code, stdout, stderr = run(*args)
    assert (code, stderr) == (0, "")
    assert json.loads(stdout.splitlines()[-1])["best"]["variant"].startswith("alpha-")
    assert {"best.yaml", "search.journal", "plot.png"} <= {path.name for path in (tmp_path / "out").iterdir()}
    facts = json.loads((tmp_path / "out" / "study.json").read_text())
    assert [trial["epochs"] for trial in facts["trials"]] == [1, 1]
    code, _, stderr = run("methods", "--recipe", tmp_path / "out" / "best.yaml", "--dry-run")
    assert code == 0, stderr


def test_dry_run(recipe, tmp_path):
    out = tmp_path / "out"
    for name in NAMES:
        code, stdout, stderr = run(name, "--recipe", recipe, "--out", out, "--dry-run")
        assert code == 0, stderr
        plan = json.loads(stdout.splitlines()[-1])
        assert (plan["schema"], plan["study"]) == ("pmd-study-plan/1", name)
    assert not out.exists()
    assert set(NAMES) == {*STUDIES, "weights"}


MISTAKES = {
    "no such study": (["magic"], "magic"),
    "seeds": (["methods", "--seeds", "0,x"], "comma-separated"),
    "seed twice": (["methods", "--seeds", "1,1"], "different"),
    "trials elsewhere": (["methods", "--trials", "3"], "--trials belongs"),
    "grade elsewhere": (["layers", "--grade", "3"], "--grade belongs"),
    "only in a search": (["weights", "--only", "x"], "--only names variants"),
    "unknown variant": (["masking", "--only", "x"], "no variant 'x'"),
    "unknown grade": (["weights", "--grade", "5"], "no grade 5"),
    "not a setting": (["masking", "--set", "x"], "not KEY=VALUE"),
    "missing data": (["masking", "--data", "no/such"], "no dataset folder"),
    "nothing to reuse": (["masking", "--reuse", "no/such"], "no/such"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_end_in_one_line_and_code_2(recipe, tmp_path, mistake):
    args, message = MISTAKES[mistake]
    code, stdout, stderr = run(*args, "--recipe", recipe, "--out", tmp_path / "out")
    assert (code, stdout) == (2, "")
    assert stderr.startswith("error: ")
    assert len(stderr.splitlines()) == 1
    assert message in stderr
    assert not (tmp_path / "out").exists()
