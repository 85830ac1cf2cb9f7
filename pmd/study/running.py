"""Training the runs of a study, one after the other, each stopping and going on where it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch

from pmd.deadline import Deadline
from pmd.events import OnEpoch
from pmd.graph import KnowledgeGraph
from pmd.ladder import train_ladder
from pmd.recipe import Recipe
from pmd.study.outline import Run

Say = Callable[[str], None]


class Trainer(Protocol):
    """Trains a ladder in a run folder, from wherever it was left; the seam at which tests put a fake."""

    def __call__(
        self, recipe: Recipe, out: Path, *, seconds: float | None, reuse: Sequence[Path], on_epoch: OnEpoch | None
    ) -> bool:
        """Returns whether every stage is done; False means that `seconds` came first, with all saved."""


def ladder_trainer(graph: KnowledgeGraph, device: torch.device, *, progress: bool) -> Trainer:
    """The trainer of the training core, on one graph and device."""

    def train(
        recipe: Recipe, out: Path, *, seconds: float | None, reuse: Sequence[Path], on_epoch: OnEpoch | None
    ) -> bool:
        _, done = train_ladder(
            recipe,
            graph,
            out,
            device=device,
            resume=True,
            time_limit=seconds,
            progress=progress,
            on_epoch=on_epoch,
            reuse=reuse,
        )
        return done

    return train


def train_runs(
    runs: Sequence[Run],
    train: Trainer,
    *,
    elsewhere: Sequence[Path] = (),
    deadline: Deadline,
    say: Say,
    refresh: Callable[[], object],
) -> bool:
    """Train every run that is not finished. Returns whether all are.

    refresh: called between two runs; after the last, the caller makes the report anyway.
    elsewhere: run folders of other studies, whose finished stages may be taken over as well.
    """
    trained = False
    for number, run in enumerate(runs, start=1):
        if run.finished:
            continue
        if deadline.passed():
            return False
        if trained:
            refresh()
        say(f"{number}/{len(runs)}: {run.variant.name}, seed {run.seed}")
        reuse = [*siblings(run, runs), *elsewhere]
        trained = train(run.recipe, run.folder, seconds=deadline.left, reuse=reuse, on_epoch=None)
        if not trained:
            return False
    return True


def siblings(run: Run, runs: Sequence[Run]) -> list[Path]:
    """Run folders of the study with the same seed that are there already: their finished stages may serve."""
    same = (other for other in runs if other.seed == run.seed and other.folder != run.folder)
    return [other.folder for other in same if other.folder.is_dir()]
