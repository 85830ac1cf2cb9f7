"""Journals that are cut, edited, failed by the disk, cut off from power, and held by many at once."""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pmd.serving.errors import PmdError
from tests.trust.attack import Attack, Ground, Tally
from tests.trust.killing import end_call

PART = "crashes"
EDITED_CHANGES, EXTRA_SECONDS = 6, 30.0
PROCESSES, CHANGES_EACH = 4, 6
SECTOR_BYTES = 512


def journal_edits(ground: Ground) -> Tally:
    """Every cut and, in turn with them, a byte flipped, set, put in or taken out at every place."""
    kept = _Kept(ground.folder, ground.seed, EDITED_CHANGES)
    tally, random_ = Tally(), ground.random
    places = [(at, edit) for at in range(len(kept.whole)) for edit in ("cut", "flip", "set", "put in", "take out")]
    chosen = places if ground.count >= len(places) else random_.sample(places, ground.count)
    for at, edit in chosen:
        byte = random_.randrange(256)
        data = _edited(kept.whole, at, edit, byte)
        wrong, found = kept.opened(data)
        whole_lines = kept.whole[:at].count(b"\n") - 1
        if not wrong and found is not None and edit == "cut" and found != max(0, whole_lines):
            wrong = f"{found} changes are there, {whole_lines} whole lines are"
        if not wrong and found is not None and edit != "cut" and found != EDITED_CHANGES:
            wrong = f"{EDITED_CHANGES - found} acknowledged changes were forgotten without a word"
        if wrong:
            tally.failed(f"{edit} {byte} at byte {at}: {wrong}")
        else:
            tally.saw(
                f"{'cut' if edit == 'cut' else 'edited'}: " + ("refused" if found is None else "as it was before")
            )
    tally.figures = {"bytes": len(kept.whole), "places": len(places)}
    return tally


def _edited(data: bytes, at: int, edit: str, byte: int) -> bytes:
    if edit == "cut":
        return data[:at]
    middle = {"flip": bytes([data[at] ^ (1 << byte % 8)]), "set": bytes([byte]), "take out": b""}
    return data[:at] + middle.get(edit, bytes([byte]) + data[at : at + 1]) + data[at + 1 :]


class _Kept:
    """A journal of some changes, and what is seen of the graph after each of them."""

    def __init__(self, folder: Path, seed: int, count: int) -> None:
        from pmd.serving import Scorer
        from tests.tiny_bundle import write_tiny_bundle
        from tests.trust.changing import Changes, seen

        self._bundle, self.path = write_tiny_bundle(folder / "bundle"), folder / "journal"
        changes = Changes(seed)
        with Scorer.load(self._bundle, threads=1, journal=self.path) as scorer:
            self._after = [seen(scorer)]
            for number in range(count):
                changes.make(scorer, number)
                self._after.append(seen(scorer))
        self.whole = self.path.read_bytes()

    def opened(self, data: bytes) -> tuple[str, int | None]:
        """What is wrong with opening these bytes, and how many changes are there; None if they were refused."""
        from pmd.serving import Scorer
        from tests.trust.changing import changes_kept, seen

        self.path.write_bytes(data)
        try:
            with Scorer.load(self._bundle, threads=1, journal=self.path) as scorer:
                kept, now = changes_kept(scorer), seen(scorer)
        except PmdError as error:
            if "\n" in str(error) or self.path.read_bytes() != data:
                return f"refused and changed, or not in one line: {error}", None
            return "", None
        except Exception as error:  # what must not be: the attack tells which
            return f"{type(error).__name__}: {error}", None
        same = kept < len(self._after) and now == self._after[kept]
        return "" if same else f"opened with {kept} changes that are not those made", kept


def failing_disk(ground: Ground) -> Tally:
    """Writes, syncs and truncations of the journal that fail at random, alone and in rows; then it is opened."""
    return _spoil(ground, _failing)


def power_cuts(ground: Ground) -> Tally:
    """The journal as it is after a power cut: what was synced, and any sectors of what was not."""
    return _spoil(ground, _cut_off)


def _spoil(ground: Ground, spoil: Callable[[Any, Any, Path, random.Random], str]) -> Tally:
    from pmd.serving import Scorer
    from tests.tiny_bundle import write_tiny_bundle
    from tests.trust.changing import Changes, changes_kept, seen

    tally, random_ = Tally(), ground.random
    bundle = write_tiny_bundle(ground.folder / "bundle")
    for number in range(ground.count):
        path, changes = ground.folder / f"journal-{number}", Changes(ground.seed + number)
        scorer = Scorer.load(bundle, threads=1, journal=path)
        wrong = spoil(scorer, changes, path, random_)
        acknowledged = changes_kept(scorer)
        scorer.close()
        try:
            with Scorer.load(bundle, threads=1, journal=path) as again:
                kept, now = changes_kept(again), seen(again)
        except PmdError as error:
            tally.failed(f"journal {number}: {wrong} it does not open: {error}")
            continue
        serial = Scorer.load(bundle, threads=1)
        for made in range(kept):
            changes.make(serial, made)
        if not acknowledged <= kept <= acknowledged + 1 or now != seen(serial):
            wrong += f" {acknowledged} changes were acknowledged, {kept} are there, or others"
        more = ", and one more" if kept > acknowledged else ""
        tally.failed(f"journal {number}: {wrong}") if wrong else tally.saw(f"what was acknowledged is there{more}")
        path.unlink()
    return tally


def _failing(scorer: Any, changes: Any, path: Path, random_: random.Random) -> str:
    """Make changes with a disk that fails some calls; each one refused is tried again. "" if all is well."""
    from tests.trust.changing import seen

    journal = scorer._graph.journal
    file, sync = journal._file, os.fsync
    broken = _BrokenFile(file, random_)
    journal._file, os.fsync = broken, broken.fsync
    try:
        for number in range(8):
            while True:
                before = seen(scorer)
                try:
                    changes.make(scorer, number)
                    break
                except PmdError as error:
                    if "Input/output error; " not in str(error) or seen(scorer) != before:
                        return f"a refused change is there, or not told rightly: {error}"
                broken.share = random_.choice((0.0, 0.3, 0.9))
            broken.share = random_.choice((0.0, 0.3, 0.9))
        broken.share = 1.0
        try:
            changes.make(scorer, 8)
        except PmdError:
            return ""
        return "a change was acknowledged that no call put on the disk"
    finally:
        journal._file, os.fsync = file, sync


class _BrokenFile:
    """A file whose writes, truncations and syncs fail for a share of calls; a write may put down a part before."""

    def __init__(self, file: Any, random_: random.Random) -> None:
        self._file, self._random, self.share = file, random_, 0.3

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: memoryview) -> int:
        """A part of it, all of it, or an error after a part."""
        written = self._file.write(data[: self._random.randrange(1, len(data) + 1)])
        self._fail()
        return written

    def truncate(self, size: int) -> int:
        """As the file's own, or an error."""
        self._fail()
        return self._file.truncate(size)

    def fsync(self, handle: int) -> None:
        """Nothing, or an error."""
        self._fail()

    def _fail(self) -> None:
        if self._random.random() < self.share:
            raise OSError(errno.EIO, os.strerror(errno.EIO))


class _PowerCut(BaseException):
    """Nothing after it is done."""


def _cut_off(scorer: Any, changes: Any, path: Path, random_: random.Random) -> str:
    """Make some changes, and cut the power before or after the sync of one of them."""
    sync, synced, left = os.fsync, path.read_bytes(), random_.randrange(1, 8)
    cut_before = random_.random() < 0.7

    def counted(handle: int) -> None:
        nonlocal synced, left
        left -= 1
        if left == 0 and cut_before:
            raise _PowerCut(path.read_bytes())
        sync(handle)
        synced = path.read_bytes()
        if left == 0:
            raise _PowerCut(synced)

    os.fsync = counted
    number, unsynced = 0, b""
    try:
        while True:
            changes.make(scorer, number)
            number += 1
    except _PowerCut as cut:
        unsynced = cut.args[0]
    finally:
        os.fsync = sync
    path.write_bytes(_after_cut(synced, unsynced, random_))
    return ""


def _after_cut(synced: bytes, written: bytes, random_: random.Random) -> bytes:
    """The file with some sectors of what was written and not synced, and its size anything between."""
    end = random_.choice((len(written), random_.randrange(len(synced), len(written) + 1)))
    data = bytearray(synced + bytes(end - len(synced)))
    for start in range(len(synced) // SECTOR_BYTES * SECTOR_BYTES, end, SECTOR_BYTES):
        stop = min(start + SECTOR_BYTES, end)
        if random_.random() < 0.6:
            data[max(start, len(synced)) : stop] = written[max(start, len(synced)) : stop]
    return bytes(data)


def many_writers(ground: Ground) -> Tally:
    """Processes that begin and change one journal at once, each again until it is let in."""
    from pmd.serving import Scorer
    from tests.tiny_bundle import ENTITIES, write_tiny_bundle

    tally, bundle = Tally(), write_tiny_bundle(ground.folder / "bundle")
    for number in range(ground.count):
        path, start = ground.folder / f"journal-{number}", ground.folder / f"start-{number}"
        children = []
        for process in range(PROCESSES):
            if (pid := os.fork()) == 0:
                ended = end_call(
                    partial(_write_in_turn, bundle, path, start, process), ground.folder / f"logs-{process}"
                )
                os._exit(ended.code if ended.code >= 0 else 1)
            children.append(pid)
        start.touch()
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        told = [
            line
            for process in range(PROCESSES)
            for line in (ground.folder / f"logs-{process}" / "stdout").read_text(encoding="utf-8").split()
        ]
        with Scorer.load(bundle, threads=1, journal=path) as scorer:
            there = scorer.entity_ids[len(ENTITIES) :]
        if any(codes) or sorted(told) != sorted(there) or len(there) != PROCESSES * CHANGES_EACH:
            tally.failed(f"journal {number}: exit codes {codes}, {len(told)} acknowledged, {len(there)} there")
        else:
            tally.saw("each change of each process is there once")
    return tally


def _write_in_turn(bundle: Path, path: Path, start: Path, process: int) -> None:
    import numpy as np

    from pmd.serving import Scorer
    from pmd.serving.journal import JournalError

    until = time.monotonic() + EXTRA_SECONDS
    while not start.exists():
        time.sleep(0.0005)
    made = 0
    while made < CHANGES_EACH and time.monotonic() < until:
        try:
            with Scorer.load(bundle, threads=1, journal=path) as scorer:
                for _ in range(2):
                    scorer.add_entity(f"p{process}-{made}", name=f"{process} {made}", vector=np.ones(16) + made)
                    os.write(1, f"p{process}-{made}\n".encode())
                    made += 1
        except JournalError as error:
            if "in use by another process" not in str(error):
                raise
            time.sleep(0.002)


ATTACKS = (
    Attack(
        "journal-edits",
        PART,
        "A journal cut at any byte, or with a byte flipped, set, put in or taken out anywhere: the changes of the "
        "whole lines before a cut, otherwise one line of refusal or nothing lost; a refused file stays as it is",
        journal_edits,
        quick=250,
        full=10_000,
    ),
    Attack(
        "journal-failing-disk",
        PART,
        "Writes that stop halfway, syncs and truncations of a journal that fail with EIO: a change is refused and "
        "not there, and what was acknowledged is there after all of it",
        failing_disk,
        quick=25,
        full=500,
    ),
    Attack(
        "journal-power-cut",
        PART,
        "A journal of which only what was synced is sure, and any sectors of the rest: what was acknowledged is "
        "there and at most one change more",
        power_cuts,
        quick=50,
        full=2_000,
    ),
    Attack(
        "journal-many-writers",
        PART,
        "Four processes that begin one journal at the same moment and change it in turn: each acknowledged change "
        "is there once",
        many_writers,
        quick=3,
        full=50,
    ),
)
