"""`pmd-data`: list, fetch, convert, split and check datasets."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from pmd.datasets.check import FATAL_KINDS
from pmd.datasets.layouts import WRITERS
from pmd.serving.command import HELP, Group, NumberRange, emit, show_progress
from pmd.serving.known import SPLIT_NAMES

GROUP_EXAMPLES = """\b
Examples:
  pmd-data list                                     what there is, here and to fetch
  pmd-data get kinship                              fetch a public dataset into the cache
  pmd-data convert graph.csv my-graph --to tsv      any layout into any other
  pmd-data split triples.tsv my-graph --seed 1      train, valid and test from one set of triples
  pmd-data check my-graph --html report.html        what to know before measuring
  pmd-data compare ours.jsonl theirs.jsonl          do two models differ, or is it chance?
"""
COMPARE_EXAMPLES = """\b
Examples:
  pmd-predict bundles/umls-pmd-grade-3-int8 --split test --out int8.jsonl
  pmd-predict bundles/umls-pmd-grade-3-fp32 --split test --out fp32.jsonl
  pmd-data compare int8.jsonl fp32.jsonl
"""
CONVERT_EXAMPLES = """\b
Examples:
  pmd-data convert umls umls-rdf --to turtle
  pmd-data convert SimKGC/data/WN18RR wn18rr --to tsv.xz
"""
SPLIT_EXAMPLES = """\b
Examples:
  pmd-data split triples.tsv my-graph
  pmd-data split my-graph my-unseen --inductive --seed 3
"""
CHECK_EXAMPLES = """\b
Examples:
  pmd-data check my-graph
  pmd-data check umls --html umls.html --json
  pmd-data check my-graph --allow unknown-ids
"""
CATALOGUE = click.option(
    "--catalogue", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE.yaml",
    help="Your own catalogue in place of the package's.",
)  # fmt: skip
QUIET = click.option("--quiet", is_flag=True, help="No progress or remarks on stderr.")


@click.group("pmd-data", cls=Group, context_settings=HELP, epilog=GROUP_EXAMPLES)
def main() -> None:
    """Datasets in and out: TSV, SimKGC, KG-BERT, CSV, Parquet, RDF or three bare columns."""


@main.command("list", epilog="\b\nExamples:\n  pmd-data list\n  PMD_DATA=../data pmd-data list --json")
@CATALOGUE
@click.option("--json", "only_json", is_flag=True, help="Print the JSON line alone.")
def list_datasets(catalogue: Path | None, only_json: bool) -> None:
    """List datasets by name: in PMD_DATA, in the package, fetched before, and to be fetched."""
    from pmd.datasets.listing import listing

    rows = listing(catalogue)
    if not only_json:
        width = max(len(row["name"]) for row in rows)
        for row in rows:
            click.echo(f"{row['name']:<{width}}  {row['where']:<10}  {row['about'] or row['path']}")
    emit({"schema": "pmd-data-list/1", "datasets": rows})


@main.command("get", epilog="\b\nExamples:\n  pmd-data get kinship\n  pmd-data get wn18rr --trust-first-download")
@click.argument("name")
@CATALOGUE
@click.option(
    "--trust-first-download", is_flag=True, help="Take files whose sha256 is not known; hold later fetches to them."
)
@click.option("--again", is_flag=True, help="Fetch it even if it is there.")
@click.option(
    "--timeout",
    type=NumberRange(min=0.1),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Longest wait for a server.",
)
@QUIET
def get(
    name: str, catalogue: Path | None, trust_first_download: bool, again: bool, timeout: float, quiet: bool
) -> None:
    """Fetch the public dataset NAME into the cache, every file checked against its sha256.

    A copy in PMD_DATA or in the package comes first. The cache is PMD_CACHE, or the platform's folder for caches.
    """
    from pmd.datasets.catalogue import load_catalogue
    from pmd.datasets.fetch import fetch, tidy
    from pmd.datasets.listing import entry_of
    from pmd.datasets.places import local_copy

    folder = None if again else local_copy(name)
    licence = None
    if folder is None:
        entry = entry_of(name, load_catalogue(catalogue))
        tick = _Ticker(show_progress(quiet))
        folder = fetch(entry, trust_first=trust_first_download, again=again, seconds=timeout, tick=tick)
        licence = entry.licence
    else:
        tidy(name)
    click.echo(f"{name} is in {folder}")
    emit({"schema": "pmd-data-get/1", "name": name, "path": str(folder), "licence": licence})


@main.command("convert", epilog=CONVERT_EXAMPLES)
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST", type=click.Path(path_type=Path))
@click.option("--to", "layout", type=click.Choice(list(WRITERS)), required=True, help="Layout of DST.")
@click.option("--flatten", is_flag=True, help="Write spaces for tabs and line breaks in texts.")
@click.option("--drop-texts", is_flag=True, help="Let the bare layout lose names and descriptions.")
@QUIET
def convert(source: str, target: Path, layout: str, flatten: bool, drop_texts: bool, quiet: bool) -> None:
    """Write the dataset SRC, a path or name, as the new folder DST in another layout.

    DST is read back and compared before it is put in place. A single file names no splits: it is split with seed 0
    (see split).
    """
    from pmd.datasets import load_graph
    from pmd.datasets.convert import convert as write

    with _remarks(quiet):
        graph = load_graph(source)
        write(graph, target, layout, flatten=flatten, drop_texts=drop_texts)
    click.echo(f"{source} is in {target} ({layout} layout)")
    emit({"schema": "pmd-data-convert/1", "path": str(target), "layout": layout, "counts": _counts(graph)})


@main.command("split", epilog=SPLIT_EXAMPLES)
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST", type=click.Path(path_type=Path))
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Which split of the many possible."
)
@click.option("--valid", type=float, default=0.1, show_default=True, help="Share of valid triples.")
@click.option("--test", type=float, default=0.1, show_default=True, help="Share of test triples.")
@click.option(
    "--inductive", is_flag=True, help="Hold out entities: each valid and test triple has one unseen in train."
)
@click.option(
    "--to", "layout", type=click.Choice(list(WRITERS)), default="tsv", show_default=True, help="Layout of DST."
)
@click.option("--flatten", is_flag=True, help="Write spaces for tabs and line breaks in texts.")
@QUIET
def split(
    source: str,
    target: Path,
    seed: int,
    valid: float,
    test: float,
    inductive: bool,
    layout: str,
    flatten: bool,
    quiet: bool,
) -> None:
    """Pool all triples of SRC, a path or name, and split them anew into the new folder DST.

    Every entity and relation of valid and test also stands in train, unless --inductive.
    """
    from pmd.datasets.convert import convert as write
    from pmd.datasets.layouts import read
    from pmd.datasets.places import find_dataset
    from pmd.datasets.splits import SplitRule, resplit

    rule = SplitRule(seed, valid, test, inductive)
    with _remarks(quiet):
        graph = resplit(read(find_dataset(source)).graph(), rule)
        write(graph, target, layout, flatten=flatten)
    counts = _counts(graph)
    click.echo(f"{target}: " + ", ".join(f"{counts[split]:,} {split}" for split in SPLIT_NAMES))
    emit({"schema": "pmd-data-split/1", "path": str(target), "rule": asdict(rule), "counts": counts})


@main.command("check", epilog=CHECK_EXAMPLES)
@click.argument("source", metavar="DIR")
@click.option(
    "--allow",
    type=click.Choice(list(FATAL_KINDS)),
    multiple=True,
    metavar="KIND",
    help=f"Let a fatal kind pass (repeatable): {', '.join(FATAL_KINDS)}.",
)
@click.option("--json", "only_json", is_flag=True, help="Print the JSON line alone.")
@click.option(
    "--html", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write a page with plots, too."
)
@click.option(
    "--encoder",
    metavar="NAME|DIR",
    help="Whose tokenizer counts tokens.  [default: all-MiniLM-L6-v2, where installed]",
)
def check(source: str, allow: tuple[str, ...], only_json: bool, html: Path | None, encoder: str | None) -> None:
    """Tell what to know of the dataset DIR, a path or name, before measuring on it.

    Ends with exit code 2 on what makes figures meaningless: test triples that stand in train or valid, or twice,
    triples that name unknown ids, files that are not those dataset.json tells of.
    """
    from pmd.datasets import check as checks
    from pmd.datasets import report as text
    from pmd.datasets.places import find_dataset
    from pmd.errors import DatasetError
    from pmd.serving.storage import write_atomic

    report = checks.check(find_dataset(source), _tokenizer(encoder), allow)
    if html:
        from pmd.datasets.page import render

        write_atomic(html, render(report).encode())
    if not only_json:
        for line in text.lines(report):
            click.echo(line)
    emit(report | {"html": str(html) if html else None})
    if not report["passed"]:
        raise DatasetError(checks.verdict(report))


@main.command("compare", epilog=COMPARE_EXAMPLES)
@click.argument("ours", type=click.Path(path_type=Path))
@click.argument("theirs", type=click.Path(path_type=Path))
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the resampling.")
def compare_predictions(ours: Path, theirs: Path, seed: int) -> None:
    """Compare two models by their predictions on the same test triples: a paired test of the MRR.

    OURS and THEIRS are files of `pmd-predict --split`.
    """
    from pmd.serving.predictions import compare, read_ranks

    found = compare(read_ranks(ours), read_ranks(theirs), seed=seed)
    low, high = found["interval"]
    click.echo(f"MRR {found['mrr']['ours']:.4f} against {found['mrr']['theirs']:.4f}")
    click.echo(
        f"difference {found['difference']:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}, "
        f"p = {found['p_value']:.4f}, {found['triples']:,} triples"
    )
    emit({"schema": "pmd-data-compare/1", "ours": str(ours), "theirs": str(theirs), "seed": seed, **found})


def _tokenizer(encoder: str | None) -> Any:
    """The tokenizer, or why there is none: an error where the user named one."""
    from pmd.datasets.encoders import DEFAULT_ENCODER, find_tokenizer
    from pmd.errors import EncoderError

    if encoder:
        return find_tokenizer(encoder)
    try:
        return find_tokenizer(DEFAULT_ENCODER)
    except EncoderError as error:
        return str(error)


def _counts(graph: Any) -> dict[str, int]:
    counts = {"entities": graph.num_entities, "relations": graph.num_relations}
    return counts | {name: len(graph.split(name)) for name in SPLIT_NAMES}


@contextmanager
def _remarks(quiet: bool) -> Iterator[None]:
    """Show what readers and splitters remark, on stderr, unless quiet."""
    logger = logging.getLogger("pmd.datasets")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("note: %(message)s"))
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(logging.NullHandler() if quiet else handler)
    try:
        yield
    finally:
        logger.propagate = propagate
        logger.handlers.clear()


class _Ticker:
    """Bytes fetched so far, on one line of stderr that is written over."""

    def __init__(self, shown: bool) -> None:
        self._shown = shown

    def __call__(self, done: int, whole: int | None) -> None:
        if self._shown:
            of = f" of {whole / 1e6:.1f}" if whole else ""
            click.echo(f"\r{done / 1e6:.1f}{of} MB ", nl=done == whole, err=True)


if __name__ == "__main__":
    main()
