"""`kill -9` of `Scorer.save` and of a process that changes a graph: at random, and at each call of saving."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from tests.trust.attack import Attack, Ground, Tally
from tests.trust.killing import Ended, contents, delays, end_call, left_overs

PART = "crashes"
LIFE_SECONDS = 0.12  # of a process that changes a graph: some tens of changes, or a few saves
KILLS_PER_JOURNAL = 8
CHANGES_BETWEEN_SAVES = 3
CALLS = ("open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir")
"""Audit events that come right before a call that may change a folder; `open` for reading is left out."""
Dying = Callable[[], object]
"""What has the process that calls it killed, later."""


def kill_save(ground: Ground) -> Tally:
    """Onto nothing, onto an older bundle, as a zip, and onto the bundle that was loaded."""
    saves = _Saves(ground.folder)
    tally, moments = Tally(), delays(1.2 * saves.length_seconds, ground.random)
    for number in range(ground.count):
        kind, moment = list(saves.KINDS)[number % len(saves.KINDS)], next(moments)
        wrong = saves.killed(kind, lambda moment=moment: _die_in(moment))
        where = f"{kind}, killed after {moment * 1000:.1f} ms"
        tally.failed(f"{where}: {wrong}") if wrong else tally.saw(f"{saves.found}, then saved")
    tally.figures = {"undisturbed_ms": saves.length_seconds * 1000}
    return tally


def kill_save_calls(ground: Ground) -> Tally:
    """The same right before each call that changes a folder, of each kind of target, or before some of them."""
    saves = _Saves(ground.folder)
    places = [(kind, call) for kind in saves.KINDS for call in range(saves.calls(kind))]
    tally = Tally(figures={"calls": len(places)})
    chosen = places if ground.count >= len(places) else ground.random.sample(places, ground.count)
    for kind, call in chosen:
        wrong = saves.killed(kind, lambda call=call: _die_before(saves.place, call))
        where = f"{kind}, killed before call {call}"
        tally.failed(f"{where}: {wrong}") if wrong else tally.saw(f"{saves.found}, then saved")
    return tally


class _Saves:
    """A changed bundle, to be saved onto targets of several kinds."""

    KINDS: ClassVar[dict[str, str]] = {
        "a new folder": "new",
        "an old folder": "old",
        "a new zip": "new.zip",
        "an old zip": "old.zip",
        "itself": "bundle",
    }

    def __init__(self, folder: Path) -> None:
        from tests.tiny_bundle import write_tiny_bundle

        self.place, self._logs, self._kept = folder / "place", folder / "logs", folder / "kept"
        write_tiny_bundle(self._kept / "bundle")
        end_call(self._older, self._logs)
        for name in ("new.zip", "new"):
            ended = end_call(lambda name=name: self._save(self._kept / "bundle", self._kept / name), self._logs)
        if ended.code:
            raise RuntimeError(f"saving undisturbed failed: {ended.last_words}")
        self.length_seconds = float(ended.stdout)
        self.found = ""

    def killed(self, kind: str, dying: Dying) -> str:
        """What is wrong after a save that was killed, and after the next one; "" if nothing is."""
        target = self._target(kind)
        old, new = _bytes(target), _bytes(self._kept / f"new{target.suffix}")
        ended = end_call(lambda: self._save(self.place / "bundle", target, dying), self._logs)
        now = _bytes(target)
        self.found = _word(now, old, new, ended)
        if self.found == "neither":
            return "the target is neither the old nor the new"
        if now is not None and (why := self._verified(target)):
            return why
        source = self._kept / "bundle" if kind == "itself" else self.place / "bundle"
        again = end_call(lambda: self._save(source, target), self._logs)
        left = [path.name for path in left_overs(self.place)]
        if again.code or _bytes(target) != new or left:
            return f"{self.found}, then exit {again.code} ({again.last_words}), left over: {left}"
        return ""

    def calls(self, kind: str) -> int:
        """How many calls of a save change a folder."""
        target = self._target(kind)
        ended = end_call(
            lambda: self._save(self.place / "bundle", target, lambda: _die_before(self.place, -1)), self._logs
        )
        return ended.stderr.count("call")

    def _target(self, kind: str) -> Path:
        """The place made anew, and the target in it."""
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir()
        shutil.copytree(self._kept / "bundle", self.place / "bundle")
        target = self.place / self.KINDS[kind]
        if target.name.startswith("old"):
            _copy(self._kept / target.name, target)
        return target

    def _save(self, source: Path, target: Path, dying: Dying | None = None) -> None:
        from pmd.serving import Scorer
        from tests.trust.changing import Changes

        scorer, changes = Scorer.load(source, threads=1, verify=True), Changes(7)
        for number in range(5):
            changes.make(scorer, number)
        if dying is not None:
            dying()
        started = time.perf_counter()
        scorer.save(target, replace=os.path.lexists(target))
        os.write(1, f"{time.perf_counter() - started}".encode())

    def _older(self) -> None:
        from pmd.serving import Scorer

        scorer = Scorer.load(self._kept / "bundle", threads=1)
        scorer.remove_entity("heart")
        scorer.save(self._kept / "old")
        scorer.save(self._kept / "old.zip")

    def _verified(self, target: Path) -> str:
        ended = end_call(lambda: _open(target), self._logs)
        return f"does not open: {ended.last_words}" if ended.code else ""


def kill_live(ground: Ground) -> Tally:
    """Changes with a journal, each told when it is made; killed, loaded again, compared with a serial replay."""
    return _kill_live(ground, between_saves=None)


def kill_live_save(ground: Ground) -> Tally:
    """The same, and every few changes the bundle is saved onto itself and goes on with its journal."""
    return _kill_live(ground, between_saves=CHANGES_BETWEEN_SAVES)


def _kill_live(ground: Ground, between_saves: int | None) -> Tally:
    tally, moments = Tally(), delays(LIFE_SECONDS, ground.random)
    most = 0
    for number in range(0, ground.count, KILLS_PER_JOURNAL):
        place = ground.folder / f"place-{number}"
        lives = _Lives(place, ground.seed + number, between_saves)
        for _ in range(min(KILLS_PER_JOURNAL, ground.count - number)):
            moment = next(moments)
            wrong = lives.killed(moment)
            where = f"journal {number}, killed after {moment * 1000:.1f} ms"
            tally.failed(f"{where}: {wrong}") if wrong else tally.saw(lives.found)
        most = max(most, lives.kept)
        shutil.rmtree(place)
    tally.figures = {"most_changes_in_a_journal": most}
    return tally


class _Lives:
    """A bundle and its journal, changed by one process after the other."""

    def __init__(self, place: Path, seed: int, between_saves: int | None) -> None:
        from tests.tiny_bundle import write_tiny_bundle

        self.bundle, self.journal = write_tiny_bundle(place / "bundle"), place / "journal"
        self._untouched = shutil.copytree(self.bundle, place / "untouched")
        self._seed, self._between_saves, self._place = seed, between_saves, place
        self.kept, self.found = 0, ""

    def killed(self, after_seconds: float) -> str:
        """What is wrong after a life that was cut short; "" if nothing is."""
        before = self.kept
        ended = end_call(lambda: self._change(after_seconds), self._place / "logs")
        if not ended.killed:
            return f"exit code {ended.code} instead of a kill: {ended.last_words}"
        told = [int(line) for line in ended.stdout.split("\n")[:-1]]
        acknowledged = told[-1] if told else before
        after = end_call(lambda: self._check(acknowledged), self._place / "logs")
        if after.code or not after.stdout.startswith("kept "):
            return after.last_words
        self.kept = int(after.stdout.split()[1])
        more = self.kept - acknowledged
        self.found = "what was acknowledged is there" + (", and one more" if more else "")
        return ""

    def _change(self, after_seconds: float) -> None:
        from pmd.serving import Scorer, live
        from tests.trust.changing import Changes, changes_kept

        live.MOST_CHANGES = 7  # tables are made anew now and then
        scorer = Scorer.load(self.bundle, threads=1, journal=self.journal)
        number, changes = changes_kept(scorer), Changes(self._seed)
        changes.skip(number)
        _die_in(after_seconds)
        while True:
            changes.make(scorer, number)
            number += 1
            os.write(1, f"{number}\n".encode())
            if self._between_saves and number % self._between_saves == 0:
                scorer.save(self.bundle, replace=True)

    def _check(self, acknowledged: int) -> None:
        """Leave with what is wrong on stderr, or with the number of changes on stdout."""
        from pmd.serving import Scorer
        from tests.trust.changing import Changes, changes_kept, seen

        scorer = Scorer.load(self.bundle, threads=1, verify=True, journal=self.journal)
        kept = changes_kept(scorer)
        if not acknowledged <= kept <= acknowledged + 1:
            raise SystemExit(_say(f"{acknowledged} changes were acknowledged, {kept} are there"))
        serial, changes = Scorer.load(self._untouched, threads=1), Changes(self._seed)
        for number in range(kept):
            changes.make(serial, number)
        if seen(scorer) != seen(serial):
            raise SystemExit(_say(f"after {kept} changes the graph is not that of the same changes in a row"))
        if self._between_saves:
            scorer.save(self.bundle, replace=True)
            if left := [path.name for path in left_overs(self._place)]:
                raise SystemExit(_say(f"left over after the next save: {left}"))
        os.write(1, f"kept {kept}\n".encode())


def _die_in(seconds: float) -> None:
    """Have this process killed with SIGKILL by another one, to the tenth of a millisecond."""
    victim = os.getpid()
    if os.fork() == 0:
        time.sleep(seconds)
        if os.getppid() == victim:
            os.kill(victim, signal.SIGKILL)
        os._exit(0)


def _die_before(place: Path, number: int) -> None:
    """Die right before the call of this number, from 0, that changes the folder; each is told on stderr."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in CALLS and _is_below(arguments[0], place) and (event != "open" or _writes(arguments)):
            os.write(2, b"call\n")
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

    sys.addaudithook(hook)


def _is_below(name: object, place: Path) -> bool:
    return isinstance(name, str | bytes | os.PathLike) and os.fsdecode(name).startswith(str(place))


def _writes(arguments: tuple[Any, ...]) -> bool:
    _, mode, flags = arguments
    return any(letter in mode for letter in "wax+") if mode else bool(flags & (os.O_WRONLY | os.O_RDWR))


def _open(target: Path) -> None:
    from pmd.serving import Scorer

    Scorer.load(target, threads=1, verify=True).top_tails("aspirin", "treats")


def _say(words: str) -> int:
    os.write(2, f"{words}\n".encode())
    return 1


def _bytes(target: Path) -> dict[str, bytes] | bytes | None:
    if target.is_dir():
        return contents(target)
    return target.read_bytes() if target.exists() else None


def _word(now: object, old: object, new: object, ended: Ended) -> str:
    if now == new:
        return "killed with the new in place" if ended.killed else "saved before the kill"
    if now == old:
        return "killed with nothing in place" if old is None else "killed with the old in place"
    return "neither"


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target)


ATTACKS = (
    Attack(
        "kill-save",
        PART,
        "`kill -9` of `Scorer.save` onto nothing, onto an older bundle, as a zip and onto itself: there is the old "
        "one or the new one, whole, or nothing where nothing was; the next save makes the same bytes and leaves "
        "nothing over",
        kill_save,
        quick=10,
        full=100,
    ),
    Attack(
        "kill-save-calls",
        PART,
        "`kill -9` of `Scorer.save` right before each call that changes a folder: the same",
        kill_save_calls,
        quick=10,
        full=1000,
    ),
    Attack(
        "kill-live",
        PART,
        "`kill -9` of a process that adds, updates and removes entities with a journal: every acknowledged change "
        "is there and at most one more, and answers are to the bit those of the same changes in a row",
        kill_live,
        quick=8,
        full=100,
    ),
    Attack(
        "kill-live-save",
        PART,
        "The same where the bundle is saved onto itself every few changes and goes on with its journal",
        kill_live_save,
        quick=8,
        full=100,
    ),
)
