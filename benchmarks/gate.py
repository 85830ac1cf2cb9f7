"""Conditions on which a bench or a comparison fails: `mrr_kept<0.995`, `query_ms.p50>+10%`.

condition := key operator limit
operator  := "<" | "<=" | ">" | ">=" | "==" | "!="
limit     := number               the figure itself
           | sign number "%"      its change from the first report to the second, in percent of the first
number    := digits ["." digits] ["e" [sign] digits], with a sign before it if need be

The key is the dotted path of a figure in a result of report.json. A condition says what must not be; a figure
that is unknown fails as well, because nothing can be promised of it.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from pmd.benchmarks.case import Row
from pmd.benchmarks.errors import BenchError
from pmd.benchmarks.figures import check_key, flat
from pmd.benchmarks.schema import finite

Judged: TypeAlias = tuple[str, list[str]]
"""A bundle's name, which others may have too, and why it fails; it passes where there is no reason."""

Change: TypeAlias = tuple[float | None, str]
"""Percent and what to remark on it; None, and why, where it is unknown."""

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}
GRAMMAR = re.compile(
    r"\s*(?P<key>[^<>=!]*?)\s*(?P<operator>[<>]=?|[=!]=)\s*"
    r"(?P<sign>[+-]?)(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(?P<percent>%?)\s*",
    re.ASCII,
)
EXAMPLES = "write it like mrr_kept<0.995, query_ms.p50>2 or bundle_bytes>40e6"


@dataclass(frozen=True)
class Condition:
    """What must not be true of a bundle."""

    text: str
    """As the user wrote it."""
    key: str
    operator: str
    limit: float
    """Of the figure; of a change, in percent."""
    is_change: bool

    def holds(self, value: float) -> bool:
        """Whether the value is one that fails."""
        return OPERATORS[self.operator](value, self.limit)


def parse(text: str, *, changes: bool = False) -> Condition:
    """The condition that a user wrote.

    changes: whether there are two reports. Raises BenchError for what is no condition, for a figure that no
    report has, and for a change where there is one report alone.
    """
    found = GRAMMAR.fullmatch(text)
    if not found or not found["key"]:
        raise BenchError(f"--fail-if {text!r} is no condition; {EXAMPLES}")
    percent, sign = bool(found["percent"]), found["sign"]
    if percent and not changes:
        raise BenchError(f"--fail-if {text!r} is about a change, which takes two reports: pmd-bench compare A B")
    if percent and not sign:
        raise BenchError(
            f"--fail-if {text!r} is unclear: write a change with its sign (+10%), a share as a number (0.1)"
        )
    try:
        check_key(found["key"])
    except BenchError as error:
        raise BenchError(f"--fail-if {text!r}: {error}") from error
    limit = float(sign + found["number"])
    if not finite(limit):
        raise BenchError(f"--fail-if {text!r}: {found['number']} is too large a number; {EXAMPLES}")
    return Condition(text.strip(), found["key"], found["operator"], limit, percent)


def reasons(row: Row, conditions: Iterable[Condition], changes: Mapping[str, Change] | None = None) -> list[str]:
    """Why a bundle fails, in words, one for each condition that it fails; a failed row has its error for all.

    changes: by key, where there are two reports.
    """
    if row["error"] is not None:
        return [f"could not be measured: {row['error']}"]
    values = flat(row)
    found = []
    for condition in conditions:
        value, remark = values.get(condition.key), ""
        if condition.is_change:
            value, remark = (changes or {}).get(condition.key, (None, ""))
        if value is None:
            found.append(f"{condition.text}: {remark or 'unknown'}, so it counts as failed")
        elif condition.holds(value):
            found.append(f"{condition.text}: it is {_shown(value, condition)}{remark}")
    return found


def verdict(conditions: Sequence[Condition], judged: Sequence[Judged]) -> dict[str, Any]:
    """What the gate found, for the JSON object that ends stdout."""
    return {
        "conditions": [condition.text for condition in conditions],
        "bundles": len(judged),
        "failed": [{"bundle": name, "why": why} for name, why in judged if why],
    }


def lines(found: Mapping[str, Any] | None) -> list[str]:
    """One line for each bundle that fails, of what `verdict` gave; none without conditions."""
    return [f"gate: {failed['bundle']}: {'; '.join(failed['why'])}" for failed in (found or {}).get("failed", [])]


def _shown(value: float, condition: Condition) -> str:
    return f"{value:+.4g} %" if condition.is_change else f"{value:.10g}"
