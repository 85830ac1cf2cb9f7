"""What a run says while it goes: events.jsonl for machines, one live line for people, curves for trackers."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from pmd.checkpoint import StageState
from pmd.losses import LossParts
from pmd.serving.storage import explained
from pmd.trackers import Trackers

OnEpoch = Callable[[str, dict[str, Any]], None]
STEP_EVENT_SECONDS = 5.0  # a step's losses are read (a GPU wait) and logged at most this often


class Events:
    """Writes events.jsonl and, where wanted, draws progress and feeds trackers."""

    def __init__(
        self,
        path: Path,
        *,
        progress: bool,
        record: bool = True,
        on_epoch: OnEpoch | None = None,
        trackers: Trackers | None = None,
    ) -> None:
        """Begin at the end of the last whole line of the file: a kill or a full disk may have left half of one."""
        self._path = path
        self._record = record
        if record:
            _cut_half_line(path)
        self._on_epoch = on_epoch
        self._trackers = trackers or Trackers()
        self._console = Console(stderr=True, quiet=not progress)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[facts]}", table_column=Column()),  # a narrow terminal wraps it
            console=self._console,
            disable=not progress,
            transient=True,
        )
        self._task: TaskID | None = None
        self._valid = ""
        self._logged_at = 0.0
        self._steps_before = 0

    @contextmanager
    def stage(self, name: str, steps_before: int = 0) -> Iterator[None]:
        """Mark a stage's beginning and end, and draw its progress between.

        steps_before: optimiser steps of earlier stages, from which trackers count on.
        """
        self._write("stage", stage=name)
        self._valid = ""
        self._steps_before = steps_before
        with self._progress:
            self._task = self._progress.add_task(name, total=None, facts="")
            try:
                yield
            finally:
                self._progress.remove_task(self._task)
                self._task = None

    def step_is_due(self, *, last: bool) -> bool:
        """Whether to report this step: every few seconds, and at the end."""
        return last or time.monotonic() - self._logged_at >= STEP_EVENT_SECONDS

    def step(self, stage: str, epoch: int, state: StageState, total: int, parts: LossParts, lr: float) -> None:
        """Report a step that is due, to the file, the live line and the trackers."""
        self._logged_at = time.monotonic()
        losses = {name: float(value) for name, value in parts._asdict().items()}
        facts = {**losses, "lr": lr, "triples_per_second": state.triples / max(state.seconds, 1e-9)}
        self._write("step", stage=stage, epoch=epoch, step=state.step, skipped_steps=state.skipped_steps, **facts)
        self._trackers.log(stage, facts, self._steps_before + state.step)
        if self._task is not None:
            line = _progress_line(state, total, losses, facts["triples_per_second"]) + self._valid
            self._progress.update(self._task, completed=state.step, total=total, facts=line)

    def smaller_chunks(self, stage: str, state: StageState) -> None:
        """Report that a step ran out of memory, and with how many tokens at a time it is taken again."""
        self._write("out_of_memory", stage=stage, step=state.step, chunk_tokens=state.chunk_tokens)
        self.say(f"{stage}: out of memory; going on with {state.chunk_tokens} tokens at a time")

    def skipped(self, stage: str, state: StageState) -> None:
        """Report that steps were left out since the last report."""
        facts = {"skipped_steps": state.skipped_steps, "in_a_row": state.skipped_in_a_row}
        self._write("skipped", stage=stage, step=state.step, **facts)
        self.say(
            f"{stage}: {state.skipped_steps} steps of {state.step} left out, their loss or gradient was not finite"
        )

    def epoch(self, stage: str, record: dict[str, Any]) -> None:
        """Report an epoch's validation."""
        self._write("epoch", stage=stage, **record)
        facts = {name: record.get(name) for name in ("valid_mrr", "mask_rate", "epoch")}
        self._trackers.log(stage, facts, self._steps_before + record["step"])
        if record["valid_mrr"] is not None:
            self._valid = f"  valid MRR {record['valid_mrr']:.3f}"
        if self._on_epoch is not None:
            self._on_epoch(stage, record)

    def measured(self, stage: str, step: int, metrics: dict[str, Any]) -> None:
        """Hand a finished stage's metrics to the trackers; the run keeps them in the stage's folder."""
        facts: dict[str, Any] = {name: metrics[name] for name in ("parameters", "train_seconds", "best_epoch")}
        for split in ("valid", "test", "test_reranked"):
            facts |= {f"{split}/{name}": value for name, value in (metrics[split] or {}).items()}
        self._trackers.log(stage, facts, self._steps_before + step)

    def say(self, message: str) -> None:
        """A line for people."""
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)

    def _write(self, event: str, **fields: Any) -> None:
        if not self._record:
            return
        known = {name: None if _is_nan_or_infinite(value) else value for name, value in fields.items()}
        with explained(self._path), self._path.open("a", encoding="utf-8") as file:  # no handle to keep or lose
            file.write(json.dumps({"event": event, "time": time.time(), **known}, allow_nan=False) + "\n")


def _is_nan_or_infinite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _cut_half_line(path: Path) -> None:
    if not path.is_file():
        return
    with explained(path), path.open("r+b") as file:
        data = file.read()
        if not data.endswith(b"\n"):
            file.truncate(data.rfind(b"\n") + 1)


def _progress_line(state: StageState, total: int, losses: dict[str, float], rate: float) -> str:
    """Step, losses, speed and time left; a step's time is the stage's mean, validations included."""
    shown = " ".join(f"{name} {value:.3f}" for name, value in losses.items())
    left = timedelta(seconds=round(state.seconds / max(1, state.step) * (total - state.step)))
    skipped = f"  {state.skipped_steps} skipped" if state.skipped_steps else ""
    return f"step {state.step}/{total}  {shown}  {rate:.0f} triples/s  ETA {left}{skipped}"
