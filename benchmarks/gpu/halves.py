"""Weights in half precision for the journey, in single precision for work."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from pmd.benchmarks.gpu.errors import PartsError

WEIGHTS = "model.safetensors"
SEAL = "sha256"  # the metadata key of pmd.tensorfile; what it covers is changed here


def halve(source: Path, target: Path) -> None:
    """Copy the files of a folder, its weights as float16.

    Raises PartsError if the weights cannot be read, or a number is too large for float16.
    """
    _copy(source, target, np.dtype(np.float16))


def restore(source: Path, target: Path) -> None:
    """Copy the files of a folder, its weights as float32."""
    _copy(source, target, np.dtype(np.float32))


def _copy(source: Path, target: Path, kind: np.dtype[Any]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.name == WEIGHTS:
            _convert(path, target / path.name, kind)
        elif path.is_file():
            shutil.copyfile(path, target / path.name)


def _convert(source: Path, target: Path, kind: np.dtype[Any]) -> None:
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import save_file

    try:
        with safe_open(source, framework="np") as file:
            metadata = {key: value for key, value in (file.metadata() or {}).items() if key != SEAL}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, TypeError) as error:
        raise PartsError(f"{source} cannot be read as safetensors of numpy's types: {error}") from error
    for name, tensor in tensors.items():
        if np.issubdtype(tensor.dtype, np.floating):
            with np.errstate(over="ignore"):  # told in the next line
                tensors[name] = tensor.astype(kind)
            if not np.isfinite(tensors[name]).all():
                raise PartsError(f"{source}: tensor {name} holds a number that {kind} does not")
    save_file(tensors, target, metadata=metadata)
