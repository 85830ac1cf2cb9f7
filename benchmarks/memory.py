"""The most memory this process ever held in RAM, and what of it is its own now."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_rss_bytes(status: Path = Path("/proc/self/status")) -> int | None:
    """Peak resident set of this process in bytes; None where the system does not tell.

    On Linux from VmHWM and not from getrusage: exec keeps the high-water mark of the memory it replaces,
    which just after a fork is the parent's, so `ru_maxrss` in the child of a big program starts out big.
    """
    peak = _high_water_mark(status)
    if peak is not None:
        return peak
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB, macOS in bytes


def private_dirty_bytes(rollup: Path = Path("/proc/self/smaps_rollup")) -> int | None:
    """Pages that this process alone has and has written, now, in bytes: what it takes that no other can share.

    The vectors and graphs of a bundle that are mapped from its files are not among them. None where the system does
    not tell, as all but Linux.
    """
    return _kib(rollup, "Private_Dirty:")


def _high_water_mark(status: Path) -> int | None:
    """VmHWM of a /proc/PID/status file in bytes; None where the file or the line is absent."""
    return _kib(status, "VmHWM:")


def _kib(file: Path, name: str) -> int | None:
    """A line of a /proc file that counts in KiB, in bytes; None where the file or the line is absent."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), None)
