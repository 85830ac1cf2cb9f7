"""Which machine the numbers belong to: processor, memory, container limits and versions.

What the operating system does not tell is null, never a guess.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

from pmd.serving.cores import CGROUP_ROOT, OWN_CGROUP, affinity, cpu_quota

NOTABLE_FLAGS = (
    *("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("avx_vnni", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)
"""Instruction sets that decide how fast float32, float16 and int8 run; the rest only lengthens the report."""
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
UNLIMITED_BYTES = 1 << 60
"""cgroup v1 writes "no limit" as a number close to 2^63."""


def fingerprint(threads: int) -> dict[str, Any]:
    """The machine and its software, ready for JSON; `threads` is how many the measurements may use."""
    import psutil

    cpuinfo = _cpuinfo()
    return {
        "cpu": _cpu_name(cpuinfo),
        "flags": _flags(cpuinfo),
        "cores_used": threads,
        "cores_available": affinity(),
        "cores_physical": psutil.cpu_count(logical=False),
        **_frequency(),
        "ram_bytes": psutil.virtual_memory().total,
        "os": platform.platform(),
        "versions": _versions(),
        **_commit(),
        "container_limits": container_limits(),
        "load_average": _load_average(),
    }


def container_limits(mount: Path = CGROUP_ROOT, cgroups: Path = OWN_CGROUP) -> dict[str, float | int | None] | None:
    """CPU quota (`cpus`, in cores) and `memory_bytes` that the control groups allow; None where none is set.

    Reads both versions of cgroups. A limit counts wherever it stands from this process's group up to the top.
    """
    text = _read(cgroups)
    cpus = cpu_quota(mount, text)
    memory = min((limit for folder in _memory_groups(mount, text) for limit in _memory_limit(folder)), default=None)
    return None if cpus is None and memory is None else {"cpus": cpus, "memory_bytes": memory}


def _memory_groups(mount: Path, cgroups: str) -> Iterator[Path]:
    """Folders that may hold this process's memory limit: its own group and every group above it."""
    for line in cgroups.splitlines():
        hierarchy, controllers, path = (*line.split(":", 2), "", "")[:3]
        if hierarchy == "0" or "memory" in controllers.split(","):
            inner = PurePosixPath(path.lstrip("/"))
            top = mount if hierarchy == "0" else mount / controllers
            # In a container without its own namespace the path is the host's; the top still tells the limit.
            yield from (top / above for above in (inner, *inner.parents) if ".." not in above.parts)


def _memory_limit(folder: Path) -> list[int]:
    """The memory limit that one group sets, in bytes: no value or one."""
    text = (_read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")).strip()
    return [int(text)] if text.isdigit() and int(text) < UNLIMITED_BYTES else []


def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty where there is none."""
    lines = (line.partition(":") for line in _read(Path("/proc/cpuinfo")).splitlines())
    found: dict[str, str] = {}
    for key, _, value in lines:
        found.setdefault(key.strip().lower(), value.strip())
    return found


def _cpu_name(cpuinfo: dict[str, str]) -> str | None:
    for key in ("model name", "hardware", "model"):
        if cpuinfo.get(key):
            return cpuinfo[key]
    if platform.system() == "Darwin":
        asked = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        answer = subprocess.run(asked, capture_output=True, text=True, check=False)
        return answer.stdout.strip() or None
    return platform.processor() or platform.machine() or None


def _flags(cpuinfo: dict[str, str]) -> list[str] | None:
    present = cpuinfo.get("flags") or cpuinfo.get("features")
    return None if present is None else [flag for flag in NOTABLE_FLAGS if flag in present.split()]


def free_bytes() -> int:
    """Memory that could be taken without swapping, in bytes; no more than the container may have in all."""
    import psutil

    free = int(psutil.virtual_memory().available)
    limit = (container_limits() or {}).get("memory_bytes")
    return free if limit is None else min(free, int(limit))


def _frequency() -> dict[str, Any]:
    """`frequency_mhz` now, `frequency_max_mhz`, and `governor`, which says whether it may change."""
    import psutil

    try:
        frequency = psutil.cpu_freq()
    except (OSError, RuntimeError, NotImplementedError):  # virtual machines hide it in several ways
        frequency = None
    return {
        "frequency_mhz": round(frequency.current, 1) if frequency and frequency.current else None,
        "frequency_max_mhz": round(frequency.max, 1) if frequency and frequency.max else None,
        "governor": _read(GOVERNOR).strip() or None,
    }


def _commit() -> dict[str, Any]:
    """`commit` of the checkout that the code runs from, and whether files were `modified`; null when installed."""
    here = Path(__file__).resolve().parent

    def ask(*words: str) -> str:
        command = ["git", "-C", str(here), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        tracked = ask("ls-files", Path(__file__).name)  # an installed copy may lie in a checkout of something else
        if not tracked:
            return {"commit": None, "modified": None}
        return {"commit": ask("rev-parse", "HEAD"), "modified": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "modified": None}


def _load_average() -> float | None:
    """Processes that wanted a core in the last minute, before anything of ours ran."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _versions() -> dict[str, str | None]:
    """Versions of what takes part in an answer."""
    runtime = version_of("onnxruntime") or version_of("onnxruntime-gpu")
    others = {name: version_of(name) for name in ("tokenizers", "pmd-kgc")}
    return {"python": platform.python_version(), "numpy": version_of("numpy"), "onnxruntime": runtime, **others}


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution; None where there is none."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _read(path: Path) -> str:
    """Text of a small system file; empty where it is absent or not ours to read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
