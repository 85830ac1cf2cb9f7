"""Disks that are full, read-only or taken away while bundles, journals and datasets are written."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from pmd.serving.errors import PmdError
from tests.trust.attack import Attack, Ground, Tally
from tests.trust.full_disk import Disk, small_disk, why_no_disk
from tests.trust.killing import Ended, contents, end_call, left_overs

PART = "crashes"
DISK_BYTES = 1 << 20
TAKEN = ".taken"
NO_PROMISE = "not a PmdError: "
CURED = ("make room there", "choose a place that can be written", "removed meanwhile", "save the bundle and open")
"""What to do, as messages say it."""


def full_disk_save(ground: Ground) -> Tally:
    """Onto an older bundle, as a folder or a zip; then there is room again."""
    from pmd.serving import Scorer
    from tests.tiny_bundle import write_tiny_bundle
    from tests.trust.changing import Changes, seen

    tally, random_ = Tally(), ground.random
    scorer, changes = Scorer.load(write_tiny_bundle(ground.folder / "bundle"), threads=1), Changes(ground.seed)
    for number in range(5):
        changes.make(scorer, number)
    before, kinds = seen(scorer), ("folder", "bundle.zip")
    wanted = {name: _bytes(scorer.save(ground.folder / "whole" / name)) for name in kinds}
    needed_bytes = 3 * sum(len(data) for data in contents(ground.folder / "whole" / "folder").values())
    with small_disk(ground.folder / "disk", DISK_BYTES) as disk:
        for number in range(ground.count):
            target = disk.path / kinds[number % 2]
            _put_old(ground.folder / "bundle", target)
            old = _bytes(target)
            with _spoiled(disk, random_, needed_bytes) as how:
                told = _told(partial(scorer.save, target, replace=True))
                now = _bytes(target)
            wrong = _wrong_words(told)
            if told and now != old:
                wrong.append("the old one is not whole")
            if seen(scorer) != before:
                wrong.append("the Scorer answers otherwise")
            scorer.save(target, replace=True)
            if _bytes(target) != wanted[target.name] or left_overs(disk.path):
                wrong.append(f"saved afterwards it is not whole, or left over: {left_overs(disk.path)}")
            _count(tally, how, told, wrong)
            _clear(disk)
    return tally


def full_disk_live(ground: Ground) -> Tally:
    """Changes until they are refused, then the same again, then the disk is well; the journal is opened anew."""
    from tests.tiny_bundle import write_tiny_bundle

    tally, random_ = Tally(), ground.random
    bundle = write_tiny_bundle(ground.folder / "bundle")
    with small_disk(ground.folder / "disk", DISK_BYTES) as disk:
        for number in range(ground.count):
            graph = _Changing(bundle, disk.path / "deep" / "journal", ground.seed + number)
            how = random_.choice(("full", "full", "read-only", "taken away"))
            if how == "full":
                disk.fill(random_.randrange(1, 12_000))
                told, wrong = graph.refused(random_.randrange(3))
                disk.make_room()
            elif how == "taken away":
                graph.made(random_.randrange(5))
                os.rename(disk.path / "deep", disk.path / "elsewhere")
                told, wrong = graph.refused(random_.randrange(3))
                os.rename(disk.path / "elsewhere", disk.path / "deep")
            else:
                graph.made(random_.randrange(5))
                told, wrong = graph.opened_while(disk)
            graph.made(3)
            wrong += graph.reopened()
            _count(tally, how, told, wrong)
            _clear(disk)
    return tally


class _Changing:
    """A graph with a journal, and how many changes of a sequence were made to it."""

    def __init__(self, bundle: Path, journal: Path, seed: int) -> None:
        from pmd.serving import Scorer
        from tests.trust.changing import Changes

        self._bundle, self._journal, self._seed = bundle, journal, seed
        self._load = partial(Scorer.load, bundle, threads=1)
        self._scorer, self._changes = self._load(journal=journal), Changes(seed)
        self._made = 0

    def made(self, count: int) -> None:
        """Make the next changes."""
        for _ in range(count):
            self._changes.make(self._scorer, self._made)
            self._made += 1

    def refused(self, more: int) -> tuple[str, list[str]]:
        """Make changes until one is refused, and try that one some times more: what was told, and what is wrong."""
        from tests.trust.changing import changes_kept, seen

        told = ""
        while not told:
            before = seen(self._scorer)
            told = _told(partial(self._changes.make, self._scorer, self._made))
            self._made += not told
        wrong = _wrong_words(told)
        if not all(_told(partial(self._changes.make, self._scorer, self._made)) for _ in range(more)):
            wrong.append("the same change was refused and then made")
        if seen(self._scorer) != before or changes_kept(self._scorer) != self._made:
            wrong.append("a change that was refused is there")
        return told, wrong

    def opened_while(self, disk: Disk) -> tuple[str, list[str]]:
        """Open the journal on a read-only disk, and then again."""
        self._scorer.close()
        disk.read_only()
        told = _told(partial(self._load, journal=self._journal))
        disk.writable()
        self._scorer = self._load(journal=self._journal)
        return told, _wrong_words(told) if told else ["a journal that cannot be written was opened"]

    def reopened(self) -> list[str]:
        """What is wrong when the journal is opened again."""
        from tests.trust.changing import Changes, changes_kept, seen

        self._scorer.close()
        serial, changes = self._load(), Changes(self._seed)
        for number in range(self._made):
            changes.make(serial, number)
        try:
            with self._load(journal=self._journal) as again:
                same = changes_kept(again) == self._made and seen(again) == seen(serial)
        except PmdError as error:
            return [f"the journal does not open: {error}"]
        return [] if same else ["opened again, it is not what was acknowledged"]


def full_disk_datasets(ground: Ground) -> Tally:
    """`pmd-data convert` and `get` by their commands."""
    from tests.tiny_encoder import write_graph
    from tests.trust.kills_datasets import LAYOUTS, import_datasets

    import_datasets()
    source = write_graph(ground.folder / "tiny")
    catalogue = catalogue_of(ground.folder, source / "train.tsv")
    tally, random_ = Tally(), ground.random
    with small_disk(ground.folder / "disk", DISK_BYTES) as disk:
        for number in range(ground.count):
            layout = LAYOUTS[number // 2 % len(LAYOUTS)]
            target = disk.path / "made"
            command = ["convert", str(source), str(target), "--to", layout, "--quiet"]
            if number % 2:
                command = ["get", "one", "--catalogue", str(catalogue), "--trust-first-download", "--quiet"]
                target = disk.path / "datasets" / "one"
            with _spoiled(disk, random_, 8192) as how:
                ended = _data_command(command, disk.path, ground.folder / "logs")
                there = target.exists()
            words = ended.stderr.strip()
            wrong = [] if ended.code == 0 else _wrong_words(words.removeprefix("error: "))
            if ended.code not in (0, 2) or (ended.code == 2 and not words.startswith("error: ")):
                wrong.append(f"exit code {ended.code}: {ended.last_words}")
            if there and ended.code:
                wrong.append("the target is there though it failed")
            again = ended if ended.code == 0 else _data_command(command, disk.path, ground.folder / "logs")
            if again.code or not target.is_dir() or left_overs(disk.path):
                wrong.append(f"then exit code {again.code}: {again.last_words}, {left_overs(disk.path)}")
            _count(tally, f"{command[0]}, {how}", words if ended.code else "", wrong)
            _clear(disk)
    return tally


@contextlib.contextmanager
def _spoiled(disk: Disk, random_: random.Random, needed_bytes: int) -> Iterator[str]:
    """A disk that fills somewhere within what is needed, is read-only, or loses the unfinished; then it is well."""
    how = random_.choice(("full", "full", "read-only", "taken away"))
    remover = 0
    if how == "full":
        disk.fill(random_.randrange(needed_bytes))
    elif how == "read-only":
        disk.read_only()
    else:
        remover = _take_away(disk.path, random_.uniform(0.0, 0.05))
    try:
        yield how
    finally:
        if how == "read-only":
            disk.writable()
        disk.make_room()
        if remover:
            os.waitpid(remover, 0)
            shutil.rmtree(disk.path / TAKEN, ignore_errors=True)


def _take_away(folder: Path, after_seconds: float) -> int:
    """Begin a process that moves away what is unfinished below a folder, at one moment; its id."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(OSError):
            time.sleep(after_seconds)
            (folder / TAKEN).mkdir()
            for place in [path for path in folder.rglob(".*") if ".partial" in path.name]:
                os.rename(place, folder / TAKEN / place.name)
        os._exit(0)
    return pid


def _told(call: Callable[[], object]) -> str:
    """What a call says that fails; "" if it does not."""
    try:
        call()
    except PmdError as error:
        return str(error)
    except Exception as error:  # what must not be: the attack tells which
        return f"{NO_PROMISE}{type(error).__name__}: {error}"
    return ""


def _wrong_words(told: str) -> list[str]:
    """What is wrong with a message."""
    if not told or (any(cure in told for cure in CURED) and "\n" not in told and NO_PROMISE not in told):
        return []
    return [f"not one line with what to do: {told}"]


def _count(tally: Tally, how: str, told: str, wrong: list[str]) -> None:
    if wrong:
        tally.failed(f"{how}: {'; '.join(wrong)}")
    else:
        tally.saw(f"{how}: told in a line" if told else f"{how}: enough was there")


def _bytes(target: object) -> dict[str, bytes] | bytes | None:
    path = Path(str(target))
    if path.is_dir():
        return contents(path)
    return path.read_bytes() if path.exists() else None


def _put_old(bundle: Path, target: Path) -> None:
    shutil.copytree(bundle, target) if target.suffix != ".zip" else target.write_bytes(b"an older file")


def _clear(disk: Disk) -> None:
    for path in disk.path.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def catalogue_of(folder: Path, file: Path) -> Path:
    """Write a catalogue with one dataset, `one`, of one local file without a known hash."""
    source = {"address": file.as_uri(), "sha256": None, "save_as": "train.tsv"}
    about = {"about": "one file", "licence": "CC0", "files": [source]}
    path = folder / "catalogue.json"
    path.write_text(json.dumps({"schema": "pmd-data-catalogue/1", "datasets": {"one": about}}), encoding="utf-8")
    return path


def _data_command(command: list[str], cache: Path, logs: Path) -> Ended:
    def call() -> None:
        from pmd.datasets.cli import main

        os.environ["PMD_CACHE"] = str(cache)
        os.environ.pop("PMD_DATA", None)
        main(command, prog_name="pmd-data")

    return end_call(call, logs)


ATTACKS = (
    Attack(
        "full-disk-save",
        PART,
        "`Scorer.save` onto a disk that fills, is read-only, or loses the unfinished folder: one line with what to "
        "do, the old bundle whole, the Scorer answers as before, and saving works when the disk does",
        full_disk_save,
        quick=20,
        full=300,
        skip=why_no_disk,
    ),
    Attack(
        "full-disk-live",
        PART,
        "Changes with a journal on a disk that fills, is read-only, or loses the journal's folder: refused in one "
        "line and not shown; when the disk is well changes go on, and all that was acknowledged is there",
        full_disk_live,
        quick=12,
        full=200,
        skip=why_no_disk,
    ),
    Attack(
        "full-disk-datasets",
        PART,
        "`pmd-data get` and `convert` onto such disks: exit code 2 and one line, nothing half-written, and the "
        "same command works when the disk does",
        full_disk_datasets,
        quick=8,
        full=200,
        skip=why_no_disk,
    ),
)
