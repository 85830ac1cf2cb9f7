"""`kill -9` of training and of export: at moments drawn at random, and at each call that changes a folder."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.trust.attack import Attack, Ground, Tally
from tests.trust.killing import contents, delays, left_overs
from tests.trust.toy_training import Toy, checkpoint_state, last_sitting

PART = "crashes"
CHECKPOINT_SECONDS = 0.1
TARGET = "target"  # always the same name: a bundle's card has it
CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")
"""Audit events that come right before a call that may change a folder; `open` for reading is left out."""


def kill_training(ground: Ground) -> Tally:
    """Kill a ladder until it has nothing left to train; then another one, until all kills are made."""
    toy = Toy.made(ground.folder / "toy", epochs=4, checkpoint_seconds=CHECKPOINT_SECONDS)
    length_seconds = toy.train(ground.folder / "measured").seconds
    tally, moments, most_lost = Tally(), delays(length_seconds, ground.random), 0
    ladders = 0
    while tally.cases < ground.count:
        out = ground.folder / f"ladder-{ladders}"
        ladders += 1
        places, wrong = [], []
        while (ended := _sitting(toy, out, moments, ground.count - tally.cases - len(places))).killed:
            wrong += toy.half_written(out)
            lost = _lost_steps(out)
            most_lost = max(most_lost, len(lost))
            if _span(lost) >= CHECKPOINT_SECONDS:
                wrong.append(f"{len(lost)} steps of {_span(lost):.2f} s were lost")
            places.append(_place(out))
        if ended.code != 0:
            wrong.append(f"exit code {ended.code}: {ended.last_words}")
        wrong += toy.broken(out)
        _count(tally, places, wrong, f"ladder {ladders}")
        shutil.rmtree(out)
    tally.figures = {"ladders": ladders, "most_steps_lost": most_lost, "undisturbed_seconds": length_seconds}
    return tally


def _sitting(toy: Toy, out: Path, moments: Iterator[float], kills_left: int) -> Any:
    return toy.train(out, "--resume", kill_after=next(moments) if kills_left > 0 else None)


def _lost_steps(out: Path) -> list[dict[str, Any]]:
    """The steps of the last sitting that are in no checkpoint, but the first and the last.

    After each step the checkpoint is due if its interval has passed since the last one, so these took less than it.
    """
    steps, state = last_sitting(out), checkpoint_state(out)
    if not steps or (out / steps[-1]["stage"]).is_dir():
        return []
    kept = state["step"] if state and state["stage"] == steps[-1]["stage"] else 0
    return [step for step in steps if step["step"] > kept][:-1]


def _span(steps: list[dict[str, Any]]) -> float:
    return steps[-1]["time"] - steps[0]["time"] if steps else 0.0


def _place(out: Path) -> str:
    """Where the kill found the run, in words."""
    steps = last_sitting(out)
    if not (out / "run.json").exists():
        return "before the run began"
    if not steps:
        return "before the first step of a stage"
    return f"in {steps[-1]['stage']}"


def _count(tally: Tally, places: list[str], wrong: list[str], where: str) -> None:
    for place in places or ["never"]:
        if wrong:
            tally.failed(f"{where}, killed {place}: {'; '.join(wrong)}")
        elif place != "never":
            tally.saw(f"killed {place}, resumed to the same bytes")


def kill_training_writes(ground: Ground) -> Tally:
    """Kill a ladder right before each of its calls that change the run folder, or before some of them."""
    toy = Toy.made(ground.folder / "toy", epochs=1, checkpoint_seconds=0.3)
    return _before_each_change(
        ground,
        start=lambda out, before: toy.train(out, "--resume", before=before),
        broken=lambda out: [*toy.half_written(out)],
        finish=lambda out: toy.train(out, "--resume"),
        finished=toy.broken,
    )


def _before_each_change(
    ground: Ground,
    *,
    start: Callable[[Path, Callable[[], object]], Any],
    broken: Callable[[Path], list[str]],
    finish: Callable[[Path], Any],
    finished: Callable[[Path], list[str]],
    place: Callable[[Path], None] = lambda out: None,
) -> Tally:
    """The attack of both commands: each of its changes, or `count` of them, is the first that does not happen."""
    first = ground.folder / "counted" / TARGET
    place(first)
    log = ground.folder / "changes"
    start(first, lambda: _count_changes(first, log))
    total = len(log.read_text(encoding="utf-8").splitlines())
    chosen = range(total) if ground.count >= total else sorted(ground.random.sample(range(total), ground.count))
    tally = Tally(figures={"changes": total})
    for number in chosen:
        out = ground.folder / f"case-{number}" / TARGET
        place(out)
        log.unlink(missing_ok=True)
        ended = start(out, lambda out=out, number=number: _count_changes(out, log, last=number))
        change = log.read_text(encoding="utf-8").splitlines()[-1]
        wrong = broken(out)
        if ended.killed:
            ended = finish(out)
        if ended.code != 0:
            wrong.append(f"then exit code {ended.code}: {ended.last_words}")
        wrong += finished(out)
        if wrong:
            tally.failed(f"killed before change {number} ({change}): {'; '.join(wrong)}")
        else:
            tally.saw(f"killed before {change.split()[0]}, went on to the same bytes")
        shutil.rmtree(out.parent)
    return tally


def _count_changes(out: Path, log: Path, last: int | None = None) -> None:
    """In the child: note each change of `out` and of temporary names beside it, and die right before one."""
    seen = 0
    root, beside = str(out), f"{out.parent}/.{out.name}"
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in CHANGES or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        name = os.fsdecode(arguments[0])
        if not name.startswith((root, beside)) or (event == "open" and not _writes(arguments)):
            return
        os.write(handle, f"{event.removeprefix('os.')} {name.removeprefix(str(out.parent))}\n".encode())
        if seen == last:
            os.kill(os.getpid(), signal.SIGKILL)
        seen += 1

    sys.addaudithook(hook)


def _writes(arguments: tuple[Any, ...]) -> bool:
    _, mode, flags = arguments
    return any(letter in mode for letter in "wax+") if mode else bool(flags & (os.O_WRONLY | os.O_RDWR))


def kill_export(ground: Ground) -> Tally:
    """Kill pmd-export, half of the times over an older bundle."""
    toy, old, new, length_seconds = _bundles(ground)
    tally, moments = Tally(), delays(length_seconds, ground.random)
    for number in range(ground.count):
        out = ground.folder / f"made-{number}" / TARGET
        out.parent.mkdir()
        before = old if number % 2 else {}
        _put(out, before)
        ended = toy.export(out, "--precision", "int8", "--force", kill_after=next(moments))
        state, wrong = _state(out, before, new)
        if ended.killed:
            ended = toy.export(out, "--precision", "int8", "--force")
        else:
            state = "not killed: it was done"
        wrong += _exported(out, new, ended)
        if wrong:
            tally.failed(f"export {number}: {'; '.join(wrong)}")
        else:
            tally.saw(f"{state}, the next export made the same bytes")
        shutil.rmtree(out.parent)
    tally.figures = {"undisturbed_seconds": length_seconds}
    return tally


def kill_export_writes(ground: Ground) -> Tally:
    """Kill pmd-export over an older bundle right before each call that changes a folder."""
    toy, old, new, _ = _bundles(ground)
    return _before_each_change(
        ground,
        start=lambda out, before: toy.export(out, "--precision", "int8", "--force", before=before),
        broken=lambda out: _state(out, old, new)[1],
        finish=lambda out: toy.export(out, "--precision", "int8", "--force"),
        finished=lambda out: _exported(out, new, None),
        place=lambda out: _put(out, old),
    )


def _bundles(ground: Ground) -> tuple[Toy, dict[str, bytes], dict[str, bytes], float]:
    """The toy, an older bundle (of another precision), the bundle that is to be made, and its seconds."""
    toy = Toy.made(ground.folder / "toy", epochs=1)
    root = ground.folder / "undisturbed"
    toy.export(root / "old" / TARGET, "--precision", "fp32")
    ended = toy.export(root / "new" / TARGET, "--precision", "int8")
    return toy, contents(root / "old" / TARGET), contents(root / "new" / TARGET), ended.seconds


def _put(out: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _state(out: Path, old: dict[str, bytes], new: dict[str, bytes]) -> tuple[str, list[str]]:
    found = contents(out) if out.exists() else {}
    if found == new:
        return "the new one whole", []
    if found == old:
        return ("the old one whole" if old else "nothing there"), []
    return "", ["what is there is neither the old bundle nor the new"]


def _exported(out: Path, new: dict[str, bytes], ended: Any) -> list[str]:
    wrong = [] if ended is None or ended.code == 0 else [f"exit code {ended.code}: {ended.last_words}"]
    if not out.is_dir() or contents(out) != new:
        wrong.append("the bundle has other bytes")
    return wrong + [
        f"left over: {path.name}" for path in left_overs(out.parent) if path.name.startswith(f".{out.name}.")
    ]


ATTACKS = (
    Attack(
        "kill-training",
        PART,
        "`kill -9` of `pmd-train` at random moments: finished stages are whole, less than a checkpoint interval is "
        "lost, `--resume` ends with the same bytes and no left-overs",
        kill_training,
        quick=3,
        full=100,
    ),
    Attack(
        "kill-training-writes",
        PART,
        "`kill -9` of `pmd-train` right before each call that changes the run folder: the same",
        kill_training_writes,
        quick=3,
        full=1000,
    ),
    Attack(
        "kill-export",
        PART,
        "`kill -9` of `pmd-export --force` at random moments, onto nothing and onto an older bundle: there is the "
        "old one or the new one, whole; the next export makes the same bytes and leaves nothing over",
        kill_export,
        quick=3,
        full=100,
    ),
    Attack(
        "kill-export-writes",
        PART,
        "`kill -9` of `pmd-export --force` right before each call that changes a folder: the same",
        kill_export_writes,
        quick=3,
        full=1000,
    ),
)
