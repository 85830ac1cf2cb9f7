"""What a kill or a full disk leaves of a run, and how the next start takes it."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors import SafetensorError, safe_open

import pmd.tensorfile
from pmd.checkpoint import StageState, checkpoint_stage, load_checkpoint, save_checkpoint
from pmd.errors import RunError
from pmd.events import Events
from pmd.recipe import load_recipe
from pmd.run import RunFolder, start_run
from pmd.serving.storage import StorageError, discard
from pmd.tensorfile import save_tensors
from tests.tiny_encoder import write_encoder, write_graph, write_recipe
from tests.toy_ladder import toy_ladder

FULL = "Error while serializing: I/O error: No space left on device (os error 28)"
SETTINGS = {"epochs": 1, "grades": [2, 1]}


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    root = tmp_path_factory.mktemp("material")
    return write_graph(root / "tiny"), write_encoder(root / "encoder", layers=2)


@pytest.fixture(scope="module")
def dead_pid():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fill_the_disk(monkeypatch):
    def full(*_arguments, **_options):
        raise SafetensorError(FULL)

    monkeypatch.setattr(pmd.tensorfile, "save_file", full)


def test_the_checkpoint_of_a_finished_stage_is_no_obstacle(material, tmp_path, dead_pid):
    run = tmp_path / "run"
    ladder = toy_ladder(run, *material, SETTINGS)
    whole = {stage: (run / stage / "model.safetensors").read_bytes() for stage in ("pre-distilled", "grade-1")}
    for path in (run / "grade-1").iterdir():
        path.unlink()
    (run / "grade-1").rmdir()
    save_checkpoint(run / "checkpoint.safetensors", {"model": {}}, StageState("pre-distilled"))
    (run / f".checkpoint.safetensors.partial-abc-{dead_pid}").mkdir()
    again = toy_ladder(run, *material, SETTINGS, resume=True)
    assert [stage["test"] for stage in again["stages"]] == [stage["test"] for stage in ladder["stages"]]
    assert whole == {stage: (run / stage / "model.safetensors").read_bytes() for stage in whole}
    assert not [name for name in names(run) if "checkpoint" in name]


def test_a_full_disk_is_told_with_the_way_on(material, tmp_path, monkeypatch):
    fill_the_disk(monkeypatch)
    told = r"model.safetensors cannot be written: No space left on device; make room .* go on with --resume$"
    with pytest.raises(StorageError, match=told):
        toy_ladder(tmp_path / "run", *material, SETTINGS)
    assert names(tmp_path / "run") == ["events.jsonl", "run.json"]


def test_a_damaged_checkpoint_is_kept_for_the_error_that_names_it(tmp_path):
    (tmp_path / "checkpoint.safetensors").write_bytes(b"damaged")
    assert checkpoint_stage(tmp_path / "checkpoint.safetensors") is None
    assert checkpoint_stage(tmp_path / "absent.safetensors") is None


def test_a_start_that_died_while_it_wrote_is_no_foreign_folder(material, tmp_path, dead_pid):
    recipe = load_recipe(str(write_recipe(tmp_path / "toy.yaml", *material)), {})
    folder = RunFolder(tmp_path / "run")
    folder.root.mkdir()
    (folder.root / f".run.json.partial-abc-{dead_pid}").write_text("{")
    start_run(folder, recipe, {}, torch.device("cpu"), resume=True)
    assert names(folder.root) == ["run.json"]
    folder.run.unlink()
    (folder.root / "thesis.tex").touch()
    with pytest.raises(RunError, match="exists and is not a run"):
        start_run(folder, recipe, {}, torch.device("cpu"), resume=True)


@pytest.mark.parametrize("torn", [b"", b'{"event": "st', b'{"event": "stage"}\n{"event', b'{"event": "stage"}\n'])
def test_events_go_on_after_the_last_whole_line(tmp_path, torn):
    path = tmp_path / "events.jsonl"
    path.write_bytes(torn)
    with Events(path, progress=False).stage("grade-2"):
        pass
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["stage"] * (torn.count(b"\n") + 1)


def test_events_on_a_folder_that_is_gone(tmp_path):
    events = Events(tmp_path / "run" / "events.jsonl", progress=False)
    with (
        pytest.raises(StorageError, match=r"events.jsonl cannot be written: No such file"),
        events.stage("teacher"),
    ):
        pass


def test_tensors_on_a_full_disk_leave_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"a": torch.ones(3)}, {})
    before = path.read_bytes()
    fill_the_disk(monkeypatch)
    with pytest.raises(StorageError, match=r"a.safetensors cannot be written: No space left on device; make room"):
        save_tensors(path, {"a": torch.zeros(3)}, {})
    assert path.read_bytes() == before
    assert names(tmp_path) == ["a.safetensors"]


def test_tensors_in_a_folder_that_is_taken_away(tmp_path, monkeypatch):
    gone = "Error while serializing: I/O error: No such file or directory (os error 2) at path"

    def refuse(*_arguments, **_options):
        raise SafetensorError(gone)

    monkeypatch.setattr(pmd.tensorfile, "save_file", refuse)
    with pytest.raises(StorageError, match=r"a.safetensors cannot be written: No such file .* removed meanwhile"):
        save_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(3)}, {})


def test_tensors_are_for_whoever_may_read_new_files(tmp_path):
    save_tensors(tmp_path / "a.safetensors", {"a": torch.ones(3)}, {})
    (tmp_path / "plain").touch()
    assert os.stat(tmp_path / "a.safetensors").st_mode == os.stat(tmp_path / "plain").st_mode
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert file.get_tensor("a").tolist() == [1, 1, 1]


def test_a_checkpoint_does_not_make_a_removed_run_again(tmp_path):
    with pytest.raises(RunError, match="removed while it was in use; train again with another --out"):
        save_checkpoint(tmp_path / "run" / "checkpoint.safetensors", {}, StageState("teacher"))
    assert names(tmp_path) == []


def test_a_checkpoint_names_its_stage(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, {"model": {"a": torch.ones(1)}}, StageState("teacher", step=3))
    assert checkpoint_stage(path) == "teacher"
    assert load_checkpoint(path, "teacher")[1].step == 3


def test_discarding_removes_what_dead_writers_left(tmp_path, dead_pid):
    (tmp_path / "a").touch()
    for name in (f".a.partial-abc-{dead_pid}", f".b.partial-abc-{dead_pid}"):
        (tmp_path / name).mkdir()
    discard(tmp_path / "a")
    discard(tmp_path / "a")
    assert names(tmp_path) == [f".b.partial-abc-{dead_pid}"]
