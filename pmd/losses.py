"""The losses and their sum. Pure functions of tensors: no configuration, no state."""

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


def score_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared gap between two score matrices, (Q, C). Scalar >= 0. PMD (arXiv 2401.12997)."""
    return (student - teacher).square().mean()


def margin_logits(scores: Tensor, positive: Tensor, inverse_temperature: Tensor, margin: float) -> Tensor:
    """Cosines as the task loss sees them, (Q, C): the margin off the answers, times the inverse temperature."""
    return (scores - margin * positive.to(scores.dtype)) * inverse_temperature


def squared_gaps(student: Tensor, teacher: Tensor) -> Tensor:
    """Sum of the squared gaps between two sets of states of one shape. Scalar >= 0, with a gradient path always.

    A sum and not a mean, so that a batch that is encoded in sheets adds up to the same loss.
    """
    return (student - teacher).square().sum()


def pooled_by_text(masked: Tensor, text: Tensor, num_texts: int) -> Tensor:
    """Masked features summed over each text and scaled to unit length, (M, D) -> (N, D); zeros where none is.

    The form of the paper's released code; a text's squared gap is then between 0 and 4.
    """
    sums = masked.new_zeros(num_texts, masked.shape[-1]).index_add(0, text, masked)
    return sums * torch.rsqrt(sums.square().sum(dim=-1, keepdim=True).clamp_min(1e-12))


def distillation_loss(task: Tensor, score: Tensor, feature: Tensor, alpha: float, beta: float) -> LossParts:
    """L = (1 - alpha - beta) * task + alpha * score + beta * feature (arXiv 2401.12997)."""
    return LossParts((1 - alpha - beta) * task + alpha * score + beta * feature, task, score, feature)
