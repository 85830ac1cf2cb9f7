"""Valid MRR after each epoch: our loop by its own trainer, and the padded one on the same schedule.

All train the teacher's layers on the task loss alone, from the same pretrained weights, with as many triples a
step, so with as many steps an epoch.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pmd.benchmarks.loops.naive import NaiveLearner, naive_batches
from pmd.benchmarks.loops.setting import Setting
from pmd.benchmarks.loops.sides import naive_learner
from pmd.benchmarks.loops.wanted import GRAPH, NAIVE, TEACHER, Wanted
from pmd.evaluation import evaluate_model
from pmd.ladder import train_ladder
from pmd.train import learning_rate


def measure_curve(wanted: Wanted, loop_name: str, epochs: int) -> list[dict[str, Any]]:
    """One record an epoch: epoch, step, valid MRR, and seconds so far, validations included."""
    setting = Setting.load(replace(wanted, batch_of="triples"))
    if loop_name == NAIVE:
        return _naive_curve(setting, epochs)
    return _our_curve(setting, epochs, "graph" if loop_name == GRAPH else "random")


def _our_curve(setting: Setting, epochs: int, order: str) -> list[dict[str, Any]]:
    depth = setting.encoder.depth
    changes: dict[str, Any] = {"method": "baseline", "grades": (depth,), "mask_rates": (0.0,), "rerank": None}
    changes |= {"epochs": epochs, "order": order, "batch_size": setting.queries_per_step}
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="pmd-bench-training-") as folder:
        train_ladder(
            setting.recipe.model_copy(update=changes),
            setting.texts.graph,
            Path(folder) / "run",
            device=torch.device("cpu"),
            resume=False,
            time_limit=None,
            progress=False,
            on_epoch=lambda _stage, record: records.append(record),
        )
    return [{key: record[key] for key in ("epoch", "step", "valid_mrr", "seconds")} for record in records]


def _naive_curve(setting: Setting, epochs: int) -> list[dict[str, Any]]:
    learner = naive_learner(setting, setting.case(TEACHER))
    texts, known, wanted = setting.texts, setting.texts.graph.known(), setting.wanted
    per_epoch = -(-len(texts.known.answers) // wanted.batch_size)
    records: list[dict[str, Any]] = []
    begin, step = time.perf_counter(), 0
    torch.manual_seed(wanted.seed)
    for epoch in range(epochs):
        rng = np.random.default_rng([wanted.seed, 0, epoch])
        learner.student.train()
        for batch in naive_batches(
            texts, wanted.batch_size, 0.0, rng, self_negatives=setting.recipe.self_negatives
        ):
            _set_rate(
                learner, learning_rate(step, epochs * per_epoch, setting.recipe.warmup_steps, setting.recipe.lr)
            )
            learner.step(batch)
            step += 1
        metrics, _ = evaluate_model(learner.student, texts, "valid", known)
        mrr, seconds = metrics["mrr"] if metrics else None, time.perf_counter() - begin
        records.append({"epoch": epoch + 1, "step": step, "valid_mrr": mrr, "seconds": seconds})
    return records


def _set_rate(learner: NaiveLearner, rate: float) -> None:
    for group in learner.optimizer.param_groups:
        group["lr"] = rate
