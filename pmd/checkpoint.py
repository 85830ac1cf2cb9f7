"""One file that holds all a stage needs to go on: weights, optimiser, best weights so far, and counters.

One file, because it is replaced in one rename: a kill at any moment leaves the previous checkpoint or the new
one, never a mixture.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pmd.errors import RunError
from pmd.model import BiEncoder
from pmd.serving.storage import atomic_file

SCHEMA = "pmd-checkpoint/1"


@dataclass
class StageState:
    """Counters of a stage in training."""

    stage: str
    step: int = 0
    """Optimiser steps made."""
    best_mrr: float = -1.0
    """Best filtered validation MRR, -1 before the first validation."""
    best_epoch: int = 0
    seconds: float = 0.0
    """Wall time spent in steps and validations, over all sittings."""
    triples: int = 0
    """Directed triples trained on."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One record an epoch."""


def save_checkpoint(
    path: Path,
    model: BiEncoder,
    optimizer: torch.optim.Optimizer,
    best: dict[str, Tensor] | None,
    state: StageState,
) -> None:
    """Write the checkpoint, whole or not at all."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in (best or {}).items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial:
        save_file(tensors, partial, metadata={"schema": SCHEMA, "state": json.dumps(asdict(state))})


def load_checkpoint(
    path: Path, stage: str, model: BiEncoder, optimizer: torch.optim.Optimizer
) -> tuple[StageState, dict[str, Tensor] | None]:
    """Put a checkpoint back into `model` and `optimizer`; returns the counters and the best weights so far.

    Raises RunError if the file is damaged or belongs to another stage.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if metadata.get("schema") != SCHEMA:
            raise RunError(f"{path} has schema {metadata.get('schema')!r}; this version reads {SCHEMA!r}")
        state = StageState(**json.loads(metadata["state"]))
        model.load_state_dict(_below(tensors, "model."))
        optimizer.load_state_dict(_optimizer_state(_below(tensors, "optimizer."), optimizer))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise RunError(f"checkpoint {path} is damaged ({error}); remove it to train the stage again") from error
    if state.stage != stage:
        raise RunError(f"checkpoint {path} belongs to stage {state.stage}, expected {stage}; remove it")
    return state, _below(tensors, "best.") or None


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _optimizer_state(tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    return {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
