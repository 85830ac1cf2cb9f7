"""Memory that ran out is one line, whatever library says so."""

import errno

import numpy as np
import pytest

from pmd.serving.errors import BundleError, PmdError
from pmd.serving.exhausted import OutOfMemory, memory_advice, out_of_memory, ran_out_of_memory

SAID = {
    "torch": "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000 bytes. Error",
    "cuda": "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 80 GiB",
    "onnxruntime": "bfc_arena.cc:376 Failed to allocate memory for requested buffer of size 123456",
    "c++": "std::bad_alloc",
    "onednn": "could not create a primitive",
}
AMOUNTS = {"torch": "4000 bytes", "cuda": "2.00 GiB", "onnxruntime": "123456 bytes"}


@pytest.mark.parametrize("library", SAID)
def test_what_libraries_say_becomes_one_line(library):
    with pytest.raises(OutOfMemory) as raised, memory_advice("ask for less"):
        raise RuntimeError(SAID[library])
    amount = f"; {AMOUNTS[library]} more were asked for" if library in AMOUNTS else ""
    assert str(raised.value) == f"out of memory{amount}; ask for less"
    assert raised.value.exit_code == 2
    assert isinstance(raised.value, MemoryError | PmdError)


def test_numpy_tells_how_much():
    with pytest.raises(MemoryError) as raised:
        np.empty(2**60, np.uint8)
    assert "1.00 EiB" in str(out_of_memory(raised.value))


def test_other_errors_are_left_as_they_are():
    for error in (RuntimeError("shapes do not match"), BundleError("x: Cannot allocate memory"), KeyError("x")):
        assert not ran_out_of_memory(error)
        with pytest.raises(type(error)), memory_advice("ask for less"):
            raise error
    assert ran_out_of_memory(OSError(errno.ENOMEM, "Cannot allocate memory"))
