"""Which device and precision, and what happens to freed memory."""

import subprocess
import sys

import pytest
import torch

from pmd.device import choose_device, uses_bf16
from pmd.errors import RunError


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_cuda():
    assert choose_device("auto").type == choose_device("cpu").type == "cpu"
    with pytest.raises(RunError, match="no CUDA device here"):
        choose_device("cuda")


@pytest.mark.parametrize(("wanted", "bf16"), [("fp32", False), ("bf16", True)])
def test_precision_as_asked(wanted, bf16):
    assert uses_bf16(wanted, torch.device("cpu")) is bf16


@pytest.mark.parametrize(("flags", "bf16"), [((False, False), False), ((True, False), True), ((False, True), True)])
def test_auto_takes_what_the_processor_computes_in(monkeypatch, flags, bf16):
    for name, value in zip(("_is_avx512_bf16_supported", "_is_amx_tile_supported"), flags, strict=True):
        monkeypatch.setattr(torch.cpu, name, lambda value=value: value)
    assert uses_bf16("auto", torch.device("cpu")) is bf16


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is asked")
def test_freed_memory_is_kept_for_the_next_step():
    """In a process of its own, since it is for the whole process and cannot be taken back."""
    code = """
import sys, numpy as np
from pathlib import Path
sys.modules["torch"] = type(sys)("torch")  # nothing of it is needed here
sys.modules["torch"].device = object
from pmd.device import keep_freed_memory
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
kept = keep_freed_memory()
blocks = [np.ones(2**20) for _ in range(20)]  # 8 MiB each
full = resident()
del blocks
print(kept, resident() > full - 2**24)
"""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert child.stdout.split() in (["True", "True"], ["False", "False"]), child.stderr
