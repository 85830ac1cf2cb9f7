"""Memory that ran out: told by what each library raises, and turned into one line.

Python and numpy raise MemoryError. torch and onnxruntime raise RuntimeErrors and exceptions of their own, which
only their words tell apart. What the system's out-of-memory killer ends says nothing, and cannot be caught.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from pmd.serving.errors import PmdError

SIGNS = (
    *("allocate memory", "out of memory", "bad allocation", "bad_alloc", "Unable to allocate"),
    "error return without exception set",  # of torch's tracing, where CPython could not make a frame
    *("could not create a primitive", "could not create a memory", "could not execute a primitive"),
)
"""Of C's strerror, torch on a CPU and on CUDA, onnxruntime, C++ and numpy; the last three are oneDNN's."""
AMOUNT = re.compile(r"(?:allocate|of size:?) ([\d.]+)(?: ([KMGTPE]i?B|bytes))?")
ADVICE = "free memory, or ask for less at once"


class OutOfMemory(PmdError, MemoryError):
    """Memory ran out. Nothing that was there before is changed; a Scorer goes on answering."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error of any library says that memory ran out."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return not isinstance(error, PmdError | OSError) and any(sign in str(error) for sign in SIGNS)


def out_of_memory(error: BaseException, advice: str = ADVICE) -> OutOfMemory:
    """The one line for such an error: how much was asked for, where the library tells, and what to do."""
    found = AMOUNT.search(str(error))
    amount = f"; {found[1]} {found[2] or 'bytes'} more were asked for" if found else ""
    return OutOfMemory(f"out of memory{amount}; {advice}")


@contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Turn what is raised inside when memory runs out into OutOfMemory with this advice."""
    try:
        yield
    except Exception as error:  # each library has its own
        if isinstance(error, OutOfMemory) or not ran_out_of_memory(error):
            raise
        raise out_of_memory(error, advice) from error
