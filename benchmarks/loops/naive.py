"""The loop to compare with: one padded row per directed triple, each text read as often as it occurs.

This is how SimKGC trains (arXiv 2203.02167): a random batch of triples, for each its query, its tail and, against
self-negatives, its head; each side padded to its longest text; the other tails of the batch as negatives, without
known answers; plain backpropagation. A teacher reads every batch. Encoder, attention, precision, optimiser, losses
and masks are those of the project's own loop, and texts are tokenised beforehand in both. SimKGC also adds the loss
from tails to queries, which takes no time to speak of; it is left out, so that the losses compare.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from pmd.batches import TrainingTexts
from pmd.learner import Objective, Precision
from pmd.masking import mask_tokens
from pmd.model import BiEncoder
from pmd.serving.known import IntArray
from pmd.serving.tokenization import TokenTable


class Padded(NamedTuple):
    """N texts padded to the longest. ids, types, attention: int64 (N, L); masked: bool (N, L)."""

    ids: Tensor
    types: Tensor
    attention: Tensor
    masked: Tensor


class PaddedBatch(NamedTuple):
    """B triples. negative: bool (B, B), who is no known answer; own: bool (B,), whose head may be a negative."""

    queries: Padded
    tails: Padded
    heads: Padded | None
    negative: Tensor
    own: Tensor

    @property
    def sides(self) -> list[Padded]:
        """Everything that is read."""
        return [self.queries, self.tails, *([self.heads] if self.heads else [])]


def naive_batches(
    texts: TrainingTexts, batch_size: int, mask_rate: float, rng: np.random.Generator, *, self_negatives: bool
) -> Iterator[PaddedBatch]:
    """One epoch: every directed training triple once, in random order."""
    known = texts.known
    query = np.repeat(np.arange(len(known.keys)), np.diff(known.offsets))
    order = rng.permutation(len(query))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield padded_batch(texts, query[rows], known.answers[rows], mask_rate, rng, self_negatives=self_negatives)


def padded_batch(
    texts: TrainingTexts,
    queries: IntArray,
    tails: IntArray,
    mask_rate: float,
    rng: np.random.Generator,
    *,
    self_negatives: bool,
) -> PaddedBatch:
    """The batch of some triples: queries (B,), places in the table of queries, and their tails (B,)."""
    heads, relations = texts.known.queries()[queries].T

    def padded(table: TokenTable, taken: IntArray) -> Padded:
        masked_table, masked = mask_tokens(table.take(taken), mask_rate, texts.tokenizer, rng)
        return _pad(masked_table, masked, texts.tokenizer.pad_id)

    answers = texts.known.pairs(heads, relations)
    place = np.full((len(heads), texts.graph.num_entities), False)
    place[answers] = True
    negative, own = ~place[:, tails], ~place[np.arange(len(heads)), heads]
    return PaddedBatch(
        queries=padded(texts.queries, queries),
        tails=padded(texts.entities, tails),
        heads=padded(texts.entities, heads) if self_negatives else None,
        negative=torch.from_numpy(negative),
        own=torch.from_numpy(own),
    )


def _pad(table: TokenTable, masked: IntArray, pad_id: int) -> Padded:
    inputs = {name: torch.from_numpy(values) for name, values in table.padded(pad_id).items()}
    flags = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    flags[inputs["attention_mask"].bool()] = torch.from_numpy(masked)
    return Padded(inputs["input_ids"], inputs["token_type_ids"], inputs["attention_mask"], flags)


@dataclass
class NaiveLearner:
    """Who learns from whom, by what."""

    student: BiEncoder
    teacher: BiEncoder | None
    optimizer: torch.optim.Optimizer
    objective: Objective
    clip_norm: float
    precision: Precision

    def step(self, batch: PaddedBatch) -> Tensor:
        """One optimiser step; returns the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.clip_norm)
        self.optimizer.step()
        return loss.detach()

    def loss(self, batch: PaddedBatch) -> Tensor:
        """The total loss of a batch, with its graph."""
        own = self._read(self.student, batch)
        scores = own[0][0] @ own[1][0].T
        task = self._task(scores, [vectors for vectors, _ in own], batch)
        if self.teacher is None:
            return task
        with torch.no_grad():
            taught = self._read(self.teacher, batch)
        score = (self.objective.score_scale * (scores - taught[0][0] @ taught[1][0].T)).square().mean()
        alpha, beta = self.objective.alpha, self.objective.beta if any(len(states) for _, states in own) else 0.0
        if not beta:
            return (1 - alpha) * task + alpha * score
        gaps = [(mine - theirs).square().flatten() for (_, mine), (_, theirs) in zip(own, taught, strict=True)]
        return (1 - alpha - beta) * task + alpha * score + beta * torch.cat(gaps).mean()

    def _read(self, model: BiEncoder, batch: PaddedBatch) -> list[tuple[Tensor, Tensor]]:
        """Vectors and masked states of queries, tails and heads."""
        towers = (model.query, model.entity, model.entity)
        with self.precision():
            said = [encode(tower, texts) for tower, texts in zip(towers, batch.sides, strict=False)]
        return [(vectors.float(), states.float()) for vectors, states in said]

    def _task(self, scores: Tensor, vectors: list[Tensor], batch: PaddedBatch) -> Tensor:
        """InfoNCE with margin over the batch's tails and each query's own head. scores: (B, B) cosines."""
        warmth = self.student.log_inverse_temperature.exp()  # before -inf comes in: 0 * inf has no gradient
        right = torch.eye(len(scores), dtype=torch.bool)
        logits = (scores - self.objective.margin * right) * warmth
        logits = logits.masked_fill(~(batch.negative | right), float("-inf"))
        if batch.heads is not None:
            own_head = (vectors[0] * vectors[2]).sum(dim=1, keepdim=True) * warmth
            logits = torch.cat([logits, own_head.masked_fill(~batch.own[:, None], float("-inf"))], dim=1)
        return cross_entropy(logits, torch.arange(len(scores)))


def encode(tower: nn.Module, texts: Padded) -> tuple[Tensor, Tensor]:
    """Mean-pooled unit vectors (N, D) and the hidden states at masked positions (M, D) of a padded batch."""
    said = tower(input_ids=texts.ids, token_type_ids=texts.types, attention_mask=texts.attention)
    hidden = said.last_hidden_state
    weights = texts.attention[:, :, None].to(hidden.dtype)
    mean = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
    return normalize(mean, dim=1), hidden[texts.masked]
