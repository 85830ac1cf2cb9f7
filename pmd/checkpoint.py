"""One file that holds all a stage needs to go on: weights, optimiser, best weights so far, and counters.

One file, because it is replaced in one rename: a kill at any moment leaves the previous checkpoint or the new
one, never a mixture.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pmd.errors import RunError
from pmd.tensorfile import check_seal, load_tensors, save_tensors

SCHEMA = "pmd-checkpoint/2"
Sections: TypeAlias = dict[str, dict[str, Tensor]]


@dataclass
class StageState:
    """Counters of a stage in training."""

    stage: str
    step: int = 0
    """Optimiser steps made."""
    best_mrr: float = -1.0
    """Best filtered validation MRR, -1 before the first validation."""
    best_epoch: int = 0
    best_valid: dict[str, Any] | None = None
    """All validation metrics of the best epoch."""
    seconds: float = 0.0
    """Wall time spent in steps and validations, over all sittings."""
    triples: int = 0
    """Directed triples trained on."""
    score_sum: float = 0.0
    """Sum of the score losses of this epoch's steps."""
    skipped_steps: int = 0
    """Steps without effect so far, because a loss or a gradient was not finite; they count in `step` as well."""
    skipped_in_a_row: int = 0
    """How many of them are the last ones."""
    chunk_tokens: int | None = None
    """Tokens that go through a tower with gradients at once, as memory allowed so far."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One record an epoch."""


def save_checkpoint(path: Path, sections: Mapping[str, Mapping[str, Tensor]], state: StageState) -> None:
    """Write the tensors of every section and the counters, whole or not at all.

    Raises RunError if the run's folder is gone, StorageError if the file cannot be written.
    """
    if not path.parent.is_dir():
        raise RunError(f"{path.parent} was removed while it was in use; train again with another --out")
    tensors = {f"{section}.{name}": tensor for section, named in sections.items() for name, tensor in named.items()}
    save_tensors(path, tensors, {"schema": SCHEMA, "state": json.dumps(asdict(state))})


def checkpoint_stage(path: Path) -> str | None:
    """The stage that a checkpoint is of; None for a file that is absent or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return str(json.loads((file.metadata() or {})["state"])["stage"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return None


def load_checkpoint(path: Path, stage: str) -> tuple[Sections, StageState]:
    """A checkpoint's tensors by section, and its counters.

    Raises RunError if the file is damaged or belongs to another stage.
    """
    sections: Sections = {}
    try:
        tensors, metadata = load_tensors(path)
        check_seal(tensors, metadata, needed=True)
        for name, tensor in tensors.items():
            section, _, rest = name.partition(".")
            sections.setdefault(section, {})[rest] = tensor
        if metadata.get("schema") != SCHEMA:
            raise RunError(f"{path} has schema {metadata.get('schema')!r}; this version reads {SCHEMA!r}")
        state = StageState(**json.loads(metadata["state"]))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(path, error) from error
    if state.stage != stage:
        raise RunError(f"checkpoint {path} belongs to stage {state.stage}, expected {stage}; remove it")
    return sections, state


def damaged(path: Path, error: Exception) -> RunError:
    """The error for a checkpoint that cannot be used."""
    reason = " ".join(str(error).split())[:200]
    return RunError(f"checkpoint {path} is damaged ({reason}); remove it to train the stage again")


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state as named tensors."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, values in state.items() for name, value in values.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put such tensors back. Raises ValueError or KeyError if they are another optimiser's."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
