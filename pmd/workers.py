"""Several processes, on as many GPUs or on the CPU, that train one model together.

Every process draws the same batch from the same seed, sends its own share of the texts through the towers, and
fills in the rest of the vectors from the others. Labels are aligned because there is one batch; negatives from
other processes carry gradients because each process takes the loss over all vectors and keeps the gradient at
its own. So the loss and the gradient are those of one process (tested with two).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, reduce
from torch import Tensor, nn


@dataclass(frozen=True)
class Workers:
    """Process `part` of `parts`."""

    part: int = 0
    parts: int = 1

    @classmethod
    def started(cls, *, cpu: bool) -> Workers:
        """The processes that `accelerate launch` or `torchrun` started, or this one alone."""
        state = PartialState(cpu=cpu)
        return cls(state.process_index, state.num_processes)

    @property
    def leads(self) -> bool:
        """Whether this process writes the files and talks."""
        return self.part == 0

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        return reduce(tensor, "sum") if self.parts > 1 else tensor

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradients of these parameters by their sums over all processes."""
        if self.parts == 1:
            return
        for parameter in parameters:
            gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            parameter.grad = reduce(gradient, "sum")

    def agreed(self, value: Any) -> Any:
        """The leading process's value of something that processes might see differently, such as the time."""
        return broadcast_object_list([value])[0] if self.parts > 1 else value

    def wait(self) -> None:
        """Until all processes are here."""
        if self.parts > 1:
            PartialState().wait_for_everyone()
