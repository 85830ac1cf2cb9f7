"""`kill -9` of `pmd-data get` and `pmd-data convert` at moments drawn at random."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.trust.attack import Attack, Ground, Tally
from tests.trust.killing import Ended, contents, delays, end_call, left_overs
from tests.trust.slow_server import serving

PART = "crashes"
WAIT_SECONDS = 0.004  # between pieces of 4 KiB: about 60 ms for each of three files
LAYOUTS = ("tsv.xz", "parquet", "simkgc", "nt", "tsv", "kgbert", "csv")
TRIPLES = b"".join(b"n%d\tnext\tn%d\n" % (number % 50, number % 49) for number in range(5000))


def kill_download(ground: Ground) -> Tally:
    """Kill it until the dataset is there; then fetch it again, over the old one or into an empty cache."""
    import_datasets()
    tally, log, random = Tally(), ground.folder / "asked", ground.random
    with serving(TRIPLES, WAIT_SECONDS, log) as address:
        fetching = _Fetching(ground.folder, address)
        undisturbed = fetching.get()
        if undisturbed.code:
            raise RuntimeError(f"fetching undisturbed failed: {undisturbed.last_words}")
        moments = delays(1.1 * undisturbed.seconds, random)
        while tally.cases < ground.count:
            for found, wrong in fetching.fetched(moments, ground.count - tally.cases, again=random.random() < 0.5):
                tally.failed(f"{found}: {wrong}") if wrong else tally.saw(found)
    starts = [int(line.split()[1]) for line in log.read_text(encoding="utf-8").splitlines()]
    tally.figures = {"requests": len(starts), "gone_on_with": sum(start > 0 for start in starts)}
    if ground.count >= 20 and not any(starts):
        tally.failed("no request went on where a killed one had stopped")
    return tally


class _Fetching:
    """A cache, and a catalogue with a dataset of three files: two with a known hash, one without."""

    def __init__(self, folder: Path, address: str) -> None:
        self._cache, self._logs, self._catalogue = folder / "cache", folder / "logs", folder / "catalogue.json"
        digest = hashlib.sha256(TRIPLES).hexdigest()
        files = [
            {"address": f"{address}/ranges", "sha256": digest, "bytes": len(TRIPLES), "save_as": "train.tsv"},
            {"address": f"{address}/once", "sha256": digest, "save_as": "valid.tsv"},
            {"address": f"{address}/chunked", "sha256": None, "save_as": "test.tsv"},
        ]
        about = {"about": "a ring", "licence": "CC0", "files": files, "counts": {"entities": 50, "train": 5000}}
        catalogue = {"schema": "pmd-data-catalogue/1", "datasets": {"ring": about}}
        self._catalogue.write_text(json.dumps(catalogue), encoding="utf-8")  # JSON is YAML
        self._dataset = self._cache / "datasets" / "ring"

    def get(self, *options: str, kill_after: float | None = None) -> Ended:
        """`pmd-data get` in a process of its own."""
        command = [
            "get",
            "ring",
            "--catalogue",
            str(self._catalogue),
            "--trust-first-download",
            "--quiet",
            *options,
        ]
        return end_call(lambda: self._main(command), self._logs, kill_after=kill_after)

    def fetched(self, moments: Iterator[float], most: int, *, again: bool) -> Iterator[tuple[str, str]]:
        """Kills, `most` or fewer, until the dataset is fetched: how each found it, and what is wrong.

        again: over the one that is there.
        """
        if not again:
            shutil.rmtree(self._cache, ignore_errors=True)
        options = ("--again",) if again else ()
        for made in range(most):
            ended = self.get(*options, kill_after=next(moments) if made < most - 1 else None)
            place = "the dataset" if self._dataset.exists() else "nothing"
            if not ended.killed:
                yield f"fetched after {min(made, 3)} kills{' or more' if made >= 3 else ''}", self._wrong(ended)
                return
            whole = _whole(self._dataset) if again or self._dataset.exists() else True
            yield f"killed with {place} in place", "" if whole else "it is not whole"

    def _wrong(self, ended: Ended) -> str:
        if ended.code or not _whole(self._dataset):
            return f"exit code {ended.code}, {ended.last_words}; whole: {_whole(self._dataset)}"
        waiting = self._dataset.parent / ".partial"
        left = [*self._dataset.parent.glob(".ring.partial-*"), *(waiting.iterdir() if waiting.is_dir() else ())]
        return f"left over: {left}" if left else ""

    def _main(self, command: list[str]) -> None:
        from pmd.datasets.cli import main

        os.environ["PMD_CACHE"] = str(self._cache)
        os.environ.pop("PMD_DATA", None)
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
            os.environ.pop(name, None)
        main(command, prog_name="pmd-data")


def _whole(dataset: Path) -> bool:
    files = contents(dataset) if dataset.is_dir() else {}
    return (
        set(files) == {"train.tsv", "valid.tsv", "test.tsv", "dataset.json"}
        and all(files[name] == TRIPLES for name in ("train.tsv", "valid.tsv", "test.tsv"))
        and files["dataset.json"].endswith(b"}\n")
    )


def kill_convert(ground: Ground) -> Tally:
    """Into each layout in turn."""
    from tests.tiny_encoder import write_graph

    import_datasets()
    source, logs = write_graph(ground.folder / "tiny"), ground.folder / "logs"
    wanted, lengths, random = {}, {}, ground.random
    for layout in LAYOUTS[: ground.count]:
        ended = _convert(source, ground.folder / "whole" / layout, layout, logs)
        wanted[layout] = contents(ground.folder / "whole" / layout)
        lengths[layout] = ended.seconds
    tally = Tally()
    for number in range(ground.count):
        layout, target = LAYOUTS[number % len(LAYOUTS)], ground.folder / "place" / "made"
        moment = random.uniform(0, 1.1 * lengths[layout])
        _convert(source, target, layout, logs, kill_after=moment)
        found = "whole" if target.exists() else "killed with nothing in place"
        wrong = []
        if target.exists():
            wrong += [] if contents(target) == wanted[layout] else ["the target is not whole"]
            shutil.rmtree(target)
        again = _convert(source, target, layout, logs)
        if again.code or contents(target) != wanted[layout]:
            wrong.append(f"then exit code {again.code}: {again.last_words}")
        wrong += [f"left over: {path.name}" for path in left_overs(target.parent)]
        where = f"{layout} after {moment * 1000:.1f} ms"
        tally.failed(f"{where}: {'; '.join(wrong)}") if wrong else tally.saw(f"{found}, then converted")
        shutil.rmtree(target.parent)
    return tally


def import_datasets() -> None:
    """Import here what each process would: they are to be killed in their work, not while they begin."""
    for name in ("cli", "convert", "fetch", "layouts", "columns", "rdf", "simkgc", "kgbert"):
        importlib.import_module(f"pmd.datasets.{name}")
    for name in ("pyarrow.parquet", "rdflib", "yaml"):
        importlib.import_module(name)


def _convert(source: Path, target: Path, layout: str, logs: Path, kill_after: float | None = None) -> Ended:
    def call() -> None:
        from pmd.datasets.cli import main

        main(["convert", str(source), str(target), "--to", layout, "--quiet"], prog_name="pmd-data")

    return end_call(call, logs, kill_after=kill_after)


ATTACKS = (
    Attack(
        "kill-download",
        PART,
        "`kill -9` of `pmd-data get` from a slow server, with and without ranges, lengths and known hashes: the "
        "dataset is whole or absent (with `--again`: whole), the next one goes on, and nothing is left over",
        kill_download,
        quick=12,
        full=100,
    ),
    Attack(
        "kill-convert",
        PART,
        "`kill -9` of `pmd-data convert` into each layout: the target is whole or absent, and the next conversion "
        "makes the same bytes and leaves nothing over",
        kill_convert,
        quick=4,
        full=100,
    ),
)
