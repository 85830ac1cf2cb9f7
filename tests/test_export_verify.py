"""`pmd-export --verify`: a fresh bundle passes, and every way of being something else is told."""

import json
import shutil

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

from pmd.export.bundle import write_bundle
from pmd.export.cli import main
from pmd.export.errors import VerifyError
from pmd.export.loading import load_stage
from pmd.export.making import PRECISIONS, Making
from pmd.export.signing import SigningKey, sign_folder
from pmd.export.source import Run
from pmd.export.verify import Check, refuse, verify
from pmd.serving.archive import pack
from pmd.serving.bundle import seal
from tests.signing_keys import write_keys
from tests.tiny_run import write_run

FILES, QUERY_GRAPH, ENTITY_GRAPH = ["files", "unlisted files"], ["query graph"], ["entity graph"]
CHECKS = [*FILES, *QUERY_GRAPH, *ENTITY_GRAPH, "entity vectors", "metrics", "gate"]
WITHOUT_ENTITY_TOWER = [*FILES, *QUERY_GRAPH, "metrics", "gate"]
MODEL = "onnx/model.onnx"
STAGES = {"teacher": 1, "pre-distilled": 1, "grade-2": 2}
"""The tiny run's, with smaller ones before the stage that is exported."""
OTHER = {"query": "entity", "entity": "query"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("source"), stages=STAGES)


@pytest.fixture(scope="module")
def bundles(run, tmp_path_factory):
    """One bundle of every precision, one without entity tower, and a trimmed narrow one: never written to."""
    root, source = tmp_path_factory.mktemp("bundles"), Run.open(run)
    ready = load_stage(source, source.students[2], source.graph()).ready()
    for precision in PRECISIONS:
        write_bundle(ready, Making(precision), root / precision)
    write_bundle(ready, Making("fp32", entity_tower=False), root / "edge")
    narrow = ready.loaded.ready(trim_vocabulary=True, width=16)
    write_bundle(narrow, Making("fp32", width=16, trim_vocabulary=True), root / "narrow")
    return root


@pytest.fixture
def copied(bundles, tmp_path):
    """A copy of a bundle, to change."""
    return lambda name: shutil.copytree(bundles / name, tmp_path / name)


def command(*arguments):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def refused(*arguments):
    """The one error line of a command that looked at nothing."""
    code, stdout, stderr = command(*arguments)
    assert (code, stdout) == (2, ""), stderr
    (line,) = stderr.splitlines()
    assert line.startswith("error: ")
    return line


def checked(bundle, *options):
    """Name -> what was found, of the checks that hold and of those that do not; the exit code must say which."""
    code, stdout, stderr = command("--verify", bundle, *options)
    assert code in (0, 1), stderr
    *table, last = stdout.splitlines()
    result = json.loads(last)
    assert (result["schema"], result["bundle"]) == ("pmd-verify/1", str(bundle))
    assert [set(check) for check in result["checks"]] == [{"name", "holds", "found"}] * len(table)
    for check, row in zip(result["checks"], table, strict=True):
        assert row.split()[0] == ("ok" if check["holds"] else "BAD")
        assert check["name"] in row
        assert check["found"] in row
    good, bad = (
        {c["name"]: c["found"] for c in result["checks"] if c["holds"] is holds} for holds in (True, False)
    )
    if bad:
        reasons = "; ".join(f"{name}: {found}" for name, found in bad.items())
        assert stderr == " ".join(f"error: {bundle}: {reasons}; export it again".split()) + "\n"
    else:
        assert stderr == ""
    assert (code == 1) == bool(bad)
    return good, bad


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def reseal(folder, **changes):
    """Let the manifest say what is in the folder now, and be changed itself."""
    seal(folder, manifest(folder) | changes)
    return folder


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- bundles that are what they say -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*PRECISIONS, "narrow"])
def test_a_fresh_bundle_passes(bundles, name):
    before = snapshot(bundles / name)
    good, bad = checked(bundles / name)
    assert bad == {}
    assert list(good) == CHECKS
    assert good["files"] == f"{len(before) - 1} files have the sizes and hashes of the manifest"
    assert snapshot(bundles / name) == before


def test_a_bundle_without_entity_tower_passes(bundles, copied):
    """Made without one, or with it taken away since."""
    reduced = copied("int8")
    shutil.rmtree(reduced / "entity")
    for folder in (bundles / "edge", reduced):
        good, bad = checked(folder)
        assert (list(good), bad) == (WITHOUT_ENTITY_TOWER, {})


@pytest.mark.parametrize(("name", "names"), [("int8", CHECKS), ("edge", WITHOUT_ENTITY_TOWER)])
def test_a_zip_passes(bundles, tmp_path, name, names):
    pack(bundles / name, tmp_path / "bundle.zip")
    good, bad = checked(tmp_path / "bundle.zip")
    assert (list(good), bad) == (names, {})


# ---- files ------------------------------------------------------------------------------------------------------


def flipped(path, at):
    """Change one bit of a byte."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_signature_is_checked_where_keys_are_trusted(copied, tmp_path):
    private, public = write_keys(tmp_path, "maker")
    sign_folder(copied("edge"), SigningKey.read(private))
    good, bad = checked(tmp_path / "edge")
    assert (list(good), bad) == (WITHOUT_ENTITY_TOWER, {})
    good, bad = checked(tmp_path / "edge", "--trusted-key", public)
    assert (list(good), bad) == (["signature", *WITHOUT_ENTITY_TOWER], {})
    other = write_keys(tmp_path, "other")[1]
    assert "is signed by key" in refused("--verify", tmp_path / "edge", "--trusted-key", other)


def test_a_changed_byte_is_named_in_every_file(bundles, copied):
    folder = copied("int8")
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    assert len(names) == 24
    for name in set(names) - {"manifest.json"}:
        before = (folder / name).read_bytes()
        flipped(folder / name, 10)
        assert name in refused("--verify", folder)
        (folder / name).write_bytes(before)
    assert checked(folder)[1] == {}


def test_a_changed_manifest_is_refused(copied):
    folder = copied("fp32")
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text[:-3])
    assert "manifest.json is not JSON" in refused("--verify", folder)
    facts = json.loads(text)
    facts["files"]["README.md"]["sha256"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(facts))
    assert "manifest.json is not what its own digest says" in refused("--verify", folder)
    del facts["digest"]
    (folder / "manifest.json").write_text(json.dumps(facts))
    assert "README.md is not what the manifest's sha256 says" in refused("--verify", folder)


def test_a_changed_byte_in_a_zip_is_named(bundles, tmp_path):
    pack(bundles / "fp32", tmp_path / "bundle.zip")
    data = (tmp_path / "bundle.zip").read_bytes()
    card = (bundles / "fp32" / "README.md").read_bytes()
    flipped(tmp_path / "bundle.zip", data.index(card) + 5)
    assert "README.md is not what the manifest's sha256 says" in refused("--verify", tmp_path / "bundle.zip")


@pytest.mark.parametrize("name", ["query/onnx/model.onnx", "entity/tokenizer.json", "known.npz"])
def test_a_missing_file_is_named(copied, name):
    folder = copied("fp32")
    (folder / name).unlink()
    assert f"{name} is missing" in refused("--verify", folder)


def test_files_that_the_manifest_does_not_list_are_named(copied):
    folder = copied("fp32")
    (folder / "query" / "stray.bin").write_bytes(b"?")
    good, bad = checked(folder)
    assert bad == {"unlisted files": "query/stray.bin"}
    assert list(good) == [name for name in CHECKS if name != "unlisted files"]
    for number in range(4):
        (folder / f"a{number}").write_bytes(b"?")
    assert checked(folder)[1] == {"unlisted files": "a0, a1, a2 and 2 more"}


def test_no_bundle(tmp_path, run):
    assert "no bundle at" in refused("--verify", tmp_path / "nowhere")
    assert "is not a bundle: it has no manifest.json" in refused("--verify", run)


# ---- graphs and vectors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tower", "check"), [("query", "metrics"), ("entity", "entity vectors")])
@pytest.mark.parametrize("name", ["fp32", "int8"])
def test_another_models_graph_is_found(copied, name, tower, check):
    """The other tower's, which is a valid graph and fits in every way."""
    folder = copied(name)
    shutil.copy(folder / OTHER[tower] / MODEL, folder / tower / MODEL)
    good, bad = checked(reseal(folder))
    assert list(bad) == [check]
    assert f"{tower} graph" in good


@pytest.mark.parametrize("name", ["fp32", "int8"])
def test_other_vectors_are_found(copied, name):
    folder = copied(name)
    for file in folder.glob("*s.npy"):  # the vectors, and where there are any, the scales that belong to them
        np.save(file, np.roll(np.load(file), 1, axis=0))
    assert list(checked(reseal(folder))[1]) == ["entity vectors", "metrics"]


def changed_graph(path, change):
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())


def newer_opset(model):
    model.opset_import[0].version = 18


def no_maker(model):
    model.graph.node[-1].input[0] = "nothing"


def made_twice(model):
    model.graph.node[-1].output[0] = model.graph.node[0].output[0]


def nan_weights(model):
    for weight in model.graph.initializer:
        if weight.name == "embeddings.LayerNorm.bias":
            weight.CopyFrom(numpy_helper.from_array(np.full(32, np.nan, np.float32), weight.name))


def test_a_graph_of_another_opset_is_found(copied):
    folder = copied("fp32")
    changed_graph(folder / "query" / MODEL, newer_opset)
    good, bad = checked(reseal(folder))
    assert list(bad) == ["query graph"]
    assert "opsets ai.onnx 18, com.microsoft 1" in bad["query graph"]
    assert "opsets ai.onnx 17, com.microsoft 1" in good["entity graph"]


@pytest.mark.parametrize("change", [no_maker, made_twice])
def test_an_invalid_graph_does_not_stop_the_other_checks(copied, change):
    folder = copied("fp32")
    changed_graph(folder / "entity" / MODEL, change)
    good, bad = checked(reseal(folder))
    assert list(bad) == ["entity graph", "entity vectors"]
    assert bad["entity graph"].startswith("ONNX refuses it: ")
    assert "onnxruntime cannot open the model" in bad["entity vectors"]
    assert set(good) | set(bad) == set(CHECKS)


def test_a_file_that_is_no_graph_at_all(copied):
    folder = copied("fp32")
    (folder / "entity" / MODEL).write_bytes(b"no graph")
    assert list(checked(reseal(folder))[1]) == ["entity graph", "entity vectors"]
    (folder / "query" / MODEL).write_bytes(b"no graph")
    assert f"query/{MODEL}: it is not an ONNX model" in refused("--verify", reseal(folder))


def test_a_graph_that_gives_nan_is_found(copied):
    folder = copied("fp32")
    for tower in ("query", "entity"):
        changed_graph(folder / tower / MODEL, nan_weights)
    _, bad = checked(reseal(folder))
    assert list(bad) == ["entity vectors", "metrics"]
    assert "cosine gap to the entity tower's nan" in bad["entity vectors"]
    assert "NaN" in bad["metrics"]


# ---- figures ----------------------------------------------------------------------------------------------------


def with_parity(folder, **changes):
    return reseal(folder, parity=manifest(folder)["parity"] | changes)


@pytest.mark.parametrize(
    ("name", "changes", "found"),
    [
        ("fp32", {"max_score_gap": 2e-4}, "max_score_gap is 0.0002, needed at most 0.0001"),
        ("fp32", {"max_score_gap": None}, "max_score_gap is nan, needed at most 0.0001"),
        (
            "int8",
            {"mrr_kept": 0.5, "mrr_kept_error": 0.1},
            "mrr_kept is 0.5 +- 0.1, needed at least 0.995 within 2 standard errors",
        ),
    ],
)
def test_figures_beyond_the_gate_are_found(copied, name, changes, found):
    assert checked(with_parity(copied(name), **changes))[1] == {"gate": found}


@pytest.mark.parametrize(
    ("by", "names"), [(0.0008, []), (-0.0008, []), (0.0012, ["metrics"]), (-0.0012, ["metrics"])]
)
def test_another_mrr_is_found_beyond_what_machines_differ_by(copied, by, names):
    folder = copied("int8")
    then = manifest(folder)["parity"]["mrr_bundle"]
    good, bad = checked(with_parity(folder, mrr_bundle=then + by))
    assert list(bad) == names
    assert (good | bad)["metrics"] == f"MRR on valid is {then:.4f}, the manifest says {then + by:.4f}"


def test_the_split_is_the_one_of_the_manifest(copied):
    folder = copied("fp32")
    assert checked(with_parity(folder, split="test"))[1]["metrics"].startswith("MRR on test is ")
    assert checked(with_parity(folder, split="none"))[1] == {
        "metrics": "the manifest's parity names no split and MRR"
    }


@pytest.mark.parametrize("key", ["split", "texts", "max_cosine_gap", "mrr_bundle", "mrr_kept_error", "gate"])
def test_a_parity_that_lacks_a_figure_does_not_pass(copied, key):
    folder = copied("fp32")
    rest = {name: value for name, value in manifest(folder)["parity"].items() if name != key}
    _, bad = checked(reseal(folder, parity=rest))
    assert bad["gate"] == f"the manifest's parity cannot be read: KeyError('{key}')"
    assert list(bad) == (["metrics", "gate"] if key in ("split", "mrr_bundle") else ["gate"])


def test_an_empty_parity_does_not_pass(copied):
    assert list(checked(reseal(copied("fp32"), parity={}))[1]) == ["metrics", "gate"]


@pytest.mark.parametrize(
    "changes",
    [
        {"gate": []},
        {"gate": {"speed": {"at_least": 1.0}}},
        {"gate": {"mrr_kept": {"least": 1.0}}},
        {"gate": {"mrr_kept": {"at_least": "much"}}},
        {"gate": {"mrr_kept": 0.9}},
        {"max_score_gap": "little"},
        {"max_cosine_gap": "little", "gate": {"max_cosine_gap": {"at_most": 1.0}}},
    ],
)
def test_a_parity_of_other_hands_does_not_pass(copied, changes):
    _, bad = checked(with_parity(copied("fp32"), **changes))
    assert list(bad) == ["gate"]
    assert bad["gate"].startswith("the manifest's parity cannot be read: ")


# ---- the run ----------------------------------------------------------------------------------------------------


def test_a_bundle_of_its_run(bundles, run):
    good, bad = checked(bundles / "int8", "--run", run)
    assert (list(good), bad) == ([*CHECKS, "source"], {})
    assert good["source"] == f"{run / 'grade-2'} has the weights that it was made of"


def test_a_bundle_of_another_run(bundles, tmp_path):
    other = write_run(tmp_path, stages={"grade-2": 2})  # its first stage, and so of another seed
    good, bad = checked(bundles / "int8", "--run", other)
    assert (list(good), list(bad)) == (CHECKS, ["source"])
    assert bad["source"] == f"{other / 'grade-2'} has other weights than it was made of"


def test_a_run_without_the_stage(bundles, tmp_path):
    other = write_run(tmp_path, stages={"grade-1": 1})
    assert checked(bundles / "int8", "--run", other)[1] == {"source": f"{other} has no grade-2"}


def test_a_folder_that_is_no_run(bundles, tmp_path):
    assert "is not a run folder" in refused("--verify", bundles / "int8", "--run", tmp_path)


# ---- the command ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [("--grade", 2), ("--all",), ("--teacher",), ("--auto", "1MB"), ("--auto", "")])
def test_verifying_makes_no_bundle(bundles, options):
    assert "--verify checks a bundle and makes none" in refused("--verify", bundles / "int8", *options)


def test_all_that_fails_is_in_one_error(tmp_path):
    checks = [Check("files", True, "whole"), Check("metrics", False, "worse"), Check("gate", False, "closed")]
    with pytest.raises(VerifyError) as caught:
        refuse(tmp_path, checks)
    assert str(caught.value) == f"{tmp_path}: metrics: worse; gate: closed; export it again"
    refuse(tmp_path, checks[:1])


def test_the_function_gives_the_checks(bundles, run):
    checks = verify(bundles / "fp32", Run.open(run))
    assert [check.name for check in checks] == [*CHECKS, "source"]
    assert all(check.holds is True for check in checks)
