"""A trainer for studies that trains nothing: it writes the run folders that the training core would."""

from __future__ import annotations

import json
from pathlib import Path

from pmd.stages import plan_stages

DEPTH = 4


class Killed(BaseException):
    """The process dies here; no handler of ours may catch it."""


class FakeTrainer:
    """Writes run.json and ladder.json with figures from `score(recipe, grade)`, and remembers its calls.

    die_at / stop_at: the number of the call that is killed, or stopped by the time limit.
    """

    def __init__(self, score=None, *, epochs=3, die_at=None, stop_at=None):
        self.score = score or (lambda recipe, grade: 0.5 + 0.01 * grade + 0.001 * recipe.seed)
        self.epochs, self.die_at, self.stop_at = epochs, die_at, stop_at
        self.calls, self.reused, self.epochs_seen = [], {}, []

    def __call__(self, recipe, out, *, seconds, reuse, on_epoch):
        self.calls.append(out.name)
        self.reused[out.name] = [path.name for path in reuse]
        write_run(out, recipe, {})
        stages = plan_stages(recipe, DEPTH)
        if len(self.calls) == self.stop_at:
            return False
        for epoch in range(1, self.epochs + 1):
            if len(self.calls) == self.die_at and epoch == 2:
                raise Killed
            if on_epoch is not None:
                self.epochs_seen.append((out.name, epoch))
                value = self.score(recipe, stages[-1].grade) * epoch / self.epochs
                on_epoch("teacher", {"epoch": epoch, "valid_mrr": 0.0})
                on_epoch(stages[-1].name, {"epoch": epoch, "valid_mrr": value})
        write_run(out, recipe, {stage.name: self.score(recipe, stage.grade) for stage in stages})
        return True


def write_run(out: Path, recipe, scores: dict[str, float]) -> None:
    """A run folder as far as a study reads it; `scores` has the MRR of each finished stage."""
    out.mkdir(parents=True, exist_ok=True)
    machine = {"commit": "c0ffee", "versions": {"torch": "2"}, "machine": {"processor": "a small one", "gpu": None}}
    run = {"schema": "pmd-run/1", "recipe": recipe.model_dump(mode="json"), "seed": recipe.seed, **machine}
    (out / "run.json").write_text(json.dumps(run), encoding="utf-8")
    stages = [stage_facts(s, scores[s.name]) for s in plan_stages(recipe, DEPTH) if s.name in scores]
    ladder = {"schema": "pmd-ladder/1", "dataset": "tiny", "seed": recipe.seed, "stages": stages}
    (out / "ladder.json").write_text(json.dumps(ladder), encoding="utf-8")


def stage_facts(stage, mrr: float) -> dict[str, object]:
    metrics = {"mrr": mrr, "hits@1": mrr / 2, "hits@3": mrr, "hits@10": min(1.0, mrr * 1.5), "mean_rank": 1 / mrr}
    return {
        "stage": stage.name,
        "grade": stage.grade,
        "mask_rate": stage.mask_rate,
        "parameters": 1000 * stage.grade,
        "epochs": 2,
        "train_seconds": 1.5,
        "valid": metrics,
        "test": {**metrics, "mrr": mrr - 0.01},
        "test_reranked": None,
    }
