"""Which device to train on, in which precision, and what its memory needs."""

from __future__ import annotations

import ctypes
import sys

import torch

from pmd.errors import RunError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h


def choose_device(wanted: str) -> torch.device:
    """`auto` takes CUDA where it is; raises RunError if `cuda` is asked for and absent."""
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise RunError("no CUDA device here; use --device cpu or auto")
    return torch.device("cuda" if available and wanted != "cpu" else "cpu")


def uses_bf16(wanted: str, device: torch.device) -> bool:
    """Whether to compute matrix products in bfloat16: where asked for; under `auto` where hardware does it."""
    if wanted != "auto":
        return wanted == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed for the next step rather than return it to the system each time.

    Returns whether it took: False where the C library is another one.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
