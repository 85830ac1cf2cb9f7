"""Several processes: one loss, one gradient, one run folder, one voice."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from pmd.device import choose_device
from pmd.errors import RunError
from pmd.serving.errors import PmdError
from pmd.workers import BUCKET_NUMBERS, Workers, _buckets
from tests.tiny_encoder import write_encoder, write_graph, write_recipe

STAGES = ("teacher", "pre-distilled", "grade-2")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def both(kind, folder):
    """What two processes report of what tests/two_processes.py lets them do."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    result = subprocess.run(
        [sys.executable, "-m", "tests.two_processes", kind, str(folder)],
        env={**os.environ, **shared, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert result.returncode == 0, result.stderr
    return [json.loads((folder / f"{kind}-{part}.json").read_text(encoding="utf-8")) for part in (0, 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("two")
    data, encoder = write_graph(root / "tiny"), write_encoder(root / "encoder")
    write_recipe(root / "toy.yaml", data, encoder, dropout=0.0)
    return root


@pytest.fixture(scope="module")
def two(folder):
    return both("short", folder)


@pytest.fixture(scope="module")
def long(folder):
    return both("long", folder)


CASES = ["masks", "masks pooled by text", "inner layers", "memory", "chunks", "no row for one"]
CASES += ["rows of their own", "rows do not divide"]
CASES += ["shared towers", "projection", "projection without a mask"]


@pytest.mark.parametrize("case", CASES)
def test_a_step_of_two_processes_is_that_of_one(two, case):
    first, second = (report["steps"][case] for report in two)
    assert first["losses"] < 1e-5
    assert first["gradients"] < 1e-5 * max(1.0, first["largest"])
    assert first["names"] == first["wanted"], "a parameter has a gradient here and none in a process alone"
    assert first["digest"] == second["digest"], "the processes must make the very same step"


def test_the_cases_are_what_they_are_called(two):
    first, second = (report["steps"] for report in two)
    assert set(first) == set(CASES)
    assert first["rows do not divide"]["rows"] != second["rows do not divide"]["rows"]
    assert 0 in second["no row for one"]["rows"] and 0 not in first["no row for one"]["rows"]
    assert "projection" in first["projection"]["names"]
    assert "projection" not in first["projection without a mask"]["names"]


def test_weights_stay_the_same_in_both(two):
    assert two[0]["weights"]["digest"] == two[1]["weights"]["digest"]
    assert two[0]["weights"]["gap"] < 1e-4


def test_a_step_that_is_bad_in_one_process_is_made_in_none(two):
    assert [report["lopsided"] for report in two] == [{"same": True, "counts": [1, 1, -1]}] * 2


def test_processes_tell_each_other(two):
    said = [{"part": 0, "text": "é", "number": 0.1}, {"part": 1, "text": "éé", "number": 0.1}]
    assert two[0]["told"] == two[1]["told"] == said
    assert two[0]["agreed"] == two[1]["agreed"] == [0, None]


def test_one_process_s_mistake_is_raised_in_all(two):
    first, second, both, none = (list(seen) for seen in zip(two[0]["mistakes"], two[1]["mistakes"], strict=True))
    assert first == [["wrong in 0", 2]] * 2
    assert second == [["process 1: wrong in 1", 3]] * 2
    assert both == [["wrong in 0", 2]] * 2
    assert none == [None, None]


def test_one_run_folder_is_written_once(two, folder):
    assert [report["commands"]["train"][0] for report in two] == [0, 0], two[0]["commands"]["train"][2]
    assert json.loads(two[0]["commands"]["train"][1].splitlines()[-1])["done"] is True
    assert two[1]["commands"]["train"][1:] == ["", ""], "only one process talks"
    names = {"run.json", "ladder.json", "events.jsonl", "grade-2"}
    assert {path.name for path in (folder / "short").iterdir()} == names
    kinds = [json.loads(line)["event"] for line in (folder / "short" / "events.jsonl").read_text().splitlines()]
    assert (kinds.count("stage"), kinds.count("epoch")) == (1, 1)


MISTAKES = {
    "again": "holds a run already",
    "unknown key": "unknown recipe key 'colour'",
    "unknown option": "--colour",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_only_the_leading_process_speaks_of_a_mistake(two, command):
    assert_said_once(two, command, 2, MISTAKES[command])


def assert_said_once(reports, command, code, said):
    assert [report["commands"][command][0] for report in reports] == [code, code]
    (line,) = reports[0]["commands"][command][2].splitlines()
    assert line.startswith("error: ") and said in line
    assert reports[1]["commands"][command][1:] == ["", ""]


def test_a_dry_run_is_shown_once(two):
    assert [report["commands"]["dry run"][0] for report in two] == [0, 0]
    assert '"pmd-plan/1"' in two[0]["commands"]["dry run"][1]
    assert two[1]["commands"]["dry run"][1] == ""


def test_both_stop_at_the_time_limit(two):
    assert [report["commands"]["stopped"][0] for report in two] == [75, 75]
    assert json.loads(two[0]["commands"]["stopped"][1].splitlines()[-1])["done"] is False


def test_a_lost_process_is_noticed(two):
    said, code = two[0]["lost"]
    assert said.startswith("process 0 lost another one (") and "/gloo/" not in said
    assert code == 1


@pytest.mark.slow
def test_the_ladder_of_two_processes_is_that_of_one(long, folder, tmp_path):
    alone = tmp_path / "alone"
    command = [sys.executable, "-m", "pmd.cli", "--recipe", folder / "toy.yaml", "--out", alone, "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    ours, theirs = (json.loads((run / "ladder.json").read_text()) for run in (folder / "run", alone))
    for own, other in zip(ours["stages"], theirs["stages"], strict=True):
        assert own["test"]["mrr"] == pytest.approx(other["test"]["mrr"], abs=0.02)
        assert own["identity"] != other["identity"], "bytes differ, so one must not stand for the other"
    assert {path.name for path in (folder / "run").iterdir()} == {path.name for path in alone.iterdir()}


@pytest.mark.slow
def test_processes_stop_and_resume_together(long, folder):
    codes = {name: [report["commands"][name][0] for report in long] for name in ("train", "stopped", "resumed")}
    assert codes == {"train": [0, 0], "stopped": [75, 75], "resumed": [0, 0]}
    for stage in STAGES:
        ours, theirs = (load_file(folder / run / stage / "model.safetensors") for run in ("stopped", "run"))
        assert all(ours[name].equal(theirs[name]) for name in theirs), stage
    assert_said_once(long, "diverging", 2, "not finite")


@pytest.mark.slow
def test_torchrun_starts_a_run(folder):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_port", str(free_port()), "-m", "pmd.cli", "--recipe", folder / "toy.yaml", "--quiet"]
    command += ["--out", folder / "torchrun"]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert len([line for line in result.stdout.splitlines() if line.startswith("{")]) == 1


def test_alone_nothing_is_set_up(monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    with Workers.started("cpu") as workers:
        assert workers == Workers(0, 1)
        assert workers.leads
        assert workers.told({"any": object}) == [{"any": object}]
        assert workers.total(torch.ones(2)).tolist() == [1, 1]
        with pytest.raises(PmdError, match="mine"), workers.together():
            raise PmdError("mine")
        with workers.together():
            workers.wait()
    from accelerate import PartialState

    assert PartialState._shared_state == {}
    assert not torch.distributed.is_initialized()
    assert dict(os.environ) == before


def test_buckets_hold_everything_once_in_order():
    sizes = [3, BUCKET_NUMBERS - 3, 1, BUCKET_NUMBERS + 5, 2]
    parameters = [torch.nn.Parameter(torch.empty(size, device="meta")) for size in sizes]
    buckets = list(_buckets(parameters))
    assert [[p.numel() for p in bucket] for bucket in buckets] == [sizes[:2], sizes[2:3], sizes[3:4], sizes[4:]]
    assert list(_buckets([])) == []


def test_each_process_takes_its_own_cuda_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == torch.device("cuda")
    monkeypatch.setenv("WORLD_SIZE", "3")
    for own in (0, 1):
        monkeypatch.setenv("LOCAL_RANK", str(own))
        assert choose_device("cuda") == torch.device("cuda", own)
        assert choose_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(RunError, match="process 3 of this machine has no CUDA device, there are 2"):
        choose_device("auto")
