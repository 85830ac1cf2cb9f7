"""Which device to train on."""

from __future__ import annotations

import torch

from pmd.errors import RunError


def choose_device(wanted: str) -> torch.device:
    """`auto` takes CUDA where it is; raises RunError if `cuda` is asked for and absent."""
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise RunError("no CUDA device here; use --device cpu or auto")
    return torch.device("cuda" if available and wanted != "cpu" else "cpu")
