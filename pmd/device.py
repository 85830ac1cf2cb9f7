"""Which device to train on, in which precision, and what its memory needs."""

from __future__ import annotations

import ctypes
import os
import sys

import torch

from pmd.errors import RunError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
HIGHEST_MMAP_THRESHOLD = 32 * 2**20  # bytes; what glibc takes at most on 64 bits


def choose_device(wanted: str) -> torch.device:
    """`auto` takes CUDA where it is; of several processes on a machine each takes the device of its own number.

    Raises RunError if `cuda` is asked for and absent, or there are more processes than devices.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise RunError("no CUDA device here; use --device cpu or auto")
    if not available or wanted == "cpu":
        return torch.device("cpu")
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return torch.device("cuda")
    own, devices = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if own >= devices:
        raise RunError(
            f"process {own + 1} of this machine has no CUDA device, there are {devices}; "
            f"start {devices} processes a machine, or use --device cpu"
        )
    return torch.device("cuda", own)


def uses_bf16(wanted: str, device: torch.device) -> bool:
    """Whether to compute matrix products in bfloat16: where asked for; under `auto` where hardware does it."""
    if wanted != "auto":
        return wanted == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed blocks for the next step rather than return them to the system each time.

    Blocks over 32 MiB still go back, so that the heap does not fall to pieces. Returns whether it took: False where
    the C library is another one.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, HIGHEST_MMAP_THRESHOLD)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
