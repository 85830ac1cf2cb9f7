"""A check's report as lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pmd.datasets.leaks import HELD_OUT
from pmd.serving.known import SPLIT_NAMES

Report = dict[str, Any]
UNKNOWN = "-"
SHOWN_RELATIONS = 10


def lines(report: Report) -> Iterator[str]:
    """The report for people."""
    counts = report["counts"]
    yield f"{report['dataset']} ({report['layout']} layout, {report['path']})"
    if rule := report["split_made"]:
        yield f"split with seed {rule['seed']}: the source names no splits"
    yield ", ".join(f"{counts[what]:,} {what}" for what in ("entities", "relations", *SPLIT_NAMES))
    yield ""
    yield from _split_table(report)
    yield ""
    yield from _texts(report)
    yield from _degrees(report["degrees"])
    yield ""
    yield from _relations(report["relations"])
    yield ""
    yield from _problems(report["problems"])


def percent(share: float | None) -> str:
    """A share as per cent with one decimal."""
    return UNKNOWN if share is None else f"{share:.1%}"


def number(value: float | None) -> str:
    """A figure without needless decimals."""
    return UNKNOWN if value is None else f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def split_rows(report: Report) -> list[tuple[str, str, str]]:
    """Name, valid and test of every figure that is told for both."""
    shares = (
        ("reversed in train, any relation", "reversed"),
        ("reversed in train, same relation", "reversed_same_relation"),
        ("same pair in train", "same_pair"),
    )
    rows = [(name, *(percent(report["leakage"][split][key]) for split in HELD_OUT)) for name, key in shares]
    for name, key in (
        ("entities unseen in train", "entities"),
        ("triples with such an entity", "triples"),
        ("relations unseen in train", "relations"),
    ):
        rows.append((name, *(f"{report['unseen'][split][key]:,}" for split in HELD_OUT)))
    rows.append(
        ("triples in train as well", *(f"{report['overlaps'][f'{split}_in_train']:,}" for split in HELD_OUT))
    )
    rows.append(("triples in valid as well", UNKNOWN, f"{report['overlaps']['test_in_valid']:,}"))
    rows.append(("triples there twice", *(f"{report['repeated'][split]:,}" for split in HELD_OUT)))
    return [(name, valid, test) for name, valid, test in rows]


def _split_table(report: Report) -> Iterator[str]:
    yield f"{'':<36}{'valid':>9}{'test':>9}"
    for name, valid, test in split_rows(report):
        yield f"{name:<36}{valid:>9}{test:>9}"


def _texts(report: Report) -> Iterator[str]:
    told = report["descriptions"]
    words = told["words"]
    yield (
        f"descriptions: {told['missing']:,} missing; words median {number(words['median'])}, "
        f"95 % up to {number(words['p95'])}, longest {number(words['max'])}; {told['over_limit']:,} have more "
        f"words than a text may have tokens"
    )
    if tokens := report["tokens"]:
        sampled = f" (of a sample of {tokens['texts']:,})" if tokens["sampled"] else ""
        yield (
            f"tokens of an entity text{sampled}: median {number(tokens['median'])}, 95 % up to "
            f"{number(tokens['p95'])}; {tokens['over_limit']:,} ({percent(tokens['over_limit_share'])}) are cut "
            f"at {tokens['limit']}"
        )
    else:
        yield f"tokens of an entity text: not counted ({report['tokens_missing']})"


def _degrees(degrees: Report) -> Iterator[str]:
    yield (
        f"training triples of an entity: median {number(degrees['median'])}, mean {number(degrees['mean'])}, "
        f"95 % up to {number(degrees['p95'])}, most {number(degrees['max'])}; {degrees['isolated']:,} have none"
    )


def _relations(relations: list[Report]) -> Iterator[str]:
    """The relations with most training triples."""
    shown = sorted(relations, key=lambda row: -row["train"])[:SHOWN_RELATIONS]
    width = max((len(row["relation"][:50]) for row in shown), default=8)
    yield f"{'relation':<{width}}  {'train':>9}{'valid':>9}{'test':>9}{'reversed':>10}"
    for row in shown:
        figures = "".join(f"{row[split]:>9,}" for split in SPLIT_NAMES)
        yield f"{row['relation'][:50]:<{width}}  {figures}{percent(row['reversed']):>10}"
    if len(relations) > len(shown):
        yield f"and {len(relations) - len(shown):,} more relations"


def _problems(problems: list[Report]) -> Iterator[str]:
    if not problems:
        yield "nothing to remark"
    for found in problems:
        mark = ("allowed" if found["allowed"] else "FATAL") if found["fatal"] else "note"
        yield f"{mark:<8} {found['kind']}: {found['message']}"
