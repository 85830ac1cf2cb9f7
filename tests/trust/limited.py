"""Attack: a scorer with little memory, and on one core or less of a processor."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.tiny_bundle import write_tiny_bundle
from tests.trust.attack import Attack, Ground, Tally
from tests.trust.portable_bundles import no_encoder, wide_bundles

ROOT = Path(__file__).resolve().parents[2]
PART = "portability"
CONTROL = Path("/sys/fs/cgroup")
MIB = 1 << 20
SPACES_MIB = (*range(40, 200, 30), *range(200, 320, 12))
"""Sizes of the address space to try: libraries are mapped whole, so most of it is never touched."""
RESIDENT_MIB = (8, 128)
"""Where the smallest control group is looked for."""
PATIENCE_SECONDS = 90
WIDE_TRIES = 20
"""From so many cases on, bundles of real width are tried, too."""
QUESTION = """
import json, os, sys
from pmd.serving import Scorer
from pmd.serving.cores import default_threads
scorer = Scorer.load(sys.argv[1])
found = scorer.top_tails(scorer.entity_ids[0], scorer.relation_ids[0], k=5, exclude_known=False)
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
print(json.dumps({"threads": default_threads(), "started": int(status["Threads"]),
                  "peak_kib": int(status["VmHWM"].split()[0]), "anonymous_kib": int(status["RssAnon"].split()[0]),
                  "answers": [[one.entity, float(one.score).hex()] for one in found]}))
"""


def small_memory(ground: Ground) -> Tally:
    """Bundles under address-space limits, and in ever smaller control groups: an answer, one line, or a kill."""
    tally = Tally()
    tiny = write_tiny_bundle(ground.folder / "bundle", precision="int8")
    _measure(tally, "tiny", tiny)
    spaces = SPACES_MIB[:: max(1, len(SPACES_MIB) // ground.count)]
    for space in spaces:
        _ended(tally, f"address space of {space} MiB", _predict(tiny, before=partial(_limit_space, space)))
    with control_group("memory") as group:
        if group is not None:
            _smallest(tally, group, "tiny", tiny)
            if ground.count >= WIDE_TRIES and no_encoder() is None:
                for name, path in wide_bundles(ground.folder, ("int8", "int4-trimmed")).items():
                    _measure(tally, name, path)
                    _smallest(tally, group, name, path)
    return tally


def one_core(ground: Ground) -> Tally:
    """A core, and half of one: as many threads as fit, and the same bits as on all cores."""
    tally = Tally()
    for kind in ("fp32", "int8")[: ground.count]:
        bundle = write_tiny_bundle(ground.folder / f"bundle-{kind}", precision=kind)
        free = _asked(bundle)
        core = min(os.sched_getaffinity(0))
        _alike(
            tally,
            f"{kind}, one core",
            free,
            _asked(bundle, before=lambda core=core: os.sched_setaffinity(0, {core})),
        )
        with control_group("cpu") as group:
            if group is None:
                continue
            for share in (1.0, 0.5):
                _limit_cpu(group, share)
                _alike(tally, f"{kind}, {share} of a core", free, _asked(bundle, before=partial(_join, group)))
    return tally


@contextmanager
def control_group(kind: str) -> Iterator[Path | None]:
    """A new control group of version 1 or 2 with a `memory` or `cpu` limit; None where none can be made."""
    name = f"pmd-trust-{os.getpid()}"
    mounts = [CONTROL / kind, CONTROL]
    for mount in mounts:
        known = (mount / f"{kind}.limit_in_bytes", mount / f"{kind}.cfs_quota_us", mount / "cgroup.subtree_control")
        if not any(path.exists() for path in known):
            continue
        try:
            (mount / name).mkdir()
        except OSError:
            continue
        try:
            limits = ("memory.max", "memory.limit_in_bytes", "cpu.max", "cpu.cfs_quota_us")
            usable = any((mount / name / limit).exists() for limit in limits if limit.startswith(kind))
            yield mount / name if usable else None
        finally:
            (mount / name).rmdir()
        return
    yield None


def _smallest(tally: Tally, group: Path, name: str, bundle: Path) -> None:
    """Halve until one MiB is left between a group in which the bundle answers and one in which it is killed."""
    low, high = RESIDENT_MIB
    while high - low > 1:
        middle = (low + high) // 2
        _limit_memory(group, middle)
        done = _predict(bundle, before=partial(_join, group))
        _ended(tally, f"{name} in {middle} MiB", done)
        low, high = (low, middle) if done is not None and done.returncode == 0 else (middle, high)
    tally.figures[f"{name}_smallest_group_mib"] = high


def _measure(tally: Tally, name: str, bundle: Path) -> None:
    found = _asked(bundle)
    tally.figures[f"{name}_peak_rss_mib"] = round(found["peak_kib"] / 1024, 1)
    tally.figures[f"{name}_own_memory_mib"] = round(found["anonymous_kib"] / 1024, 1)


def _ended(tally: Tally, what: str, done: subprocess.CompletedProcess[str] | None) -> None:
    """Tally how `pmd-predict` ended. Numpy and tokenizers may say themselves that they do not load."""
    if done is None:
        tally.failed(f"{what}: no end within {PATIENCE_SECONDS} s")
        return
    said = done.stderr.strip().splitlines() or [""]
    if done.returncode == 0:
        tally.saw("answered")
    elif done.returncode == -signal.SIGKILL:
        tally.saw("killed by the kernel")
    elif done.returncode == 2 and len(said) == 1 and said[0].startswith("error: "):
        tally.saw("one line of ours")
    elif done.returncode == 2 and said[-1].startswith("error: ") and not any("Traceback" in line for line in said):
        tally.saw("one line of ours, after what native code of a library printed")
    elif done.returncode == 1 and len(said) == 1 and said[0]:
        tally.saw("one line of a library or of Python")
    elif done.returncode == 1 and _did_not_load(said):
        tally.saw("numpy or tokenizers did not load")
    else:
        tally.failed(f"{what}: ended with {done.returncode} and {len(said)} lines, the last: {said[-1][-200:]}")


def _did_not_load(said: list[str]) -> bool:
    """Whether numpy or tokenizers, without which nothing of ours is imported, found no memory to load in."""
    named = any(line.startswith(("ImportError", "MemoryError")) for line in said)
    return named and not any("onnxruntime" in line for line in said)  # what loads that must say so in one line


def _alike(tally: Tally, what: str, free: dict, held: dict) -> None:
    if held["answers"] != free["answers"]:
        tally.failed(f"{what}: the answers have other bits")
    elif held["threads"] != 1:
        tally.failed(f"{what}: {held['threads']} threads by default, expected 1")
    else:
        tally.saw("one thread by default, the same bits")


def _predict(bundle: Path, before: Callable[[], None]) -> subprocess.CompletedProcess[str] | None:
    """`pmd-predict` after `before`; None where it did not end in time."""
    code = "import sys; from pmd.serving.cli import main; main(sys.argv[1:])"
    rows = (bundle / "entities.tsv").read_text(encoding="utf-8").split("\t")[0]
    relation = (bundle / "relations.tsv").read_text(encoding="utf-8").split("\t")[0]
    asked = [str(bundle), "--head", rows, "--relation", relation, "--threads", "1", "--json"]
    try:
        return _run([sys.executable, "-c", code, *asked], before)
    except subprocess.TimeoutExpired:
        return None


def _asked(bundle: Path, before: Callable[[], None] | None = None) -> dict:
    done = _run([sys.executable, "-c", QUESTION, str(bundle)], before)
    if done.returncode:
        raise RuntimeError(f"the question ended with {done.returncode}: {done.stderr[-300:]}")
    return json.loads(done.stdout)


def _run(command: list[str], before: Callable[[], None] | None) -> subprocess.CompletedProcess[str]:
    outside = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, env=outside, capture_output=True, text=True, timeout=PATIENCE_SECONDS, preexec_fn=before
    )


def _limit_space(mib: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (mib * MIB, mib * MIB))


def _join(group: Path) -> None:
    (group / "cgroup.procs").write_text("0")


def _limit_memory(group: Path, mib: int) -> None:
    new = (group / "memory.max").exists()
    (group / ("memory.max" if new else "memory.limit_in_bytes")).write_text(str(mib * MIB))
    swap = group / "memory.swap.max"
    if swap.exists():
        swap.write_text("0")


def _limit_cpu(group: Path, cores: float) -> None:
    if (group / "cpu.max").exists():
        (group / "cpu.max").write_text(f"{int(cores * 100_000)} 100000")
    else:
        (group / "cpu.cfs_period_us").write_text("100000")
        (group / "cpu.cfs_quota_us").write_text(str(int(cores * 100_000)))


ATTACKS = (
    Attack(
        "small-memory",
        PART,
        "With ever less memory a bundle answers, says why not in a line, or is killed by the kernel; no hang.",
        small_memory,
        6,
        WIDE_TRIES,
        limit_seconds=900,
        skip=lambda: None if sys.platform == "linux" else "limits are Linux's",
    ),
    Attack(
        "one-core",
        PART,
        "On one core, and in control groups of a core and of half a core, there is one thread, with the same bits.",
        one_core,
        1,
        2,
        skip=lambda: None if sys.platform == "linux" else "limits are Linux's",
    ),
)
