"""`pmd-export` from the command line, and every mistake a user can make with it."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from pmd.export import bundle as bundle_module
from pmd.export import cli
from pmd.export.cli import main
from pmd.export.parity import GATES, Limit
from pmd.serving import Scorer
from tests.signing_keys import write_keys
from tests.tiny_run import write_run


def export(*args):
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    return result.exit_code, result.stdout, result.stderr


def refused(*args, code=2):
    """The one error line of a command that must fail without a trace or a bundle."""
    exit_code, _, stderr = export(*args)
    assert exit_code == code, stderr
    lines = [line for line in stderr.splitlines() if line]  # click ends the line that ^C stands on
    assert len(lines) == 1, stderr
    assert lines[0].startswith("error: ")
    assert "Traceback" not in stderr
    return lines[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("source"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Bundles go to bundles/ below the folder the user stands in."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def damaged(run, tmp_path):
    """A copy of the run to damage: its dataset is found by absolute path."""
    return shutil.copytree(run, tmp_path / "damaged")


def test_one_grade_in_both_precisions(run, tmp_path):
    code, stdout, stderr = export("--grade", 2, "--run", run)
    assert (code, stderr) == (0, "")
    *table, last = stdout.splitlines()
    result = json.loads(last)
    assert result["schema"] == "pmd-export/1"
    assert result["seconds"] > 0
    assert [entry["path"] for entry in result["bundles"]] == [
        "bundles/tiny-pmd-grade-2-fp32",
        "bundles/tiny-pmd-grade-2-int8",
    ]
    assert len(table) == 3
    for entry, row in zip(result["bundles"], table[1:], strict=True):
        folder = tmp_path / entry["path"]
        assert entry["path"] in row
        assert entry["grade"] == 2
        assert entry["bytes"] == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        assert entry["parity"] == json.loads((folder / "manifest.json").read_text())["parity"]
        Scorer.load(folder, threads=1, verify=True)


def test_all_grades_and_the_teacher(run, tmp_path):
    """The student of the teacher's depth is grade 4, whatever the run calls its stage."""
    code, stdout, stderr = export("--all", "--teacher", "--run", run, "--precision", "fp32", "--quiet")
    assert (code, stderr) == (0, "")
    found = {path.name for path in (tmp_path / "bundles").iterdir()}
    assert found == {f"tiny-pmd-{name}-fp32" for name in ("grade-4", "grade-2", "teacher")}
    stages = {entry["stage"]: entry["grade"] for entry in json.loads(stdout.splitlines()[-1])["bundles"]}
    assert stages == {"grade-4": 4, "grade-2": 2, "teacher": 4}
    hashes = [
        json.loads((tmp_path / "bundles" / name / "manifest.json").read_text())["source"]["weights_sha256"]
        for name in found
    ]
    assert len(set(hashes)) == 3


def test_the_teacher_alone(run, tmp_path):
    assert export("--teacher", "--run", run, "--precision", "fp32", "--out", "mine")[0] == 0
    assert json.loads((tmp_path / "mine" / "manifest.json").read_text())["stage"] == "teacher"


def test_the_latest_run_is_the_default(run, tmp_path):
    shutil.copytree(run, tmp_path / "runs" / "older")
    assert export("--grade", 2, "--precision", "fp32", "--precision", "fp32", "--no-entity-tower")[0] == 0
    folder = tmp_path / "bundles" / "tiny-pmd-grade-2-fp32"
    assert not (folder / "entity").exists()


def test_force_replaces_a_bundle_and_nothing_else(run, tmp_path):
    arguments = ("--grade", 2, "--run", run, "--precision", "fp32", "--out", "mine")
    assert export(*arguments)[0] == 0
    assert "mine exists already; replace it with --force" in refused(*arguments)
    (tmp_path / "mine" / "stray").write_text("old")
    assert export(*arguments, "--force")[0] == 0
    assert not (tmp_path / "mine" / "stray").exists()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    for target in ("precious", "precious/thesis.txt"):
        line = refused(*arguments[:-1], target, "--force")
        assert "is not a bundle; it will not be replaced" in line
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "say what to export: --grade N or --all, or --teacher"),
        (("--grade", 2, "--all"), "say what to export"),
        (("--grade", 0), "0 is not in the range x>=1"),
        (("--grade", "three"), "'three' is not a valid integer"),
        (("--grade", 3), "has no grade 3; its grades are: 2, 4"),
        (
            ("--grade", 2, "--precision", "int3"),
            "'int3' is not one of 'fp32', 'fp16', 'int8', 'int8-static', 'int4'",
        ),
        (("--grade", 2, "--out", "x"), "--out names one bundle, this makes 2"),
        (("--all", "--precision", "fp32", "--out", "x"), "--out names one bundle, this makes 2"),
        (("--grade", 2, "--data", "nowhere"), "nowhere"),
        (("--grade", 2, "--data", "umls"), "was trained on tiny, not on umls"),
        (("--grade", 2, "--wrong"), "No such option"),
    ],
)
def test_mistakes(run, tmp_path, arguments, message):
    assert message in refused(*arguments, "--run", run)
    assert list(tmp_path.iterdir()) == []


def test_no_run(tmp_path):
    assert "no finished run below runs; train one with pmd-train" in refused("--grade", 3)
    assert "run.json is missing; nothing is not a run folder" in refused("--grade", 3, "--run", "nothing")


def test_a_run_without_a_teacher(tmp_path):
    alone = write_run(tmp_path / "source", stages={"grade-2": 2})
    assert "has no teacher" in refused("--teacher", "--run", alone)


def test_a_run_with_nothing_finished(damaged):
    ladder = json.loads((damaged / "ladder.json").read_text())
    (damaged / "ladder.json").write_text(json.dumps({**ladder, "stages": []}))
    assert "has no grade 2; its grades are: none yet" in refused("--grade", 2, "--run", damaged)
    assert "has no finished grade; go on with pmd-train --resume" in refused("--all", "--run", damaged)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("ladder.json", "{", "ladder.json is damaged"),
        ("ladder.json", '{"schema": "pmd-ladder/9"}', "this version reads 'pmd-ladder/1'"),
        ("ladder.json", '{"schema": "pmd-ladder/1"}', "it lacks dataset, method, encoder, seed, stages"),
        ("run.json", '{"schema": "pmd-run/1"}', "run.json is damaged: expected an object with dataset"),
        ("run.json", '{"schema": "pmd-run/1", "recipe": {}}', "it lacks dataset"),
    ],
)
def test_damaged_run_files(damaged, file, content, message):
    (damaged / file).write_text(content)
    assert message in refused("--grade", 2, "--run", damaged)


def change_tensors(change):
    def damage(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return damage


def put_nan(tensors):
    tensors["query.encoder.layer.1.output.dense.weight"][3, 5] = torch.nan


def rename(tensors):
    tensors["query.encoder.layer.9.output.dense.weight"] = tensors.pop("query.encoder.layer.1.output.dense.weight")


def drop(tensors):
    del tensors["entity.embeddings.LayerNorm.bias"]


def reshape(tensors):
    tensors["entity.embeddings.LayerNorm.bias"] = torch.zeros(31)


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "missing model.safetensors"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "missing tokenizer.json"),
        (lambda folder: (folder / "config.json").write_text("{}"), "config.json"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no tensors"), "cannot be read as safetensors"),
        (truncate, "cannot be read as safetensors"),
        (change_tensors(put_nan), "query.encoder.layer.1.output.dense.weight holds NaN"),
        (change_tensors(rename), "query.encoder.layer.1.output.dense.weight is missing"),
        (change_tensors(drop), "entity.embeddings.LayerNorm.bias is missing"),
        (change_tensors(reshape), "entity.embeddings.LayerNorm.bias has shape (31,), expected (32,)"),
    ],
    ids="no-weights no-tokenizer bad-config bad-tokenizer no-tensors cut nan renamed dropped reshaped".split(),
)
def test_damaged_grades(damaged, tmp_path, damage, message):
    damage(damaged / "grade-2")
    assert message in refused("--grade", 2, "--run", damaged)
    assert not (tmp_path / "bundles").exists()


@pytest.mark.parametrize("way", [(), ("--auto", "1GB")])
def test_bundles_are_signed_as_they_are_made(run, tmp_path, way):
    private, public = write_keys(tmp_path, "maker")
    options = ("--grade", 2, "--run", run, "--precision", "fp32", "--whole-vocabulary", "--sign", private, *way)
    code, stdout, _ = export(*options)
    assert code == 0
    (entry,) = json.loads(stdout.splitlines()[-1])["bundles"]
    folder = tmp_path / entry["path"]
    assert entry["bytes"] == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    Scorer.load(folder, threads=1, trusted_keys=[public])


def test_mistakes_with_keys(run, tmp_path):
    private, public = write_keys(tmp_path, "maker")
    making = ("--grade", 2, "--run", run, "--precision", "fp32")
    assert "maker.pub.pem is not a private key" in refused(*making, "--sign", public)
    assert "No such file or directory: absent.pem" in refused(*making, "--sign", "absent.pem")
    assert "--trusted-key is for --verify" in refused(*making, "--trusted-key", public)
    assert "--verify checks a bundle and makes none" in refused("--verify", "bundle", "--sign", private)
    assert not (tmp_path / "bundles").exists()


def test_a_failed_gate_keeps_the_bundles_that_passed(run, tmp_path, monkeypatch):
    monkeypatch.setitem(GATES, "int8", (Limit("mrr_kept", at_least=3.0),))
    code, stdout, stderr = export("--grade", 2, "--run", run)
    assert code == 1
    assert stderr.startswith("error: tiny-pmd-grade-2-int8 differs from torch: mrr_kept is ")
    assert "needed at least 3" in stderr
    assert len(stderr.splitlines()) == 1
    assert {path.name for path in (tmp_path / "bundles").iterdir()} == {
        "tiny-pmd-grade-2-fp32",
        "tiny-pmd-grade-2-int8.parity.json",
    }
    assert [entry["precision"] for entry in json.loads(stdout.splitlines()[-1])["bundles"]] == ["fp32"]


def test_all_failed_gates_are_reported(run, tmp_path, monkeypatch):
    for precision in ("fp32", "int8"):
        monkeypatch.setitem(GATES, precision, (Limit("mrr_kept", at_least=3.0),))
    code, stdout, stderr = export("--grade", 2, "--run", run)
    assert code == 1
    assert "grade-2-fp32 differs" in stderr
    assert "grade-2-int8 differs" in stderr
    assert json.loads(stdout)["bundles"] == []


def test_interrupted(run, tmp_path, monkeypatch):
    def interrupt(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle_module, "seal", interrupt)
    assert refused("--grade", 2, "--run", run, code=130) == "error: interrupted"
    assert list((tmp_path / "bundles").iterdir()) == []


def test_progress_is_for_terminals(run, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "show_progress", lambda quiet: not quiet)
    _, stdout, stderr = export("--grade", 2, "--run", run, "--precision", "fp32")
    assert [line.split(":")[0] for line in stderr.splitlines()] == ["grade-2"] * 3
    assert "grade-2: " not in stdout


def test_missing_packages_are_named(run, monkeypatch):
    from pmd.serving import extras

    original = extras.importlib.util.find_spec
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None if name == "onnx" else original(name))
    assert "onnx not installed; run: pip install 'pmd-kgc[export]'" in refused("--grade", 2, "--run", run)


def test_help_has_examples():
    code, stdout, _ = export("--help")
    assert code == 0
    for expected in ("--grade", "--precision", "fp32|fp16|int8|int8-static|int4", "--no-entity-tower", "Examples:"):
        assert expected in stdout


def test_the_command_loads_nothing_heavy_before_it_must():
    """`--help` and a usage error must not wait for torch."""
    code = "import sys, pmd.export.cli; print(*{name.split('.')[0] for name in sys.modules})"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "onnx", "onnxruntime"} & set(child.stdout.split())
