"""Slices for a GPU machine: kits and weights that survive the journey, results that say what they must."""

import ast
import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from pmd.benchmarks.gpu import cli, kit, runner
from pmd.benchmarks.gpu.errors import KitError, PartsError, ResultError, RunFailed, SliceError
from pmd.benchmarks.gpu.halves import halve, restore
from pmd.benchmarks.gpu.kit import open_kit, pack_kit, size_of
from pmd.benchmarks.gpu.parts import check_parts, read_parts, write_parts
from pmd.benchmarks.gpu.results import check_result, collect, read_result, results_of
from pmd.benchmarks.gpu.runner import Sitting, run_slice
from pmd.benchmarks.gpu.slices import LIMIT_MINUTES, read_slices, shipped_slices
from pmd.benchmarks.gpu.trainings import Training
from pmd.cli import main as pmd_train
from pmd.grade import load_grade
from pmd.recipe import load_recipe
from pmd.run import RunFolder, read_json
from pmd.serving.storage import sha256_of
from pmd.stages import plan_stages
from tests.tiny_encoder import write_encoder, write_graph, write_recipe

ROOT = Path(__file__).resolve().parents[1]
REUSES = any("--reuse" in option.opts for option in pmd_train.params)


def in_process(arguments, _kill_after, _cache):
    """pmd-train without a process of its own: torch is imported already."""
    return CliRunner().invoke(pmd_train, list(arguments)).exit_code


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A kit of the toy graph and a random encoder, a recipe for them, and two slices of it."""
    root = tmp_path_factory.mktemp("material")
    graph, encoder = write_graph(root / "tiny"), write_encoder(root / "tiny-bert")
    recipe = write_recipe(root / "toy.yaml", Path("tiny"), Path("tiny-bert"), epochs=1, grades=[2], mask_rates=[0])
    (root / "slices.yaml").write_text(
        json.dumps(
            {
                "first": {
                    **{"why": "a teacher", "minutes": 1, "recipe": str(recipe), "returns": ["straight/teacher"]},
                    "runs": {"straight": {"method": "lkd"}},
                },
                "second": {
                    **{"why": "a ladder", "minutes": 1, "recipe": str(recipe), "needs": ["first"]},
                    **{"runs": {"pmd": {}, "again": {"alpha": 0.2}}, "returns": ["pmd/grade-2"]},
                },
            }
        )
    )
    found = {"name": "tiny-bert", "folder": str(encoder), "sha256": "of the original", "datasets": [str(graph)]}
    with pytest.MonkeyPatch.context() as patch:  # a child would import torch to say the same
        patch.setattr(kit, "run_python", lambda *_words, **_options: json.dumps(found))
        patch.setattr(kit, "_commit", lambda: {"commit": "abc", "modified": False})  # also where git is not
        pack_kit(root / "kit", "tiny-bert", ["tiny"], python=None, max_bytes=64 * 2**20)
    return root


@pytest.fixture
def sitting(material, tmp_path):
    packed = open_kit(material / "kit")
    return Sitting(kit=packed, work=tmp_path / "work", out=tmp_path / "out", device="cpu", train=in_process)


@pytest.fixture(scope="module")
def first(material, tmp_path_factory):
    """The first slice, run: its result, its --out folder and its --work folder."""
    root = tmp_path_factory.mktemp("first")
    packed = open_kit(material / "kit")
    sitting = Sitting(kit=packed, work=root / "work", out=root / "out", device="cpu", train=in_process)
    result = run_slice(read_slices(material / "slices.yaml")["first"], sitting, [], "the command")
    return result, root / "out", root / "work"


def weights_folder(folder, scale=1.0):
    folder.mkdir()
    rng = np.random.default_rng(0)
    tensors = {"a.weight": rng.normal(size=(300, 64)).astype(np.float32) * scale, "ids": np.arange(5)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text("{}")
    return folder


# Parts


def test_a_folder_survives_being_cut_into_parts(tmp_path):
    source = weights_folder(tmp_path / "source")
    manifest = write_parts(source, tmp_path / "out", "x", part_bytes=10_000)
    paths = check_parts(manifest, [tmp_path / "out"])
    assert len(paths) > 2
    assert all(path.stat().st_size <= 10_000 for path in paths)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    paths[1].rename(elsewhere / paths[1].name)  # parts may travel apart
    read_parts(manifest, [tmp_path / "out", elsewhere], tmp_path / "back")
    for path in source.iterdir():
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()
    again = write_parts(source, tmp_path / "again", "x", part_bytes=10_000)
    assert again == manifest  # names and contents alone decide the bytes


def test_numbers_that_do_not_shrink_stay_below_the_limit(tmp_path):
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / "x").write_bytes(np.random.default_rng(0).bytes(300_000))
    manifest = write_parts(tmp_path / "noise", tmp_path / "out", "noise", part_bytes=200_000)
    assert [part["bytes"] <= 200_000 for part in manifest["parts"]] == [True] * 3


def test_half_precision_weights_shrink(tmp_path):
    (tmp_path / "half").mkdir()
    values = np.random.default_rng(0).normal(scale=0.05, size=200_000).astype(np.float16)
    (tmp_path / "half" / "x").write_bytes(values.tobytes())
    manifest = write_parts(tmp_path / "half", tmp_path / "out", "half")
    assert sum(part["bytes"] for part in manifest["parts"]) < 0.9 * manifest["bytes"]


def test_a_missing_or_damaged_part_is_told(tmp_path):
    manifest = write_parts(weights_folder(tmp_path / "source"), tmp_path / "out", "x", part_bytes=10_000)
    part = tmp_path / "out" / manifest["parts"][1]["file"]
    whole = part.read_bytes()
    part.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(PartsError, match=r"x\.tar\.xz\.01 is not the part"):
        read_parts(manifest, [tmp_path / "out"], tmp_path / "back")
    part.unlink()
    with pytest.raises(PartsError, match=r"x\.tar\.xz\.01 is in none of"):
        read_parts(manifest, [tmp_path / "out"], tmp_path / "back")
    assert not (tmp_path / "back").exists()
    with pytest.raises(PartsError, match="schema 'other'"):
        check_parts({**manifest, "schema": "other"}, [tmp_path / "out"])


def test_parts_of_another_folder_are_refused(tmp_path):
    manifest = write_parts(weights_folder(tmp_path / "source"), tmp_path / "out", "x")
    with pytest.raises(PartsError, match="do not make the folder"):
        read_parts({**manifest, "sha256": "0" * 64}, [tmp_path / "out"], tmp_path / "back")


def test_only_flat_folders_are_cut(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    with pytest.raises(PartsError, match="not a plain file"):
        write_parts(tmp_path / "deep", tmp_path / "out", "x")


# Half precision


def test_weights_travel_in_half_precision(tmp_path):
    source = weights_folder(tmp_path / "source")
    halve(source, tmp_path / "half")
    restore(tmp_path / "half", tmp_path / "back")
    before, half, after = (load_file(tmp_path / n / "model.safetensors") for n in ("source", "half", "back"))
    assert (half["a.weight"].dtype, half["ids"].dtype) == (np.float16, before["ids"].dtype)
    assert after["a.weight"].dtype == np.float32
    np.testing.assert_array_equal(after["a.weight"], before["a.weight"].astype(np.float16))
    with safe_open(tmp_path / "back" / "model.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "pt"}  # transformers refuses a file without it
    assert (tmp_path / "back" / "config.json").read_text() == "{}"


def test_numbers_too_large_for_half_precision_are_refused(tmp_path):
    with pytest.raises(PartsError, match=r"a\.weight holds a number that float16 does not"):
        halve(weights_folder(tmp_path / "source", scale=1e6), tmp_path / "half")


# Kits


def test_a_kit_holds_all_that_a_bare_machine_needs(material):
    packed = open_kit(material / "kit")
    assert (packed.root / "code" / "pmd" / "benchmarks" / "gpu" / "slices.yaml").is_file()
    assert (packed.root / "code" / "pmd" / "recipes" / "wn18rr.yaml").is_file()
    assert not list(packed.root.rglob("*.pyc"))
    assert packed.dataset("tiny") == material / "kit" / "data" / "tiny"
    with pytest.raises(KitError, match="no dataset other; it has tiny"):
        packed.dataset("other")
    assert size_of(packed.facts) == sum(
        path.stat().st_size for path in packed.root.rglob("*") if path.is_file() and path.name != kit.FILE
    )


def test_the_encoder_comes_out_of_the_kit_as_it_went_in(material, tmp_path):
    packed = open_kit(material / "kit")
    for _ in range(2):  # the second time it is there already
        packed.unpack_encoder(tmp_path / "work" / "tiny-bert")
    before = load_file(material / "tiny-bert" / "model.safetensors")
    after = load_file(tmp_path / "work" / "tiny-bert" / "model.safetensors")
    assert set(before) == set(after)
    for name, tensor in before.items():
        np.testing.assert_allclose(after[name], tensor, rtol=2**-11, atol=2**-24)
    assert sha256_of(tmp_path / "work" / "tiny-bert" / "tokenizer.json") == sha256_of(
        material / "tiny-bert" / "tokenizer.json"
    )


def test_a_kit_that_is_too_large_is_not_made(material, tmp_path, monkeypatch):
    found = {"name": "e", "folder": str(material / "tiny-bert"), "sha256": "", "datasets": [str(material / "tiny")]}
    monkeypatch.setattr(kit, "run_python", lambda *_words, **_options: json.dumps(found))
    monkeypatch.setattr(kit, "_commit", lambda: {"commit": "abc", "modified": False})
    with pytest.raises(KitError, match=r"MiB \(code .*, data .*, encoder .*\), more than 0\.1"):
        pack_kit(tmp_path / "kit", "e", ["tiny"], python=None, max_bytes=100_000)
    assert not (tmp_path / "kit").exists()


def test_code_without_a_commit_is_not_packed(tmp_path, monkeypatch):
    monkeypatch.setattr(kit.subprocess, "run", lambda *_words, **_options: (_ for _ in ()).throw(OSError()))
    with pytest.raises(KitError, match="could not name a commit"):
        pack_kit(tmp_path / "kit", "e", ["tiny"], python=None, max_bytes=1)


def test_a_kit_that_was_damaged_on_the_way_is_refused(material, tmp_path):
    shutil.copytree(material / "kit", tmp_path / "kit")
    (tmp_path / "kit" / "data" / "tiny" / "train.tsv").write_text("short")
    with pytest.raises(KitError, match=r"train\.tsv is not the file that was packed"):
        open_kit(tmp_path / "kit")
    (tmp_path / "kit" / "data" / "tiny" / "train.tsv").unlink()
    with pytest.raises(KitError, match=r"lacks data/tiny/train\.tsv"):
        open_kit(tmp_path / "kit")
    with pytest.raises(KitError, match="is not a kit"):
        open_kit(tmp_path)


# Slices


def test_shipped_slices_are_sized_and_in_order():
    slices = list(shipped_slices().values())
    assert [entry.name for entry in slices[:2]] == ["wn18rr-teacher", "wn18rr-pmd"]
    assert all(0 < entry.minutes < LIMIT_MINUTES for entry in slices)
    names = [entry.name for entry in slices]
    assert all(names.index(needed) < names.index(entry.name) for entry in slices for needed in entry.needs)


@pytest.mark.parametrize("name", shipped_slices())
def test_every_run_of_a_slice_is_a_recipe_that_fits(name):
    entry = shipped_slices()[name]
    assert runner.dataset_of(entry.recipe) in cli.DATASETS
    for run, keys in entry.runs.items():
        stages = [stage.name for stage in plan_stages(load_recipe(entry.recipe, keys), depth=6)]
        assert all(stage in stages for owner, stage in entry.returns if owner == run)


@pytest.mark.parametrize("dataset", ["wn18rr", "fb15k237"])
def test_slices_train_every_method_on_the_same_epochs(dataset):
    slices = [
        entry for entry in shipped_slices().values() if entry.recipe == dataset and entry.name != "throughput"
    ]
    recipes = [load_recipe(dataset, keys) for entry in slices for keys in entry.runs.values()]
    assert {recipe.method for recipe in recipes} == {"pmd", "pmd-no-mgfd", "lkd", "pkd", "baseline"}
    assert len({(recipe.epochs, tuple(recipe.stage_epochs.items()), recipe.lr) for recipe in recipes}) == 1


def test_a_wrong_slice_file_is_told(tmp_path):
    path = tmp_path / "slices.yaml"
    good = {"why": "", "minutes": 1, "recipe": "umls", "runs": {"a": {}}}
    wrong = {
        "not laid out": {"x": {"why": ""}},
        "returns must name RUN/STAGE": {"x": {**good, "returns": ["b/teacher"]}},
        "needs y, which": {"x": {**good, "needs": ["y"]}},
    }
    for message, slices in wrong.items():
        path.write_text(json.dumps(slices))
        with pytest.raises(SliceError, match=message):
            read_slices(path)


# Running


def test_a_slice_trains_and_brings_its_weights_back(first, tmp_path):
    result, out, work = first
    assert result["done"]
    assert read_result(out / "result.json") == result
    (made,) = result["runs"]
    assert [stage["stage"] for stage in made["ladder"]["stages"]] == ["teacher", "grade-2"]
    assert (made["facts"]["recipe"]["dataset"], made["facts"]["recipe"]["encoder"]) == ("tiny", "tiny-bert")
    assert made["command"].startswith("pmd-train --recipe ")
    assert "--data KIT/data/tiny --encoder WORK/encoder/tiny-bert --out WORK/runs/first/straight" in made["command"]
    assert made["facts"]["machine"]["cores"] >= 1
    assert set(made["rates"]) == {"teacher", "grade-2"}
    assert str(work) not in json.dumps(result["runs"]) and str(out) not in json.dumps(result)
    kept, _ = collect(out, tmp_path / "results", tmp_path / "runs", force=False)
    assert kept == tmp_path / "results" / "first.json"
    carried = load_grade(tmp_path / "runs" / "first" / "straight" / "teacher").model.state_dict()
    trained = load_grade(work / "runs" / "first" / "straight" / "teacher").model.state_dict()
    for name, tensor in trained.items():
        np.testing.assert_allclose(carried[name].numpy(), tensor.numpy(), rtol=2**-11, atol=2**-24)
    folder = RunFolder(tmp_path / "runs" / "first" / "straight")
    assert [stage["stage"] for stage in read_json(folder.ladder, "pmd-ladder/1")["stages"]] == ["teacher"]
    assert read_json(folder.run, "pmd-run/1")["seed"] == 0


def test_a_slice_without_what_it_needs_is_refused(material, sitting):
    with pytest.raises(SliceError, match="starts from first, which is not in"):
        run_slice(read_slices(material / "slices.yaml")["second"], sitting, [], "the command")


@pytest.mark.skipif(not REUSES, reason="pmd-train has no --reuse yet")
def test_a_slice_starts_from_weights_of_an_earlier_one(material, sitting, first):
    result = run_slice(read_slices(material / "slices.yaml")["second"], sitting, [first[1]], "the command")
    assert [made["run"] for made in result["runs"]] == ["pmd", "again"]
    teachers = [made["ladder"]["stages"][0] for made in result["runs"]]
    earlier = first[0]["runs"][0]["ladder"]["stages"][0]
    assert teachers == [earlier, earlier]  # train_seconds and all: it was not trained again
    assert not any("teacher" in made["rates"] for made in result["runs"])


def unfinished(stages, code, arguments):
    """A pmd-train that finishes some stages of the toy run and ends with a code."""
    out = Path(arguments[arguments.index("--out") + 1])
    out.mkdir(parents=True)
    machine = {"processor": "a small one", "gpu": None}
    facts = {"recipe": {}, "seed": 0, "commit": "abc", "versions": {"python": "3"}, "machine": machine}
    (out / "run.json").write_text(json.dumps(facts))
    (out / "ladder.json").write_text(json.dumps({"stages": [{"stage": stage} for stage in stages]}))
    events = [
        {"event": "step", "stage": "teacher", "epoch": 1, "step": 4, "triples_per_second": 5.0},
        {"event": "epoch", "stage": "teacher", "epoch": 1, "step": 5, "valid_mrr": 0.5, "seconds": 2.0},
        {"event": "epoch", "stage": "grade-2", "epoch": 1, "step": 5, "valid_mrr": 0.4, "seconds": 1.0},
    ]
    (out / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + '{"event": "st')
    return code


def test_what_was_finished_in_time_is_kept(material, sitting):
    calls = []

    def train(arguments, kill_after, _cache):
        calls.append((float(arguments[arguments.index("--time-limit") + 1]), kill_after))
        return unfinished(["teacher"], 75, arguments)

    slices = read_slices(material / "slices.yaml")
    cut = Sitting(**{**sitting.__dict__, "train": train, "fresh": True, "time_limit": 100.0})
    result = run_slice(slices["second"], cut, [], "the command")
    assert not result["done"]
    (made,) = result["runs"]  # the second run was not begun
    assert [stage["stage"] for stage in made["ladder"]["stages"]] == ["teacher"]
    assert [(entry["stage"], entry["valid_mrr"]) for entry in made["unfinished"]] == [("grade-2", 0.4)]
    assert made["rates"] == {"teacher": {"step": 4, "triples_per_second": 5.0}}
    ((limit, kill_after),) = calls
    assert 60 < limit <= 65  # a fifth of 100 is kept back for packing, 15 for the start and the last step
    assert 75 < kill_after <= 80


def test_a_training_that_fails_is_told_and_the_rest_kept(material, sitting):
    codes = iter([0, 2])
    failing = Sitting(
        **{**sitting.__dict__, "fresh": True}
        | {"train": lambda arguments, *_rest: unfinished(["teacher"], next(codes), arguments)}
    )
    with pytest.raises(RunFailed, match="run again ended with exit code 2"):
        run_slice(read_slices(material / "slices.yaml")["second"], failing, [], "the command")
    result = read_result(sitting.out / "result.json")
    assert [made["done"] for made in result["runs"]] == [True, False]
    assert not result["done"]


def test_a_training_that_never_starts_leaves_no_result(material, sitting):
    broken = Sitting(**{**sitting.__dict__, "train": lambda *_: 2})
    with pytest.raises(RunFailed, match="run straight ended with exit code 2"):
        run_slice(read_slices(material / "slices.yaml")["first"], broken, [], "the command")
    assert not sitting.out.exists()


def test_the_command_of_a_training(tmp_path):
    training = Training(
        *("pmd", "wn18rr", tmp_path / "kit" / "data" / "wn18rr", tmp_path / "work" / "encoder" / "e"),
        *(
            tmp_path / "work" / "runs" / "x" / "pmd",
            {"grades": [3], "method": "lkd"},
            1,
            "cuda",
            (tmp_path / "work",),
        ),
    )
    assert training.shown(tmp_path / "kit", tmp_path / "work", 60.5) == (
        "pmd-train --recipe wn18rr --data KIT/data/wn18rr --encoder WORK/encoder/e --out WORK/runs/x/pmd --seed 1 "
        "--device cuda --set 'grades=[3]' --set 'method=\"lkd\"' --reuse WORK --resume --time-limit 60"
    )


# Results


def test_a_finished_result_does_not_give_way_to_an_unfinished_one(first, tmp_path):
    _, out, _ = first
    collect(out, tmp_path / "results", None, force=False)
    result = read_result(out / "result.json")
    later = tmp_path / "later"
    later.mkdir()
    (later / "result.json").write_text(json.dumps({**result, "done": False, "weights": {}}))
    with pytest.raises(ResultError, match="is finished and"):
        collect(later, tmp_path / "results", None, force=False)
    collect(later, tmp_path / "results", None, force=True)
    assert not results_of(tmp_path / "results")["first"]["done"]


def test_a_result_whose_parts_are_not_all_there_is_not_kept(first, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "result.json").write_bytes((first[1] / "result.json").read_bytes())
    with pytest.raises(PartsError, match="is in none of"):
        collect(tmp_path / "out", tmp_path / "results", None, force=False)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("key", ["commit", "machine", "seed", "command", "runs"])
def test_a_result_must_say_what_makes_it_repeatable(first, key):
    result = first[0]
    without = {name: value for name, value in result.items() if name != key}
    with pytest.raises(ResultError, match=f"lacks {key}"):
        check_result(without, Path("x.json"))
    if key != "seed":
        with pytest.raises(ResultError):
            check_result({**result, key: None}, Path("x.json"))


def test_every_kept_result_is_whole():
    """Figures without commit, machine, seed and command cannot be repeated, so none is kept."""
    kept = results_of(ROOT / "benchmarks" / "results")
    for label, result in kept.items():
        assert result["label"] == label
        assert result["slice"] in shipped_slices()
        for made in result["runs"]:
            assert made["facts"]["seed"] == result["seed"]
    assert (ROOT / "benchmarks" / "results" / "README.md").is_file()


# The command


def test_the_command_lists_and_collects(first, tmp_path):
    results = tmp_path / "results"
    done = CliRunner().invoke(cli.main, ["collect", str(first[1]), "--results", str(results)])
    assert done.exit_code == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert (last["schema"], last["done"]) == ("pmd-gpu-collect/1", True)
    assert "teacher" in done.stdout and "grade-2" in done.stdout
    listed = CliRunner().invoke(cli.main, ["list", "--results", str(results)])
    rows = json.loads(listed.stdout.splitlines()[-1])["slices"]
    assert [row["slice"] for row in rows] == list(shipped_slices())
    assert not any(row["done"] for row in rows)


def test_mistakes_end_in_one_line(material, tmp_path):
    base = ["--kit", str(material / "kit"), "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    for words, message in {
        ("run", "nothing", *base): "no slice 'nothing'; there are wn18rr-teacher",
        ("run", "umls-try", "--kit", str(material), "--out", str(tmp_path)): "is not a kit",
        ("run", "umls-try", *base, "--set", "x"): "not KEY=VALUE",
        ("run", "umls-try", *base): "has no dataset umls; it has tiny",
        ("collect", str(material)): "cannot be read as a result",
    }.items():
        done = CliRunner().invoke(cli.main, words)
        assert done.exit_code == 2, done.stderr
        assert message in done.stderr
        assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("words", [(), ("prepare",), ("list",), ("run",), ("collect",)])
def test_help(words):
    done = CliRunner().invoke(cli.main, [*words, "--help"])
    assert done.exit_code == 0
    assert "Usage:" in done.stdout


def test_this_package_leaves_training_to_a_child():
    """It runs where torch may be half installed, and `list` must not wait for it."""
    light = {"numpy", "safetensors", "yaml", "click"}
    for path in sorted((ROOT / "benchmarks" / "gpu").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                top = name.split(".")[0]
                fine = name.startswith(("pmd.benchmarks", "pmd.serving")) or top in light
                assert fine or top in sys.stdlib_module_names, f"{path.name} imports {name}"


def test_the_parts_hash_is_that_of_the_whole(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "x").write_bytes(b"abc")
    manifest = write_parts(tmp_path / "one", tmp_path / "out", "one")
    part = (tmp_path / "out" / "one.tar.xz.00").read_bytes()
    assert hashlib.sha256(part).hexdigest() == manifest["parts"][0]["sha256"]
