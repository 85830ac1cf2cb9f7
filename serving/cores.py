"""How many threads this process may really use: the smaller of its CPU affinity and its container's quota.

A container limited to two cores still sees every core of its host; a runtime that starts one thread for each is
then stopped by the scheduler for most of every period, and a query takes many times as long.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

CGROUP_ROOT, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def default_threads() -> int:
    """Threads to use when the user names no number; at least 1."""
    cgroups = _text(OWN_CGROUP) or ""
    return usable_threads(affinity(), cpu_quota(CGROUP_ROOT, cgroups))


def usable_threads(cores: int, quota: float | None) -> int:
    """The smaller of the cores the process may run on and the quota in cores, whole, at least 1."""
    if quota is None:
        return max(1, cores)
    return max(1, min(cores, int(quota)))  # rounded down: a thread above the quota only gets the others stopped


def affinity() -> int:
    """Cores the process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS and Windows have no affinity call


def cpu_quota(root: Path, cgroups: str) -> float | None:
    """The tightest CPU quota in cores over a process's control group and those above it; None without one.

    root: where control groups are mounted, version 2 (`cpu.max`) or 1 (`cpu/cpu.cfs_*_us`). cgroups: the text of
    /proc/self/cgroup. Inside a container its group is mounted as the root and the outer path is not there;
    groups that are not there are passed over.
    """
    found = [quota for folder in _folders(root, cgroups) if (quota := _quota_of(folder)) is not None]
    return min(found, default=None)


def _folders(root: Path, cgroups: str) -> Iterator[Path]:
    for line in cgroups.splitlines():
        hierarchy, controllers, path = (*line.split(":", 2), "", "")[:3]
        mounts = [root] if hierarchy == "0" else [root / controllers, root / "cpu"]
        if hierarchy != "0" and "cpu" not in controllers.split(","):
            continue
        inner = PurePosixPath(path.lstrip("/"))
        for mount in mounts:
            yield from (mount / above for above in (inner, *inner.parents) if ".." not in above.parts)


def _quota_of(folder: Path) -> float | None:
    both = _text(folder / "cpu.max")
    parts = both.split() if both else [_text(folder / f"cpu.cfs_{part}_us") or "" for part in ("quota", "period")]
    try:
        quota, period = (int(part) for part in parts)
    except ValueError:  # "max", or the files are not there
        return None
    return quota / period if quota > 0 and period > 0 else None  # version 1 says -1 for no quota


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None
