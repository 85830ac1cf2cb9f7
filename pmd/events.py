"""What a run says while it goes: events.jsonl for machines, one live line on stderr for people."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from pmd.checkpoint import StageState
from pmd.losses import LossParts

OnEpoch = Callable[[str, dict[str, Any]], None]
STEP_EVENT_SECONDS = 5.0  # a step's losses are read (a GPU wait) and logged at most this often


class Events:
    """Writes events.jsonl and, where wanted, draws progress."""

    def __init__(self, path: Path, *, progress: bool, record: bool = True, on_epoch: OnEpoch | None = None) -> None:
        self._path = path
        self._record = record
        self._on_epoch = on_epoch
        self._console = Console(stderr=True, quiet=not progress)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not progress,
            transient=True,
        )
        self._task: TaskID | None = None
        self._valid = ""
        self._logged_at = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Mark a stage's beginning and end, and draw its progress between."""
        self._write("stage", stage=name)
        self._valid = ""
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

    def step(self, stage: str, epoch: int, state: StageState, total: int, parts: LossParts) -> None:
        """Report a step that is due, to the file and on the live line."""
        self._logged_at = time.monotonic()
        losses = {name: float(value) for name, value in parts._asdict().items()}
        rate = state.triples / max(state.seconds, 1e-9)
        self._write("step", stage=stage, epoch=epoch, step=state.step, triples_per_second=rate, **losses)
        if self._task is not None:
            shown = " ".join(f"{name} {value:.3f}" for name, value in losses.items())
            self._progress.update(
                self._task,
                completed=state.step,
                total=total,
                facts=f"step {state.step}/{total}  {shown}  {rate:.0f} triples/s{self._valid}",
            )

    def epoch(self, stage: str, record: dict[str, Any]) -> None:
        """Report an epoch's validation."""
        self._write("epoch", stage=stage, **record)
        if record["valid_mrr"] is not None:
            self._valid = f"  valid MRR {record['valid_mrr']:.3f}"
        if self._on_epoch is not None:
            self._on_epoch(stage, record)

    def say(self, message: str) -> None:
        """A line for people."""
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)

    def _write(self, event: str, **fields: Any) -> None:
        if not self._record:
            return
        with self._path.open("a", encoding="utf-8") as file:  # every few seconds: no handle to keep or lose
            file.write(json.dumps({"event": event, "time": time.time(), **fields}) + "\n")
