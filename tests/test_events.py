"""What a run says while it goes: the live line, and what --quiet and a missing terminal make of it."""

import io
import json

import pytest
import torch
from rich.console import Console

from pmd.checkpoint import StageState
from pmd.events import Events, _progress_line
from pmd.losses import LossParts

PARTS = LossParts(*(torch.tensor(value) for value in (1.5, 1.25, 0.5, 0.125)))


def shown(path, monkeypatch, *, progress, width):
    """What stands on the terminal after an epoch and a step of the next."""
    screen = io.StringIO()
    monkeypatch.setattr(
        "pmd.events.Console",
        lambda **settings: Console(
            file=screen, width=width, force_terminal=True, color_system=None, quiet=settings["quiet"]
        ),
    )
    events = Events(path, progress=progress)
    with events.stage("grade-2", steps_before=100):
        events.epoch("grade-2", {"epoch": 1, "step": 40, "valid_mrr": 0.8125, "mask_rate": 0.1})
        state = StageState("grade-2", step=50, seconds=100.0, triples=6000)
        events.step("grade-2", 2, state, 80, PARTS, lr=0.01)
        events._progress.refresh()
        return " ".join(screen.getvalue().split())


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_line_holds_everything_at_any_width(tmp_path, monkeypatch, width):
    line = shown(tmp_path / "events.jsonl", monkeypatch, progress=True, width=width)
    wanted = ["grade-2", "step 50/80", "total 1.500", "task 1.250", "score 0.500", "feature 0.125"]
    for fact in [*wanted, "60 triples/s", "ETA 0:01:00", "valid MRR 0.812"]:
        assert all(word in line for word in fact.split()), f"{fact} is not in {line}"
    assert "…" not in line


def test_without_progress_only_the_file_is_written(tmp_path, monkeypatch):
    path = tmp_path / "events.jsonl"
    assert shown(path, monkeypatch, progress=False, width=80) == ""
    stage, epoch, step = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    assert (stage["event"], epoch["event"], step["event"]) == ("stage", "epoch", "step")
    assert (step["task"], step["lr"], step["triples_per_second"]) == (1.25, 0.01, 60.0)


def test_numbers_that_are_not_finite_are_null_in_the_file(tmp_path):
    path = tmp_path / "events.jsonl"
    events = Events(path, progress=False)
    parts = PARTS._replace(total=torch.tensor(float("nan")), task=torch.tensor(float("inf")))
    events.step("grade-2", 1, StageState("grade-2", step=1, skipped_steps=1), 2, parts, lr=0.01)
    events.skipped("grade-2", StageState("grade-2", step=1, skipped_steps=1, skipped_in_a_row=1))
    step, skipped = (json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines())
    assert (step["total"], step["task"], step["score"], step["skipped_steps"]) == (None, None, 0.5, 1)
    assert (skipped["event"], skipped["skipped_steps"], skipped["in_a_row"]) == ("skipped", 1, 1)


def test_steps_left_out_show_in_the_line():
    parts = {"total": float("nan")}
    assert "skipped" not in _progress_line(StageState("x", step=1), 2, parts, 1.0)
    assert _progress_line(StageState("x", step=1, skipped_steps=3), 2, parts, 1.0).endswith("3 skipped")
