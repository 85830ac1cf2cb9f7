"""The loops that are compared, each as batches and a step, whatever a batch is to it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch.nn.functional import normalize

from pmd.batches import Batch, Batching, Masking, epoch_batches
from pmd.benchmarks.loops.naive import NaiveLearner, PaddedBatch, naive_batches
from pmd.benchmarks.loops.setting import Case, Setting
from pmd.benchmarks.loops.wanted import GRAPH, NAIVE, RANDOM
from pmd.learner import Learner
from pmd.memory import EntityMemory
from pmd.serving.known import IntArray
from pmd.serving.tokenization import TokenTable
from pmd.step import train_step
from pmd.teacher import Teacher


class StepSize(NamedTuple):
    """What a step works on. tokens: real ones that the student reads; laid_out: with padding."""

    triples: int
    queries: int
    tokens: int
    laid_out: int
    taught_tokens: int
    """Real tokens that the teacher reads in the step."""


class Loop(Protocol):
    """A training loop. A batch is its own affair."""

    remembered: dict[str, Any] | None
    """What the teacher read before the first step: tokens, seconds, and tokens of all texts."""

    def batches(self) -> Iterator[Any]:
        """Batches without end, epoch after epoch; the same ones at every call."""

    def train(self, batch: Any) -> None:
        """One optimiser step."""

    def size(self, batch: Any) -> StepSize:
        """What the step works on."""


def make_loop(name: str, setting: Setting, case: Case, steps: int) -> Loop:
    """The loop of a name in wanted.LOOPS, ready for its first `steps` batches."""
    if name == NAIVE:
        return NaiveLoop(setting, case)
    return OurLoop(setting, case, {GRAPH: "graph", RANDOM: "random"}[name], steps)


class OurLoop:
    """The project's own step on its own batches."""

    def __init__(self, setting: Setting, case: Case, order: str, steps: int) -> None:
        recipe, texts = setting.recipe, setting.texts
        self.setting, self.case, self.done = setting, case, 0
        self.batching = Batching(setting.queries_per_step, "batch", recipe.self_negatives, None, order)
        student = setting.student(case)
        self.shared_rows = student.shares_rows
        self.remembered: dict[str, Any] | None = None
        self.learner = Learner(
            student=student,
            optimizer=setting.optimizer(student),
            objective=case.objective,
            clip_norm=recipe.clip_norm,
            teacher=self._teacher(steps),
            precision=setting.precision,
        )
        if recipe.earlier_batches:
            self.learner.memory = EntityMemory.empty(
                texts.graph.num_entities,
                student,
                recipe.earlier_batches,
                self_negatives=recipe.self_negatives,
            )
            shape = self.learner.memory.vectors.shape
            noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
            self.learner.memory.fill(normalize(noise, dim=1), 0)  # as full as it is in training

    def _teacher(self, steps: int) -> Teacher | None:
        """The teacher; where nothing is masked it has read the texts of the first `steps` batches beforehand."""
        model = self.setting.teacher(self.case)
        if model is None:
            return None
        teacher = Teacher(model)
        if self.case.mask_rate == 0.0:
            taken = list(islice(self.batches(), steps))
            texts = self.setting.texts
            tables = {
                "query": only(texts.queries, np.concatenate([batch.query_ids for batch in taken])),
                "entity": only(texts.entities, np.concatenate([batch.entity_ids for batch in taken])),
            }
            begin = time.perf_counter()
            if teacher.remember(tables):
                self.remembered = {
                    "seconds": time.perf_counter() - begin,
                    "tokens": sum(len(table.ids) for table in tables.values()),
                    "all_tokens": len(texts.queries.ids) + len(texts.entities.ids),
                }
        return teacher

    def batches(self) -> Iterator[Batch]:
        """Batches as the trainer draws them."""
        seed, masking = (self.setting.recipe.seed, self.case.stage.number), Masking(self.case.mask_rate)
        for epoch in count():
            yield from epoch_batches(
                self.setting.texts, self.batching, masking, seed, epoch, skip=0, shared_rows=self.shared_rows
            )

    def train(self, batch: Batch) -> None:
        """One step of the trainer."""
        if self.learner.memory is not None:
            self.learner.memory.steadiness = torch.ones(())  # as in the later, steady part of a training
        train_step(self.learner, batch, self.done, (0, self.done), self.setting.recipe.chunk_tokens)
        self.done += 1

    def size(self, batch: Batch) -> StepSize:
        """Sheets as the step reads them."""
        chunk = self.setting.recipe.chunk_tokens
        sheets = [*batch.queries.sheets(chunk), *batch.entities.sheets(chunk)]
        tokens = sum(int((sheet.text >= 0).sum()) for sheet in sheets)
        reads = self.case.taught and self.remembered is None
        return StepSize(
            triples=batch.num_triples,
            queries=len(batch.query_ids),
            tokens=tokens,
            laid_out=sum(sheet.text.numel() for sheet in sheets),
            taught_tokens=tokens if reads else 0,
        )


@dataclass
class NaiveLoop:
    """The padded, undeduplicated loop."""

    setting: Setting
    case: Case
    remembered: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """Build the learner."""
        self.learner = naive_learner(self.setting, self.case)

    def batches(self) -> Iterator[PaddedBatch]:
        """Random batches of triples."""
        wanted = self.setting.wanted
        for epoch in count():
            rng = np.random.default_rng([wanted.seed, self.case.stage.number, epoch])
            yield from naive_batches(
                self.setting.texts,
                wanted.batch_size,
                self.case.mask_rate,
                rng,
                self_negatives=self.setting.recipe.self_negatives,
            )

    def train(self, batch: PaddedBatch) -> None:
        """One step of plain torch."""
        self.learner.step(batch)

    def size(self, batch: PaddedBatch) -> StepSize:
        """Every row counts, as often as it is there."""
        tokens = sum(int(side.attention.sum()) for side in batch.sides)
        return StepSize(
            triples=len(batch.own),
            queries=len(batch.own),
            tokens=tokens,
            laid_out=sum(side.ids.numel() for side in batch.sides),
            taught_tokens=tokens if self.case.taught else 0,
        )


def naive_learner(setting: Setting, case: Case) -> NaiveLearner:
    """The padded loop's learner for a case."""
    student = setting.student(case)
    return NaiveLearner(
        student=student,
        teacher=setting.teacher(case),
        optimizer=setting.optimizer(student),
        objective=case.objective,
        clip_norm=setting.recipe.clip_norm,
        precision=setting.precision,
    )


def only(table: TokenTable, texts: IntArray) -> TokenTable:
    """The table with all other texts empty, so that a part of it can be read at the cost of that part."""
    lengths = np.zeros(len(table), dtype=np.int64)
    lengths[texts] = table.lengths[texts]
    kept = table.places(np.unique(texts))
    return TokenTable(table.ids[kept], table.types[kept], np.concatenate([[0], np.cumsum(lengths)]))
