"""The three losses and their sum. Pure functions of tensors: no configuration, no state."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class LossParts(NamedTuple):
    """Scalars of one step; `total` is what is minimised."""

    total: Tensor
    task: Tensor
    score: Tensor
    feature: Tensor

    def detach(self) -> LossParts:
        """The same without the graph."""
        return LossParts(*(part.detach() for part in self))


def task_loss(
    scores: Tensor, positive: Tensor, negative: Tensor, inverse_temperature: Tensor, margin: float
) -> Tensor:
    """InfoNCE with additive margin over queries with several answers, mean over the answers. Scalar >= 0.

    scores: (Q, C) cosines. positive: (Q, C) bool, the answers. negative: (Q, C) bool; a candidate that is
    neither (a known answer that is no positive here) takes no part. Each answer competes with the negatives
    only, never with the query's other answers:

        -log( exp((s+ - margin) / T) / ( exp((s+ - margin) / T) + sum over negatives of exp(s- / T) ) )

    SimKGC (arXiv 2203.02167), with one term per answer.
    """
    logits = scores * inverse_temperature
    rivals = logits.masked_fill(~negative, float("-inf")).logsumexp(dim=1, keepdim=True)
    own = logits - margin * inverse_temperature
    per_answer = torch.nn.functional.softplus((rivals - own).masked_fill(~positive, float("-inf")))
    return per_answer.sum() / positive.sum()


def score_loss(student: Tensor, teacher: Tensor, scale: float) -> Tensor:
    """Mean squared gap between two score matrices, (Q, C) cosines, both times `scale`. Scalar >= 0.

    PMD (arXiv 2401.12997); neither the margin nor a learned temperature enters, so that the two sides measure the
    same thing (docs/decisions/score-term.md).
    """
    return ((student - teacher) * scale).square().mean()


def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared gap between hidden states at masked positions, (M, D); exactly 0 when nothing is masked.

    The masked generation features of PMD (arXiv 2401.12997), before pooling.
    """
    if not len(student):
        return student.sum()  # a zero that still has a gradient path
    return (student - teacher).square().mean()


def distillation_loss(task: Tensor, score: Tensor, feature: Tensor, alpha: float, beta: float) -> LossParts:
    """L = (1 - alpha - beta) * task + alpha * score + beta * feature (arXiv 2401.12997)."""
    return LossParts((1 - alpha - beta) * task + alpha * score + beta * feature, task, score, feature)
