"""Several processes, on as many GPUs or on the CPU, that train one model together.

Every process draws the same batch from the same seed, sends its own share of the texts through the towers, and
fills in the rest of the vectors from the others. Labels are aligned because there is one batch; negatives from
other processes carry gradients because each process takes the loss over all vectors and keeps the gradient at
its own. So the loss and the gradient are those of one process (tested with two).

What processes tell each other beside tensors goes as JSON over CPU connections: a GPU need not wait for it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.distributed import all_gather, all_reduce

from pmd.serving.errors import PmdError

Result = TypeVar("Result")
PATIENCE = timedelta(minutes=30)  # a process that takes longer than this to do its part is taken for lost
BUCKET_NUMBERS = 2**22  # gradients summed at once: 16 MiB


class WorkerError(PmdError):
    """Something that befell one process alone, such as the loss of another one."""

    exit_code = 1


@dataclass(frozen=True)
class Workers:
    """Process `part` of `parts`."""

    part: int = 0
    parts: int = 1

    @classmethod
    @contextmanager
    def started(cls, device: str = "auto") -> Iterator[Workers]:
        """The processes that torchrun or `accelerate launch` started, or this one alone.

        device: `auto`, `cpu` or `cuda`, where they are to train. Leaves when all have got to the end, so that the
        launcher ends none while another still writes. Raises WorkerError if the processes do not find each other.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            yield cls()  # nothing is set up: no process group, no environment variable, no global state
            return
        ours = not torch.distributed.is_initialized()
        state = _met(cpu=device == "cpu" or not torch.cuda.is_available())
        workers = cls(state.process_index, state.num_processes)
        yield workers
        workers.wait()
        if ours:
            state.destroy_process_group()
            PartialState._reset_state()

    @property
    def leads(self) -> bool:
        """Whether this process writes the files and talks."""
        return self.part == 0

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes, the same bits in each. The tensor itself is overwritten.

        Raises WorkerError if another process is gone.
        """
        if self.parts > 1:
            self._with_others(lambda: all_reduce(tensor))
        return tensor

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradients of these parameters by their sums over all processes.

        A process without rows has none, which counts as 0; where no process has one, none is made, since the
        optimiser treats a parameter without a gradient otherwise than one whose gradient is 0.
        """
        if self.parts == 1:
            return
        named = list(parameters)
        holders = self.total(torch.tensor([p.grad is not None for p in named], dtype=torch.int32))
        for bucket in _buckets([p for p, count in zip(named, holders.tolist(), strict=True) if count]):
            gradients = [_gradient(parameter).flatten() for parameter in bucket]
            sums = self.total(torch.cat(gradients) if len(gradients) > 1 else gradients[0])
            for parameter, piece in zip(bucket, sums.split([p.numel() for p in bucket]), strict=True):
                parameter.grad = piece.view_as(parameter)

    def told(self, value: Any) -> list[Any]:
        """What each process says, by process: a value that JSON can hold. Raises WorkerError as `total` does."""
        if self.parts == 1:
            return [value]
        said = json.dumps(value).encode()
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.parts)]
        self._with_others(lambda: all_gather(lengths, torch.tensor([len(said)])))
        longest = max(int(length) for length in lengths)
        padded = torch.frombuffer(bytearray(said.ljust(longest)), dtype=torch.uint8)
        texts = [torch.zeros_like(padded) for _ in range(self.parts)]
        self._with_others(lambda: all_gather(texts, padded))
        return [json.loads(text.numpy().tobytes()) for text in texts]

    def agreed(self, value: Any) -> Any:
        """The leading process's value of something that processes might see differently, such as the time."""
        return self.told(value)[0]

    def wait(self) -> None:
        """Until all processes are here."""
        self.told(None)

    @contextmanager
    def together(self) -> Iterator[None]:
        """A piece of work that all processes get through, or none: one's mistake is raised in all of them.

        A mistake is a PmdError or an OSError. Nothing inside may wait for the other processes.
        """
        mistake: PmdError | OSError | None = None
        try:
            yield
        except (PmdError, OSError) as error:
            mistake = error
        said = self.told(_facts(mistake))
        if mistake is not None and self.leads:
            raise mistake
        for part, facts in enumerate(said):
            if facts is not None:
                raise _mistake(part, **facts) from mistake

    def _with_others(self, exchange: Callable[[], Result]) -> Result:
        try:
            return exchange()
        except RuntimeError as error:  # what torch raises when a connection ends
            raise WorkerError(
                f"process {self.part} lost another one ({_reason(error)}); see what that one said, then --resume"
            ) from error


def _met(*, cpu: bool) -> PartialState:
    """Meet the other processes: gloo for what is on the CPU, NCCL for what is on GPUs."""
    backend = {} if cpu else {"backend": "cpu:gloo,cuda:nccl"}
    try:
        return PartialState(cpu=cpu, timeout=PATIENCE, **backend)
    except (RuntimeError, ValueError) as error:
        raise WorkerError(
            f"the processes did not find each other ({_reason(error)}); start them with torchrun"
        ) from error


def _reason(error: Exception) -> str:
    """The first sentence of torch's message, without the place in its source that it begins with."""
    first = next(iter(str(error).splitlines()), "")
    return re.sub(r"^\[\S*\] ", "", first).split(". ")[0]


def _buckets(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters in their order, cut so that each part but a single large one holds at most BUCKET_NUMBERS."""
    bucket: list[nn.Parameter] = []
    numbers = 0
    for parameter in parameters:
        if bucket and numbers + parameter.numel() > BUCKET_NUMBERS:
            yield bucket
            bucket, numbers = [], 0
        bucket.append(parameter)
        numbers += parameter.numel()
    if bucket:
        yield bucket


def _gradient(parameter: nn.Parameter) -> Tensor:
    return parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)


def _facts(mistake: PmdError | OSError | None) -> dict[str, Any] | None:
    if mistake is None:
        return None
    if isinstance(mistake, PmdError):
        return {"message": str(mistake), "exit_code": mistake.exit_code}
    where = f": {mistake.filename}" if mistake.filename else ""
    return {"message": f"{mistake.strerror or mistake}{where}", "exit_code": PmdError.exit_code}


def _mistake(part: int, message: str, exit_code: int) -> PmdError:
    error = PmdError(message if part == 0 else f"process {part}: {message}")
    error.exit_code = exit_code
    return error
