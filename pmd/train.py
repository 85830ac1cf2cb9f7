"""Train one stage: the loop, the learning rate, the best checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pmd.batches import Batch, Batching, Masking, TrainingTexts, epoch_batches, steps_per_epoch
from pmd.checkpoint import (
    StageState,
    damaged,
    load_checkpoint,
    load_optimizer,
    optimizer_tensors,
    save_checkpoint,
)
from pmd.errors import TrainingError
from pmd.evaluation import evaluate_model
from pmd.events import Events
from pmd.learner import Compute, Learner, Objective, Schedule, new_learner
from pmd.losses import LossParts
from pmd.masking import epoch_mask_rate, token_weights
from pmd.memory import EntityMemory
from pmd.model import BiEncoder, encode_table, unique_state
from pmd.prefetch import ahead
from pmd.serving.known import KnownAnswers
from pmd.step import train_step
from pmd.teacher import Teacher
from pmd.workers import WorkerError, Workers


class TimeLimitReached(Exception):
    """The time limit came; the checkpoint is written."""


def learning_rate(step: int, total: int, warmup: int, peak: float) -> float:
    """Linear warm-up to `peak`, then linear decay to 0 at `total` (SimKGC, arXiv 2203.02167)."""
    warmup = min(warmup, total // 2)  # a short run still gets to its peak
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return peak * (total - step) / max(1, total - warmup)


@dataclass
class StageTrainer:
    """Trains `student` in place, and leaves it with the weights of its best epoch.

    Validation after every epoch decides which weights are kept; a graph without validation triples keeps the last.
    Two runs with the same settings on the same processor give the same bytes, resumed or not.
    """

    stage: str
    student: BiEncoder
    teacher: Teacher | None
    objective: Objective
    texts: TrainingTexts
    known: KnownAnswers
    """Known answers of all splits, for filtered validation."""
    batching: Batching
    schedule: Schedule
    checkpoint: Path
    checkpoint_seconds: float
    events: Events
    out_of_time: Callable[[], bool]
    earlier_batches: int | Literal["all"] = 0
    compute: Compute = field(default_factory=Compute)
    workers: Workers = field(default_factory=Workers)

    def train(self) -> StageState:
        """Run or resume the stage. Raises TimeLimitReached, or TrainingError if the loss is not finite."""
        self._learner = self._make_learner()
        self._best: dict[str, Tensor] | None = None
        self._state = StageState(self.stage, chunk_tokens=self.compute.chunk_tokens)
        self._per_epoch = steps_per_epoch(self.texts.known, self.batching)
        if self.checkpoint.exists():
            with self.workers.together():
                self._restore()
        elif self.earlier_batches == "all":
            self._fill_memory(encode_table(self.student, "entity", self.texts.entities))
        self._saved_at = self._resumed_at = time.monotonic()
        self._seconds_before = self._state.seconds
        weights = self._prepare_teacher()
        for epoch in range(len(self._state.history), self.schedule.epochs):
            self._train_epoch(epoch, Masking(self._mask_rate(epoch), weights))
            self._finish_epoch(epoch)
        if self._best is not None:
            self.student.load_state_dict(self._best, strict=False)
        return self._state

    def _make_learner(self) -> Learner:
        memory = None
        if self.earlier_batches:
            memory = EntityMemory.empty(
                self.texts.graph.num_entities,
                self.student,
                self.earlier_batches,
                self_negatives=self.batching.self_negatives,
            )
        return new_learner(
            self.student, self.teacher, self.objective, self.schedule, self.compute, memory, self.workers
        )

    def _prepare_teacher(self) -> dict[str, Any] | None:
        """What can be known of the teacher before the first step. Returns the mask weights of every token."""
        tables = {"query": self.texts.queries, "entity": self.texts.entities}
        if self.teacher is None:
            return None
        if self.schedule.mask_rate == 0.0:
            self.teacher.remember(tables)
            return None
        return token_weights(self.schedule.mask_positions, self.teacher.model, tables)

    def _mask_rate(self, epoch: int) -> float:
        schedule = self.schedule
        gaps = [record["score"] for record in self._state.history]
        return epoch_mask_rate(schedule.mask_schedule, schedule.mask_rate, epoch, schedule.epochs, gaps)

    def _train_epoch(self, epoch: int, masking: Masking) -> None:
        self.student.train()
        schedule, state = self.schedule, self._state
        batches = epoch_batches(
            self.texts,
            self.batching,
            masking,
            schedule.seed,
            epoch,
            skip=state.step - epoch * self._per_epoch,
            shared_rows=self.student.shares_rows and (self.teacher is None or self.teacher.model.shares_rows),
        )
        score_sum = torch.tensor(state.score_sum, dtype=torch.float64, device=self.student.device)
        for batch in ahead(batches) if self.student.device.type == "cuda" else batches:
            parts = self._train_batch(batch)
            score_sum += parts.score
            state.step += 1
            state.triples += batch.num_triples
            self._report(epoch, parts)
            self._save_if_due(score_sum)
        state.score_sum = float(score_sum)

    def _train_batch(self, batch: Batch) -> LossParts:
        schedule, state, learner = self.schedule, self._state, self._learner
        total = schedule.epochs * self._per_epoch
        lr = learning_rate(state.step, total, schedule.warmup_steps, schedule.lr)
        for group in learner.optimizer.param_groups:
            group["lr"] = lr
        while True:
            try:  # the seed of dropout: the step alone decides it, as it decides the masks
                return train_step(learner, batch, state.step, (*schedule.seed, state.step), state.chunk_tokens)
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
                if self.workers.parts > 1:  # the others are in the middle of their step
                    raise WorkerError(
                        f"process {self.workers.part} is out of memory; lower chunk_tokens, which is "
                        f"{state.chunk_tokens}, or batch_size"
                    ) from error
                state.chunk_tokens = _smaller_chunk(batch, state.chunk_tokens)
            self.events.say(f"{self.stage}: out of memory; going on with {state.chunk_tokens} tokens at a time")
            torch.cuda.empty_cache()

    def _finish_epoch(self, epoch: int) -> None:
        """Validate, and keep the weights if they are the best so far."""
        state = self._state
        entities = None
        if len(self.texts.graph.valid) or self.earlier_batches == "all":
            entities = encode_table(self.student, "entity", self.texts.entities)
        if self.earlier_batches == "all" and entities is not None:
            self._fill_memory(entities)
        metrics, _ = evaluate_model(self.student, self.texts, "valid", self.known, entities=entities)
        metrics = self.workers.agreed(metrics)
        mrr = metrics["mrr"] if metrics else float(epoch)
        if mrr > state.best_mrr:
            state.best_mrr, state.best_epoch, state.best_valid = mrr, epoch + 1, metrics
            self._best = {name: tensor.cpu().clone() for name, tensor in unique_state(self.student).items()}
        self._count_time()
        record = {
            "epoch": epoch + 1,
            "step": state.step,
            "mask_rate": self._mask_rate(epoch),
            "valid_mrr": metrics and metrics["mrr"],
            "seconds": state.seconds,
            "score": state.score_sum / self._per_epoch,
        }
        state.score_sum = 0.0
        state.history.append(record)
        self.events.epoch(self.stage, record)

    def _fill_memory(self, entities: Tensor) -> None:
        if self._learner.memory is not None:
            self._learner.memory.fill(entities, self._state.step)

    def _report(self, epoch: int, parts: LossParts) -> None:
        self._count_time()
        due = self.events.step_is_due(last=self._state.step == self.schedule.epochs * self._per_epoch)
        due = self.workers.agreed(due)  # or one process would stop at a loss that the others have not read
        if due or self.student.device.type == "cpu":  # reading a number makes the CPU wait for a GPU
            self._check_finite(parts)
        if due:
            lr = self._learner.optimizer.param_groups[0]["lr"]
            total = self.schedule.epochs * self._per_epoch
            self.events.step(self.stage, epoch + 1, self._state, total, parts, lr)
        self._parts = parts

    def _check_finite(self, parts: LossParts) -> None:
        if not torch.isfinite(parts.total):
            raise TrainingError(
                f"{self.stage}: the loss of step {self._state.step} is not finite; lower lr, "
                f"which is {self.schedule.lr:g}"
            )

    def _save_if_due(self, score_sum: Tensor) -> None:
        """Checkpoint at the interval and at the time limit; never changes what is computed."""
        due = time.monotonic() - self._saved_at >= self.checkpoint_seconds
        stop, due = self.workers.agreed((self.out_of_time(), due))
        if stop or due:
            self._check_finite(self._parts)
            self._state.score_sum = float(score_sum)
            self._count_time()
            if self.workers.leads:
                save_checkpoint(self.checkpoint, self._sections(), self._state)
            self._saved_at = time.monotonic()
        if stop:
            self.workers.wait()
            raise TimeLimitReached(self.stage)

    def _sections(self) -> dict[str, dict[str, Tensor]]:
        learner = self._learner
        sections = {
            "model": unique_state(self.student),
            "optimizer": optimizer_tensors(learner.optimizer),
            "best": self._best or {},
        }
        if learner.projection is not None:
            sections["projection"] = dict(learner.projection.state_dict())
        if learner.memory is not None:
            sections["memory"] = learner.memory.state()
        return sections

    def _restore(self) -> None:
        """Go on from the checkpoint. Raises RunError if it is damaged or another stage's."""
        sections, self._state = load_checkpoint(self.checkpoint, self.stage)
        learner = self._learner
        try:
            if set(sections["model"]) != set(unique_state(self.student)):
                raise KeyError("other tensors than this model's")
            self.student.load_state_dict(sections["model"], strict=False)
            load_optimizer(learner.optimizer, sections["optimizer"])
            if learner.projection is not None:
                learner.projection.load_state_dict(sections["projection"])
            if learner.memory is not None:
                learner.memory.load(sections["memory"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise damaged(self.checkpoint, error) from error
        self._best = sections.get("best")

    def _count_time(self) -> None:
        self._state.seconds = self._seconds_before + time.monotonic() - self._resumed_at


LEAST_CHUNK = 256  # tokens; a batch that does not fit in such chunks does not fit


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def _smaller_chunk(batch: Batch, chunk_tokens: int | None) -> int:
    """Half of what was tried. Raises TrainingError where that is less than a chunk can be."""
    tried = chunk_tokens or max(batch.queries.text.numel(), batch.entities.text.numel())
    if tried <= LEAST_CHUNK:
        raise TrainingError(f"out of memory even with {tried} tokens at a time; lower batch_size")
    return max(LEAST_CHUNK, tried // 2)
