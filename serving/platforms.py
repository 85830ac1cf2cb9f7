"""Which processors the runtime answers on: of 64 bits, the least significant byte first. Others are refused."""

from __future__ import annotations

import sys

from pmd.serving.errors import PlatformError

MOST_INDEX_64 = 2**63 - 1
"""`sys.maxsize` of a 64-bit Python."""


def check_platform() -> None:
    """Raise PlatformError on a big-endian or 32-bit Python.

    Tables are mapped into memory as they lie in the file, least significant byte first, and may be larger than
    32 bits can address; onnxruntime has no wheels for either.
    """
    if sys.byteorder != "little":
        raise PlatformError(
            f"this processor keeps numbers {sys.byteorder}-endian; bundles hold little-endian tables, mapped "
            "into memory as they are: use a little-endian machine (x86-64 or aarch64)"
        )
    if sys.maxsize < MOST_INDEX_64:
        bits = sys.maxsize.bit_length() + 1
        raise PlatformError(f"this Python is of {bits} bits; bundles are mapped into memory whole: use one of 64")
