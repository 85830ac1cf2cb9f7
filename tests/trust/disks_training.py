"""Training and export on a disk that fills, turns read-only or loses the folder, and under a clock that jumps."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.trust.attack import Attack, Ground, Tally
from tests.trust.full_disk import Disk, small_disk, why_no_disk
from tests.trust.killing import Ended, contents
from tests.trust.toy_training import Toy, torn_lines

PART = "full disks, read-only folders, clocks"
WIDE_BYTES = 64 << 20
RUN = "run"
TRAINING = {"epochs": 4, "checkpoint_seconds": 0.05}
MAKINGS = (
    ("--precision", "fp32"),
    ("--precision", "int8"),
    ("--precision", "int4"),
    ("--precision", "int8", "--ort"),
    ("--precision", "fp16"),
)


class Trouble(NamedTuple):
    """What befalls a disk `after_seconds` of a command."""

    what: str
    after_seconds: float
    do: Callable[[], object]
    mend: Callable[[], object]

    def begin(self) -> None:
        """In the child: before the command, or beside it."""
        if not self.after_seconds:
            self.do()
            return
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> None:
        time.sleep(self.after_seconds)
        self.do()


def disk_training(ground: Ground) -> Tally:
    """The run folder's disk is too small, is filled by another, turns read-only, or the folder is taken away."""
    toy = Toy.made(ground.folder / "toy", **TRAINING)
    most_bytes, seconds = _needs(ground.folder / "measured", lambda out: toy.train(out))
    generator, tally = ground.random, Tally(figures={"needed_bytes": most_bytes})
    for number in range(ground.count):
        with small_disk(ground.folder / f"disk-{number}", WIDE_BYTES) as disk:
            troubles = _troubles(disk, generator, most_bytes, seconds)
            _trained(tally, toy, disk, troubles[number % len(troubles)])
    return tally


def _troubles(disk: Disk, generator: random.Random, most_bytes: int, seconds: float) -> list[Trouble]:
    small, room = 4096 * generator.randrange(1, most_bytes // 4096), generator.randrange(65536)
    after = generator.uniform(0, seconds)
    return [
        Trouble("too small", 0.0, lambda: disk.resize(small), lambda: disk.resize(WIDE_BYTES)),
        Trouble("full meanwhile", after, lambda: disk.fill(room), disk.make_room),
        Trouble("read-only meanwhile", after, lambda: _soon(disk.read_only), disk.writable),
        Trouble("removed meanwhile", after, lambda: _take_away(disk.path / RUN), lambda: None),
    ]


def clock_training(ground: Ground) -> Tally:
    """The wall clock jumps back and ahead at each look, while the ladder trains under time limits."""
    toy = Toy.made(ground.folder / "toy", **TRAINING)
    seconds = toy.train(ground.folder / "measured").seconds
    generator, tally = ground.random, Tally()
    for number in range(ground.count):
        out, wrong, sittings = ground.folder / f"run-{number}", [], 0
        began, code = time.monotonic(), 75
        while code == 75 and not wrong:
            limit = generator.uniform(0.3, 1.0) * seconds
            jumps = random.Random(generator.random())
            ended = toy.train(
                out, "--resume", "--time-limit", str(limit), before=lambda jumps=jumps: _unsteady(jumps)
            )
            code, sittings = ended.code, sittings + 1
            wrong += _overlong(ended, limit, seconds)
        if code not in (0, 75):
            wrong.append(f"exit code {code}: {ended.last_words}")
        wrong += toy.broken(out) + _durations(toy, out, time.monotonic() - began)
        if wrong:
            tally.failed(f"run {number}: {'; '.join(wrong)}")
        else:
            tally.saw(f"the same bytes after {'one sitting' if sittings == 1 else 'several sittings'}")
        shutil.rmtree(out, ignore_errors=True)
    return tally


def disk_export(ground: Ground) -> Tally:
    """The disk of the bundle, or of temporary files, is too small; an older bundle may stand where it should go."""
    toy = Toy.made(ground.folder / "toy", epochs=1)
    generator, tally = ground.random, Tally()
    whole, needed = {}, {}
    for making in MAKINGS[: max(1, ground.count)]:
        made = ground.folder / "whole" / "-".join(making) / "bundle"
        needed[making], _ = _needs(made.parent, lambda _, making=making, made=made: toy.export(made, *making))
        whole[making] = contents(made)
    for number in range(ground.count):
        making, old = MAKINGS[number % len(MAKINGS)], whole[MAKINGS[0]] if number % 2 else {}
        scarce = number % 3 == 2  # temporary files on that disk, too
        with small_disk(ground.folder / f"disk-{number}", WIDE_BYTES) as disk:
            _fill_in(disk.path / "bundle", old)
            free = 4096 * generator.randrange(1, needed[making] // 4096 + (4 if scarce else 0))
            disk.fill(leave_bytes=free)
            _exported(tally, toy, disk, making, old, whole[making], scarce)
    return tally


def _exported(
    tally: Tally,
    toy: Toy,
    disk: Disk,
    making: tuple[str, ...],
    old: dict[str, bytes],
    new: dict[str, bytes],
    scarce: bool,
) -> None:
    out = disk.path / "bundle"
    free_bytes = disk.free_bytes
    before = (lambda: _temporary_files_in(disk.path)) if scarce else (lambda: None)
    ended = toy.export(out, *making, "--force", before=before)
    wrong, refused = _one_line(ended), ended.code != 0
    if (contents(out) if out.exists() else {}) != (old if refused else new):
        wrong.append(f"exit code {ended.code} and neither the old bundle nor the new")
    wrong += [f"left: {path.name}" for path in disk.path.iterdir() if path.name not in ("bundle", ".filler")]
    disk.make_room()
    again = toy.export(out, *making, "--force")
    if again.code != 0 or contents(out) != new:
        wrong.append(f"then exit code {again.code} or other bytes: {again.last_words}")
    if wrong:
        tally.failed(f"{' '.join(making)} with {free_bytes} bytes: {'; '.join(wrong)}")
    elif not refused:
        tally.saw("had room")
    else:
        kept = "the old bundle was kept" if old else "nothing was left"
        tally.saw(f"refused in one line, {kept}, the next export made the same bytes")


def _trained(tally: Tally, toy: Toy, disk: Disk, trouble: Trouble) -> None:
    """Train with a trouble, then without it: one line and exit code 2, all that is there whole, the same bytes."""
    out = disk.path / RUN
    ended = toy.train(out, before=trouble.begin)
    wrong, refused = _one_line(ended), ended.code != 0
    wrong += [*toy.half_written(out)]
    trouble.mend()
    if refused or not out.exists():
        ended = toy.train(out, "--resume")
    if ended.code != 0:
        wrong.append(f"then exit code {ended.code}: {ended.last_words}")
    wrong += toy.broken(out)
    if not wrong and torn_lines(out):
        wrong.append("a torn line in events.jsonl")
    if wrong:
        tally.failed(f"{trouble.what}, after {trouble.after_seconds:.2f} s: {'; '.join(wrong)}")
    elif refused:
        tally.saw(f"{trouble.what}: refused in one line, then the same bytes")
    else:
        tally.saw("was done before")


def _one_line(ended: Ended) -> list[str]:
    """What is wrong with how a command ended that could not write; one that could is right."""
    if ended.code == 0:
        return []
    lines = ended.stderr.strip().splitlines()
    if ended.code != 2 or len(lines) != 1 or not lines[0].startswith("error: ") or "; " not in lines[0]:
        return [f"ended with {ended.code} and {len(lines)} lines, the last: {ended.last_words}"]
    return []


def _needs(folder: Path, make: Callable[[Path], Ended]) -> tuple[int, float]:
    """Bytes that a command has on its disk at the most, as seen every 5 ms, and its seconds."""
    most, stop = 0, threading.Event()
    with small_disk(folder, WIDE_BYTES) as disk:
        free = disk.free_bytes

        def look() -> None:
            nonlocal most
            while not stop.wait(0.005):
                most = max(most, free - disk.free_bytes)

        looking = threading.Thread(target=look)
        looking.start()
        ended = make(folder / "run")
        stop.set()
        looking.join()
        kept = contents(folder)
    for name, data in kept.items():  # the caller's, after the disk is gone
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return max(most, 8192), ended.seconds


def _fill_in(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def _temporary_files_in(folder: Path) -> None:
    import tempfile

    tempfile.tempdir = str(folder)


def _soon(change: Callable[[], object]) -> None:
    """Make a change that the kernel refuses while a file is open for writing."""
    while True:
        try:
            change()
            return
        except subprocess.CalledProcessError:
            time.sleep(0.001)


def _take_away(folder: Path) -> None:
    """In one step, as far as the one who writes there can see."""
    away = folder.with_name("away")
    try:
        os.rename(folder, away)
    except FileNotFoundError:
        return
    shutil.rmtree(away)


def _unsteady(jumps: random.Random) -> None:
    """In the child: a wall clock that is anywhere within a year at each look."""
    steady = time.time

    def unsteady() -> float:
        return steady() + jumps.uniform(-3e7, 3e7)

    time.time = unsteady
    time.time_ns = lambda: int(unsteady() * 1e9)


def _overlong(ended: Ended, limit_seconds: float, whole_seconds: float) -> list[str]:
    """A sitting may take its limit, and what comes after it: a step, a checkpoint, the printing."""
    if ended.seconds > limit_seconds + 2 * whole_seconds + 5:
        return [f"a limit of {limit_seconds:.1f} s took {ended.seconds:.1f} s"]
    return []


def _durations(toy: Toy, out: Path, most_seconds: float) -> list[str]:
    import json

    try:
        stages = json.loads((out / "ladder.json").read_text(encoding="utf-8"))["stages"]
    except (OSError, ValueError):
        return []  # told already
    odd = [stage["train_seconds"] for stage in stages if not 0 <= stage["train_seconds"] <= most_seconds]
    return [f"{odd[0]:.1f} s of training in {most_seconds:.1f} s"] if odd else []


ATTACKS = (
    Attack(
        "disk-training",
        PART,
        "the disk under `pmd-train` is too small, fills, turns read-only or loses the run folder: exit code 2 and "
        "one line, all files whole; with that mended, `--resume` ends with the same bytes",
        disk_training,
        quick=4,
        full=200,
        skip=why_no_disk,
    ),
    Attack(
        "disk-export",
        PART,
        "`pmd-export` on a disk that is too small, for the bundle or for temporary files: exit code 2 and one "
        "line, the older bundle is kept, nothing half-written is left",
        disk_export,
        quick=3,
        full=100,
        skip=why_no_disk,
    ),
    Attack(
        "clock-training",
        PART,
        "the wall clock jumps up to a year at each look: time limits hold, durations are right, the same bytes",
        clock_training,
        quick=1,
        full=30,
    ),
)
