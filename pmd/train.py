"""Train one stage: the loop, the learning rate, the best checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pmd.badbatch import FOLDER, save_bad_batch
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
from pmd.serving.errors import PmdError
from pmd.serving.exhausted import ran_out_of_memory
from pmd.serving.known import KnownAnswers
from pmd.serving.ranking import RankingError
from pmd.skips import IN_A_ROW, NEVER, Counts, Skips
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
        """Run or resume the stage.

        Raises TimeLimitReached, or TrainingError if losses or gradients go on not being finite.
        """
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
        self._check_weights()
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
        state = self._state
        self._masking = masking
        batches = self._batches(epoch, state.step - epoch * self._per_epoch)
        score_sum = torch.tensor(state.score_sum, dtype=torch.float64, device=self.student.device)
        for batch in ahead(batches) if self.student.device.type == "cuda" else batches:
            parts = self._train_batch(batch)
            score_sum += torch.where(self._learner.skips.latest, 0.0, parts.score)
            state.step += 1
            state.triples += batch.num_triples
            self._report(epoch, parts)
            self._save_if_due(score_sum)
        state.score_sum = float(score_sum)

    def _batches(self, epoch: int, skip: int) -> Iterator[Batch]:
        return epoch_batches(
            self.texts,
            self.batching,
            self._masking,
            self.schedule.seed,
            epoch,
            skip=skip,
            shared_rows=self.student.shares_rows and (self.teacher is None or self.teacher.model.shares_rows),
        )

    def _train_batch(self, batch: Batch) -> LossParts:
        schedule, state, learner = self.schedule, self._state, self._learner
        lr = self._rate(state.step)
        for group in learner.optimizer.param_groups:
            group["lr"] = lr
        while True:
            try:  # the seed of dropout: the step alone decides it, as it decides the masks
                return train_step(learner, batch, state.step, (*schedule.seed, state.step), state.chunk_tokens)
            except (RuntimeError, MemoryError) as error:
                if not ran_out_of_memory(error):
                    raise
                if self.workers.parts > 1:  # the others are in the middle of their step
                    raise WorkerError(
                        f"process {self.workers.part} is out of memory; lower chunk_tokens, which is "
                        f"{state.chunk_tokens}, or batch_size"
                    ) from error
                state.chunk_tokens = _smaller_chunk(batch, state.chunk_tokens)
            drop_half_made(learner.optimizer)
            self.events.smaller_chunks(self.stage, state)
            torch.cuda.empty_cache()

    def _rate(self, step: int) -> float:
        schedule = self.schedule
        return learning_rate(step, schedule.epochs * self._per_epoch, schedule.warmup_steps, schedule.lr)

    def _finish_epoch(self, epoch: int) -> None:
        """Validate, and keep the weights if they are the best so far."""
        self._heed_skips()
        state = self._state
        entities = None
        if len(self.texts.graph.valid) or self.earlier_batches == "all":
            entities = encode_table(self.student, "entity", self.texts.entities)
        if self.earlier_batches == "all" and entities is not None:
            self._fill_memory(entities)
        try:
            metrics, _ = evaluate_model(self.student, self.texts, "valid", self.known, entities=entities)
        except RankingError as error:
            raise self._diverged(f"the scores after epoch {epoch + 1} are not finite") from error
        metrics = self.workers.agreed(metrics)
        mrr = metrics["mrr"] if metrics else float(epoch)
        if mrr > state.best_mrr:
            state.best_mrr, state.best_epoch, state.best_valid = mrr, epoch + 1, metrics
            self._best = {name: tensor.cpu().clone() for name, tensor in unique_state(self.student).items()}
        self._count_time()
        skipped = state.skipped_steps - sum(before["skipped_steps"] for before in state.history)
        record = {
            "epoch": epoch + 1,
            "step": state.step,
            "mask_rate": self._mask_rate(epoch),
            "valid_mrr": metrics and metrics["mrr"],
            "seconds": state.seconds,
            "score": state.score_sum / max(1, self._per_epoch - skipped),
            "skipped_steps": skipped,
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
            self._heed_skips()
        if due:
            lr = self._learner.optimizer.param_groups[0]["lr"]
            total = self.schedule.epochs * self._per_epoch
            self.events.step(self.stage, epoch + 1, self._state, total, parts, lr)

    def _heed_skips(self) -> None:
        """Count the steps that were left out. Raises TrainingError after IN_A_ROW of them in a row."""
        state, counts = self._state, self._learner.skips.read()
        more = counts.total > state.skipped_steps
        state.skipped_steps, state.skipped_in_a_row = counts.total, counts.in_a_row
        if more:
            self.events.skipped(self.stage, state)
        if counts.ended_at != NEVER:
            raise self._diverged(
                f"the loss or the gradient of {IN_A_ROW} steps in a row is not finite, "
                f"the last is step {counts.ended_at + 1}; {self._save_bad_batch(counts)}"
            )

    def _save_bad_batch(self, counts: Counts) -> str:
        """Write the batch that ended the run beside the checkpoint; returns what to say of it."""
        folder = self.checkpoint.with_name(FOLDER)
        if not self.workers.leads:
            return f"its batch is in {folder}"
        step = counts.ended_at
        epoch = step // self._per_epoch
        facts = {
            "stage": self.stage,
            "epoch": epoch + 1,
            "step": step + 1,
            "steps": self.schedule.epochs * self._per_epoch,
            "seed": list(self.schedule.seed),
            "lr": self._rate(step),
            "mask_rate": self._masking.rate,
            "skipped_steps": counts.total,
            "in_a_row": counts.in_a_row,
            **self._learner.skips.numbers(),
        }
        try:
            batch = next(self._batches(epoch, step - epoch * self._per_epoch))
            save_bad_batch(folder, batch, self.texts, self.student, facts)
        except (PmdError, OSError) as error:  # a full disk must not hide why the run ended
            return f"its batch could not be saved ({error})"
        return f"its batch is in {folder}"

    def _diverged(self, what: str) -> TrainingError:
        return TrainingError(f"{self.stage}: {what}; lower lr, which is {self.schedule.lr:g}, in a run of its own")

    def _check_weights(self) -> None:
        """Raise TrainingError if a weight is not finite: the last steps may have made it so."""
        for name, tensor in unique_state(self.student).items():
            if not torch.isfinite(tensor).all():
                raise self._diverged(f"tensor {name} holds NaN or infinity at the end")

    def _save_if_due(self, score_sum: Tensor) -> None:
        """Checkpoint at the interval and at the time limit; never changes what is computed."""
        due = time.monotonic() - self._saved_at >= self.checkpoint_seconds
        stop, due = self.workers.agreed((self.out_of_time(), due))
        if stop or due:
            self._heed_skips()
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
        learner.skips = Skips(learner.device, Counts(self._state.skipped_steps, self._state.skipped_in_a_row))

    def _count_time(self) -> None:
        self._state.seconds = self._seconds_before + time.monotonic() - self._resumed_at


LEAST_CHUNK = 256  # tokens; a batch that does not fit in such chunks does not fit


def drop_half_made(optimizer: torch.optim.Optimizer) -> None:
    """Forget what an AdamW began to keep of a parameter when memory ran out; it would not begin again."""
    for parameter, kept in list(optimizer.state.items()):
        if not {"step", "exp_avg", "exp_avg_sq"} <= kept.keys():
            del optimizer.state[parameter]


def _smaller_chunk(batch: Batch, chunk_tokens: int | None) -> int:
    """Half of what was tried. Raises TrainingError where that is less than a chunk can be."""
    tried = chunk_tokens or max(batch.queries.text.numel(), batch.entities.text.numel())
    if tried <= LEAST_CHUNK:
        raise TrainingError(
            f"out of memory even with {tried} tokens at a time; free memory and go on with --resume, "
            "or lower batch_size in a run of its own"
        )
    return max(LEAST_CHUNK, tried // 2)
