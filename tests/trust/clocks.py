"""A wall clock that jumps back and ahead while bundles are saved, graphs changed and datasets written."""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

from tests.trust.attack import Attack, Ground, Tally
from tests.trust.killing import contents, end_call

PART = "crashes"
JUMP_SECONDS = 40 * 365 * 86_400.0
FILES = ("saved", "saved.zip", "made", "cache", "seen")
"""What each life leaves; a journal's name for itself is drawn anew each time, so it is told by what it makes."""


def clock_jumps(ground: Ground) -> Tally:
    """Lives with a clock that shows any time of eighty years at each look, against one with a steady clock."""
    from tests.tiny_bundle import write_tiny_bundle
    from tests.tiny_encoder import write_graph
    from tests.trust.kills_datasets import import_datasets

    import_datasets()
    write_tiny_bundle(ground.folder / "bundle")
    write_graph(ground.folder / "tiny")
    tally, random_ = Tally(), ground.random
    steady = _life(ground.folder, None)
    if isinstance(steady, str):
        raise RuntimeError(f"with a steady clock: {steady}")
    for _ in range(ground.count):
        seed = random_.randrange(1 << 30)
        found = _life(ground.folder, seed)
        if found != steady:
            why = found if isinstance(found, str) else [name for name in steady if found.get(name) != steady[name]]
            tally.failed(f"clock {seed}: {why}")
        else:
            tally.saw("the same bytes")
    return tally


def _life(folder: Path, seed: int | None) -> dict[str, object] | str:
    """The files that a life leaves, by name; or what went wrong."""
    place = folder / "place"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for call in (_serve, _convert, _get):
        ended = end_call(lambda call=call: _with_clock(call, folder, place, seed), folder / "logs")
        if ended.code:
            return f"{call.__name__} ended with {ended.code}: {ended.last_words}"
    return {
        name: contents(place / name) if (place / name).is_dir() else (place / name).read_bytes() for name in FILES
    }


def _with_clock(call: object, folder: Path, place: Path, seed: int | None) -> None:
    if seed is not None:
        random_, now = random.Random(seed), time.time
        time.time = lambda: max(0.0, now() + random_.uniform(-JUMP_SECONDS, JUMP_SECONDS))
        time.time_ns = lambda: int(time.time() * 1e9)
    if callable(call):
        call(folder, place)


def _serve(folder: Path, place: Path) -> None:
    from pmd.serving import Scorer
    from tests.trust.changing import Changes, seen

    changes = Changes(3)
    for lot in range(3):
        with Scorer.load(folder / "bundle", threads=1, journal=place / "journal") as scorer:
            for number in range(4 * lot, 4 * lot + 4):
                changes.make(scorer, number)
    with Scorer.load(folder / "bundle", threads=1, journal=place / "journal") as scorer:
        (place / "seen").write_text(repr(seen(scorer)), encoding="utf-8")
    scorer = Scorer.load(folder / "bundle", threads=1)
    for number in range(12):
        changes.make(scorer, number)
    scorer.save(place / "saved")
    scorer.save(place / "saved", replace=True)
    scorer.save(place / "saved.zip")


def _convert(folder: Path, place: Path) -> None:
    from pmd.datasets.cli import main

    main(["convert", str(folder / "tiny"), str(place / "made"), "--to", "parquet", "--quiet"], prog_name="pmd-data")


def _get(folder: Path, place: Path) -> None:
    from pmd.datasets.cli import main
    from tests.trust.disks_serving import catalogue_of

    os.environ["PMD_CACHE"] = str(place / "cache")
    os.environ.pop("PMD_DATA", None)
    catalogue = catalogue_of(place, folder / "tiny" / "train.tsv")
    main(
        ["get", "one", "--catalogue", str(catalogue), "--trust-first-download", "--quiet"],
        prog_name="pmd-data",
    )


ATTACKS = (
    Attack(
        "clock-jumps",
        PART,
        "A wall clock that shows another time of eighty years at each look, while a graph is changed and saved and "
        "datasets are fetched and converted: the same bytes",
        clock_jumps,
        quick=1,
        full=50,
    ),
)
