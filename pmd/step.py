"""One optimiser step: texts to vectors, vectors to losses, and the gradients back.

The losses need all vectors of a batch at once; the towers do not. So the graph is cut at the vectors: the loss
gives a gradient at each vector, and each sheet of texts takes its own back through its tower. With one sheet
this is plain backpropagation. With several sheets and `chunk_tokens`, only one sheet's activations live at a
time and each sheet is read twice (gradient caching, arXiv 2101.06983); on a CPU only those sheets are that do
not fit into a fixed room; with several processes, each takes its own sheets. The gradient is the same in all
cases (tested).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig

from pmd.batches import Batch
from pmd.learner import Learner
from pmd.losses import (
    LossParts,
    distillation_loss,
    margin_logits,
    pooled_by_text,
    score_loss,
    squared_gaps,
    task_loss,
)
from pmd.model import TowerOutput, run_tower
from pmd.packing import PackedTexts
from pmd.serving.known import IntArray

CPU_SHEET_TOKENS = 4096  # a CPU's caches hold their activations: 11 % faster than a batch of 11,000 tokens whole
CPU_ACTIVATION_BYTES = 2_200_000_000
"""What a CPU keeps of a batch between reading it and going back; sheets beyond it are read twice."""


def train_step(
    learner: Learner, batch: Batch, step: int, seed: tuple[int, ...], chunk_tokens: int | None
) -> LossParts:
    """One optimiser step: the only place in the project where weights change.

    A step whose loss or gradient is not finite changes neither weights nor optimiser; `learner.skips` counts it.
    """
    learner.optimizer.zero_grad(set_to_none=True)
    parts = step_gradients(learner, batch, step, seed, chunk_tokens)
    norm = torch.nn.utils.clip_grad_norm_(learner.parameters, learner.clip_norm)
    broken = ~(torch.isfinite(parts.total) & torch.isfinite(norm))
    bad = learner.workers.total(broken.float()) > 0  # all processes must make the step, or none
    _update(learner.optimizer, unless=learner.skips.has_no_effect(bad))
    learner.skips.count(bad, step, parts, norm)
    return parts


def _update(optimizer: torch.optim.Optimizer, *, unless: Tensor) -> None:
    """The optimiser's step. A fused one decides on its device, as with torch's GradScaler: nothing waits for it."""
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        if not unless:
            optimizer.step()
        return
    setattr(optimizer, "found_inf", unless.float())  # noqa: B010 (mypy: no attribute of the base class)
    try:
        optimizer.step()
    finally:
        delattr(optimizer, "found_inf")


def step_gradients(
    learner: Learner, batch: Batch, step: int, seed: tuple[int, ...], chunk_tokens: int | None
) -> LossParts:
    """The losses of a batch; their gradients are added to the parameters' own.

    Without a teacher, or with nothing to compare, the terms that need one are 0. chunk_tokens: tokens that may go
    through a tower with gradients at once; None for all.
    """
    objective = learner.objective
    query = _Side(learner, "query", batch.queries, batch.query_ids, seed, chunk_tokens)
    entity = _Side(learner, "entity", batch.entities, batch.entity_ids, seed, chunk_tokens)
    kept_query, kept_entity = _kept(learner, query, entity, chunk_tokens)
    query.read(kept_query)
    entity.read(kept_entity)
    alpha = objective.alpha if learner.teacher else 0.0
    terms = _feature_terms(learner, batch)
    beta = objective.beta if terms else 0.0
    task, score = _vector_losses(learner, batch, query, entity, step)
    ((1 - alpha - beta) * task + alpha * score).backward()  # stops at the vectors
    feature = (query.back(beta / max(terms, 1)) + entity.back(beta / max(terms, 1))) / max(terms, 1)
    towers = [p for p in learner.parameters if p is not learner.student.log_inverse_temperature]
    learner.workers.add_gradients(towers)  # the temperature's is whole in every process
    if learner.memory is not None:
        learner.memory.put(batch.entity_ids, entity.vectors, step)
    return distillation_loss(task, score, learner.workers.total(feature), alpha, beta).detach()


def _kept(learner: Learner, query: _Side, entity: _Side, chunk_tokens: int | None) -> tuple[int, int]:
    """How many sheets of each side, from the first on, keep their activations."""
    sheets = len(query.sheets), len(entity.sheets)
    if chunk_tokens is not None:
        return int(sheets[0] == 1), int(sheets[1] == 1)  # one sheet is read once in any case
    if learner.device.type != "cpu":
        return sheets
    room = CPU_ACTIVATION_BYTES // activation_bytes(learner.student.query.config)
    of_query, of_entity = ([sheet.text.numel() for sheet in side.sheets] for side in (query, entity))
    return sheets_kept(of_query, of_entity, room)


def sheets_kept(query: list[int], entity: list[int], room: int) -> tuple[int, int]:
    """How many sheets of each side, from the first on, keep their activations; the others are read a second time.

    query, entity: tokens of each sheet. room: tokens whose activations may be held at once. The query side goes
    back first, while what the entity side keeps is still held, so that leaves room for one sheet of queries. Which
    sheets are kept changes no bit of the gradients: each is read the same both times, and they are added in the
    same order.
    """
    if sum(query) + sum(entity) <= room:
        return len(query), len(entity)
    kept_entity = _first_within(entity, room - max(query, default=0))
    kept_query = _first_within(query, room - sum(entity[:kept_entity]))
    return kept_query, kept_entity


def _first_within(tokens: list[int], room: int) -> int:
    return int(np.searchsorted(np.cumsum(tokens), room, side="right"))


def activation_bytes(config: PretrainedConfig) -> int:
    """About what one token leaves in memory until its gradients are taken.

    Twelve states of the width and three of the feed-forward layer for each layer, in float32, and three rows of
    attention over a text of 50 tokens for each head: 264 kB for MiniLM's six layers, where 305 kB were measured.
    """
    inner = getattr(config, "intermediate_size", 4 * config.hidden_size)
    heads = getattr(config, "num_attention_heads", 1)
    return int(config.num_hidden_layers * 4 * (12 * config.hidden_size + 3 * inner + 150 * heads))


def _vector_losses(learner: Learner, batch: Batch, query: _Side, entity: _Side, step: int) -> tuple[Tensor, Tensor]:
    """Task and score loss of the vectors of a batch."""
    objective, device = learner.objective, learner.device
    inverse_temperature = learner.student.log_inverse_temperature.exp()
    positive, negative = batch.positive.to(device), batch.negative.to(device)
    scores = query.vectors @ entity.vectors.T
    compared, may_win, rivals = scores, positive, negative
    if learner.memory is not None and (old := learner.memory.rivals(batch, step)) is not None:
        compared = torch.cat([scores, query.vectors @ old[0].T], dim=1)
        rivals = torch.cat([negative, old[1]], dim=1)
        may_win = torch.cat([positive, torch.zeros_like(old[1])], dim=1)
    task = task_loss(compared, may_win, rivals, inverse_temperature, objective.margin)
    if learner.teacher is None:
        return task, task.new_zeros(())
    taught = query.taught @ entity.taught.T
    if objective.score_form == "logit":
        own = margin_logits(scores, positive, inverse_temperature, objective.margin)
        return task, score_loss(own, taught * learner.teacher.model.log_inverse_temperature.exp())
    return task, score_loss(scores * objective.score_scale, taught * objective.score_scale)


def _feature_terms(learner: Learner, batch: Batch) -> int:
    """How many squared gaps the feature term of a batch is the mean of; 0 where there is none.

    Gaps of unit-length states are summed over the width, so that a text's gap is between 0 and 4; those of hidden
    states, whose size does not depend on the width, are averaged over it too.
    """
    if learner.teacher is None:
        return 0
    feature = learner.objective.feature
    if feature == "positions":
        return batch.num_masked * learner.teacher.model.width
    if feature == "pooled":
        return sum(len(side.text[side.masked].unique()) for side in (batch.queries, batch.entities))
    if feature == "patient":
        return (batch.queries.num_texts + batch.entities.num_texts) * len(learner.objective.inner)
    return 0


class _Side:
    """One tower's part of a step: its texts' vectors, and the way back to its parameters."""

    def __init__(
        self,
        learner: Learner,
        name: str,
        texts: PackedTexts,
        ids: IntArray,
        seed: tuple[int, ...],
        chunk_tokens: int | None,
    ) -> None:
        self.learner, self.name, self.ids = learner, name, ids
        workers = learner.workers
        most = chunk_tokens or (CPU_SHEET_TOKENS if learner.device.type == "cpu" else None)
        self.sheets = [sheet.to(learner.device) for sheet in texts.sheets(most, workers.part, workers.parts)]
        self.seeds = [
            (*seed, ("query", "entity").index(name), workers.part + number * workers.parts)
            for number in range(len(self.sheets))
        ]
        self.num_texts = texts.num_texts
        self.said: list[TowerOutput | None] = []
        self.outputs: dict[int, TowerOutput] = {}

    def read(self, kept: int) -> None:
        """Encode all texts; the first `kept` sheets keep their activations, the way back reads the others again.

        vectors: (N, D), a leaf that gathers the loss's gradient. taught: (N, D').
        """
        learner, workers = self.learner, self.learner.workers
        vectors = torch.zeros(self.num_texts, learner.student.width, device=learner.device)
        width = learner.teacher.model.width if learner.teacher else 0
        taught = torch.zeros(self.num_texts, width, device=learner.device)
        for number, sheet in enumerate(self.sheets):
            said = self._teacher_says(sheet)
            with torch.set_grad_enabled(number < kept):
                output = self._student_says(number)
            vectors[sheet.texts] = output.vectors.detach().float()
            if said is not None:
                taught[sheet.texts] = said.vectors.float()
            self.said.append(said)
            if number < kept:
                self.outputs[number] = output
        self.vectors = workers.total(vectors).requires_grad_()
        self.taught = workers.total(taught)

    def back(self, weight: float) -> Tensor:
        """Take the gradients of the vectors, and `weight` times the squared gaps, to the parameters.

        Returns the sum of this process's squared gaps.
        """
        gradient = self.vectors.grad
        if gradient is None:
            gradient = torch.zeros_like(self.vectors)
        total = self.vectors.new_zeros(())
        for number, sheet in enumerate(self.sheets):
            output = self.outputs.pop(number) if number in self.outputs else self._student_says(number)
            gaps = self._gaps(output, self.said[number], sheet)
            ends, gradients = [output.vectors], [gradient[sheet.texts].to(output.vectors.dtype)]
            if weight and gaps.requires_grad:
                ends, gradients = [*ends, gaps], [*gradients, torch.full_like(gaps, weight)]
            torch.autograd.backward(ends, gradients)
            total += gaps.detach()
        return total

    def _student_says(self, number: int) -> TowerOutput:
        learner = self.learner
        with seeded(learner.device, self.seeds[number]), learner.precision():
            return run_tower(learner.student.tower(self.name), self.sheets[number], learner.objective.inner)

    def _teacher_says(self, sheet: PackedTexts) -> TowerOutput | None:
        if self.learner.teacher is None:
            return None
        with self.learner.precision():
            return self.learner.teacher.says(self.name, sheet, self.ids)

    def _gaps(self, output: TowerOutput, said: TowerOutput | None, sheet: PackedTexts) -> Tensor:
        """Sum of the squared gaps that the feature term of this sheet compares."""
        feature = self.learner.objective.feature
        if said is None or feature == "none" or (feature != "patient" and not len(said.masked)):
            return self.vectors.new_zeros(())
        if feature == "patient":
            return squared_gaps(self._widened(output.states), said.states.float())
        own, theirs = self._widened(output.masked), said.masked.float()
        if feature == "pooled":
            own = pooled_by_text(own, output.masked_text, sheet.num_texts)
            theirs = pooled_by_text(theirs, output.masked_text, sheet.num_texts)
        return squared_gaps(own, theirs)

    def _widened(self, states: Tensor) -> Tensor:
        projection = self.learner.projection
        return projection(states.float()) if projection is not None else states.float()


@contextmanager
def seeded(device: torch.device, seed: tuple[int, ...]) -> Iterator[None]:
    """Dropout drawn from `seed` alone, whatever ran before; the generators are put back after."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1))
        yield
