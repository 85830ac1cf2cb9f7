"""Train one stage: the loop, the step, the learning rate, the best checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pmd.batches import Batch, Batching, TrainingTexts, epoch_batches, epoch_rows
from pmd.checkpoint import StageState, load_checkpoint, save_checkpoint
from pmd.errors import TrainingError
from pmd.evaluation import evaluate_model
from pmd.events import Events
from pmd.losses import LossParts, distillation_loss, feature_loss, score_loss, task_loss
from pmd.model import BiEncoder
from pmd.serving.known import KnownAnswers


@dataclass(frozen=True)
class Weights:
    """What the loss is made of."""

    alpha: float
    beta: float
    score_scale: float
    margin: float


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a stage trains."""

    epochs: int
    lr: float
    warmup_steps: int
    weight_decay: float
    clip_norm: float
    mask_rate: float
    seed: tuple[int, ...]


class TimeLimitReached(Exception):
    """The time limit came; the checkpoint is written."""


def learning_rate(step: int, total: int, warmup: int, peak: float) -> float:
    """Linear warm-up to `peak`, then linear decay to 0 at `total` (SimKGC, arXiv 2203.02167)."""
    warmup = min(warmup, total // 2)  # a short run still gets to its peak
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return peak * (total - step) / max(1, total - warmup)


def train_step(
    student: BiEncoder,
    teacher: BiEncoder | None,
    batch: Batch,
    weights: Weights,
    optimizer: torch.optim.Optimizer,
    clip_norm: float,
) -> LossParts:
    """One optimiser step: the only place in the project where gradients are made."""
    parts = step_losses(student, teacher, batch, weights)
    optimizer.zero_grad(set_to_none=True)
    parts.total.backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), clip_norm)
    optimizer.step()
    return parts.detach()


def step_losses(student: BiEncoder, teacher: BiEncoder | None, batch: Batch, weights: Weights) -> LossParts:
    """The losses of a batch; without a teacher, or with nothing masked, the terms that need one are 0."""
    query, entity = student.encode_queries(batch.queries), student.encode_entities(batch.entities)
    scores = query.vectors @ entity.vectors.T
    inverse_temperature = student.log_inverse_temperature.exp()
    task = task_loss(scores, batch.positive, batch.negative, inverse_temperature, weights.margin)
    zero = task.new_zeros(())
    if teacher is None:
        return distillation_loss(task, zero, zero, alpha=0.0, beta=0.0)
    with torch.no_grad():  # the teacher is in eval mode: no dropout, no graph, once a batch
        taught_query, taught_entity = (
            teacher.encode_queries(batch.queries),
            teacher.encode_entities(batch.entities),
        )
    score = score_loss(scores, taught_query.vectors @ taught_entity.vectors.T, weights.score_scale)
    beta = weights.beta if batch.queries.masked.any() or batch.entities.masked.any() else 0.0
    if not beta:
        return distillation_loss(task, score, zero, weights.alpha, 0.0)
    feature = feature_loss(
        torch.cat([query.masked_features, entity.masked_features]),
        torch.cat([taught_query.masked_features, taught_entity.masked_features]),
    )
    return distillation_loss(task, score, feature, weights.alpha, beta)


@dataclass
class StageTrainer:
    """One stage in training: owns the model, the optimiser, and the counters that a checkpoint holds."""

    stage: str
    student: BiEncoder
    teacher: BiEncoder | None
    texts: TrainingTexts
    known: KnownAnswers
    batching: Batching
    schedule: Schedule
    weights: Weights
    checkpoint: Path
    checkpoint_seconds: float
    events: Events
    out_of_time: Callable[[], bool]

    def train(self) -> StageState:
        """Train to the end, from the checkpoint if there is one; the student ends with its best weights.

        The best epoch is the one with the highest filtered validation MRR (the last one where the graph has no
        validation triples). Raises TimeLimitReached when the time is up, TrainingError on a loss that is not
        finite.
        """
        self._optimizer = torch.optim.AdamW(
            self.student.parameters(),
            lr=self.schedule.lr,
            weight_decay=self.schedule.weight_decay,
            fused=True,
        )
        self._state, self._best = StageState(self.stage), None
        if self.checkpoint.is_file():
            self._state, self._best = load_checkpoint(self.checkpoint, self.stage, self.student, self._optimizer)
        self._saved_at = self._resumed_at = time.monotonic()
        self._seconds_before = self._state.seconds
        per_epoch = len(epoch_rows(self.texts.known, self.batching, np.random.default_rng(0)))
        if self.teacher is not None:
            self.teacher.eval().requires_grad_(False)
        for epoch in range(len(self._state.history), self.schedule.epochs):
            self._train_epoch(epoch, per_epoch)
            self._finish_epoch(epoch)
        if self._best is not None:
            self.student.load_state_dict(self._best)
        return self._state

    def _train_epoch(self, epoch: int, per_epoch: int) -> None:
        self.student.train()
        schedule, state = self.schedule, self._state
        batches = epoch_batches(
            self.texts,
            self.batching,
            schedule.mask_rate,
            schedule.seed,
            epoch,
            skip=state.step - epoch * per_epoch,
            shared_rows=self.student.shares_rows,
        )
        for batch in batches:
            self._set_learning_rate(
                learning_rate(state.step, schedule.epochs * per_epoch, schedule.warmup_steps, schedule.lr)
            )
            with torch.random.fork_rng(devices=_cuda_devices(self.student.device)):
                torch.manual_seed(
                    _step_seed(schedule.seed, state.step)
                )  # dropout; the step alone decides its masks
                parts = train_step(
                    self.student,
                    self.teacher,
                    batch.to(self.student.device),
                    self.weights,
                    self._optimizer,
                    schedule.clip_norm,
                )
            state.step += 1
            state.triples += batch.num_triples
            self._report(epoch, parts, schedule.epochs * per_epoch)
            self._save_if_due()

    def _finish_epoch(self, epoch: int) -> None:
        """Validate, and keep the weights if they are the best so far."""
        state = self._state
        metrics, _ = evaluate_model(self.student, self.texts, "valid", self.known)
        mrr = metrics["mrr"] if metrics else float(epoch)
        if mrr > state.best_mrr:
            state.best_mrr, state.best_epoch = mrr, epoch + 1
            self._best = {name: tensor.detach().cpu().clone() for name, tensor in self.student.state_dict().items()}
        self._count_time()
        record = {
            "epoch": epoch + 1,
            "step": state.step,
            "valid_mrr": metrics and metrics["mrr"],
            "seconds": state.seconds,
        }
        state.history.append(record)
        self.events.epoch(self.stage, record)

    def _report(self, epoch: int, parts: LossParts, total_steps: int) -> None:
        self._count_time()
        if not torch.isfinite(parts.total):
            raise TrainingError(
                f"{self.stage}: the loss of step {self._state.step} is not finite; lower lr, "
                f"which is {self.schedule.lr:g}"
            )
        self.events.step(self.stage, epoch + 1, self._state, total_steps, parts)

    def _save_if_due(self) -> None:
        """Checkpoint at the interval and at the time limit; never changes what is computed."""
        stop = self.out_of_time()
        if stop or time.monotonic() - self._saved_at >= self.checkpoint_seconds:
            self._count_time()
            save_checkpoint(self.checkpoint, self.student, self._optimizer, self._best, self._state)
            self._saved_at = time.monotonic()
        if stop:
            raise TimeLimitReached(self.stage)

    def _count_time(self) -> None:
        self._state.seconds = self._seconds_before + time.monotonic() - self._resumed_at

    def _set_learning_rate(self, lr: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = lr


def _step_seed(seed: tuple[int, ...], step: int) -> int:
    return int(np.random.SeedSequence([*seed, step]).generate_state(1, np.uint64)[0] >> 1)


def _cuda_devices(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []
