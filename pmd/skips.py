"""Steps left out because a loss or a gradient was not finite: counted, and the end after three in a row.

Everything is counted where the model is. A GPU is asked for the counts only when something is reported anyway, so
the run may learn of its end some steps late; from that end on nothing changes any more, so it is the same end.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pmd.losses import LossParts

IN_A_ROW = 3
"""So many steps without effect end a run: the next ones would see the same weights."""
NEVER = -1


class Counts(NamedTuple):
    """What was left out so far. ended_at: the step that was the third in a row, from 0; NEVER without one."""

    total: int = 0
    in_a_row: int = 0
    ended_at: int = NEVER


class Skips:
    """Counts the steps of a stage that have no effect."""

    def __init__(self, device: torch.device | str = "cpu", before: Counts | None = None) -> None:
        """device: where the model is. before: the counts of a checkpoint."""
        self._counts = torch.tensor(before or Counts(), dtype=torch.int64, device=device)
        self._numbers = torch.zeros(len(LossParts._fields) + 1, device=device)
        self.latest = torch.zeros((), dtype=torch.bool, device=device)
        """Whether the step counted last had no effect. Bool scalar."""

    def has_no_effect(self, bad: Tensor) -> Tensor:
        """Whether a step is to be left out, bool scalar: it is bad, or the run ended before it."""
        return bad | (self._counts[2] != NEVER)

    def count(self, bad: Tensor, step: int, parts: LossParts, norm: Tensor) -> None:
        """Take a step into account: whether it was bad, its number from 0, its losses and its gradient's length."""
        total, in_a_row, ended_at = self._counts.unbind()
        self.latest = self.has_no_effect(bad)
        going = ended_at == NEVER
        row = torch.where(going, torch.where(bad, in_a_row + 1, 0), in_a_row)
        ends = going & (row >= IN_A_ROW)
        numbers = torch.stack([*parts, norm.to(parts.total.device)]).float()
        self._numbers = torch.where(ends, numbers, self._numbers)
        self._counts = torch.stack([total + (bad & going), row, torch.where(ends, step, ended_at)])

    def read(self) -> Counts:
        """The counts; waits for a GPU."""
        return Counts(*self._counts.tolist())

    def numbers(self) -> dict[str, float | None]:
        """The losses and the gradient's length of the step that ended the run; None for what is not finite."""
        names = (*LossParts._fields, "gradient_length")
        values = self._numbers.tolist()
        return {name: value if math.isfinite(value) else None for name, value in zip(names, values, strict=True)}
