"""Sides that take turns on the same questions; one that fails drops out, and the others go on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

from pmd.benchmarks.case import Answer
from pmd.benchmarks.errors import MeasureError
from pmd.benchmarks.side_process import SideProcess

ROUNDS, LONGEST_TURN, SHORTEST_TURN = 20, 50, 5
"""Rounds to have if there are questions enough; questions of a turn, enough to warm the caches again."""
WARMUP = 50
COMPARED = 50
"""Questions whose ten best are compared."""


class Rounds(NamedTuple):
    """What came of it, by the side's name. A side is in `turns` and `tops`, or in `failed`."""

    turns: dict[str, list[Answer]]
    tops: dict[str, list[list[str]]]
    failed: dict[str, str]


def take_rounds(
    requests: Mapping[str, Mapping[str, Any]],
    *,
    command: Sequence[str],
    environment: Mapping[str, str],
    questions: int,
    limit_s: float,
) -> Rounds:
    """Start every side, warm each up, and ask all of them every question, who begins changing every round.

    The first side is the one that the others are compared with. Raises MeasureError if it fails; another that
    fails, or takes longer than `limit_s` for one answer, is in `failed` with its reason.
    """
    names = list(requests)
    found = Rounds({name: [] for name in names}, {}, {})
    with ExitStack() as stack:
        processes = {
            name: stack.enter_context(
                SideProcess([*command, json.dumps(requests[name])], environment=environment, limit_s=limit_s)
            )
            for name in names
        }
        ask = partial(_asked, processes, names[0], found.failed)
        for name in names:
            ask(name, None)
        for name in names:
            ask(name, {"first": 0, "last": min(WARMUP, questions)})
        for number, (first, last) in enumerate(turns_of(questions)):
            for name in rotated(names, number):
                found.turns[name] += ask(name, {"first": first, "last": last})
        for name in names:
            found.tops[name] = [top for told in ask(name, {"top": min(COMPARED, questions)}) for top in told["top"]]
    for name in found.failed:
        del found.turns[name], found.tops[name]
    return found


def _asked(
    processes: Mapping[str, SideProcess],
    own: str,
    failed: dict[str, str],
    name: str,
    order: Mapping[str, int] | None,
) -> list[Answer]:
    """A side's answer to an order, or without one that it is ready; none once it has failed.

    Raises MeasureError where the side `own` fails.
    """
    if name in failed:
        return []
    try:
        return [processes[name].answer() if order is None else processes[name].ask(order)]
    except MeasureError as error:
        if name == own:
            raise
        failed[name] = str(error)
        processes[name].end()
        return []


def turns_of(questions: int) -> list[tuple[int, int]]:
    """First and last (exclusive) question of every round: about ROUNDS of them, in turns neither short nor long."""
    turn = min(LONGEST_TURN, max(SHORTEST_TURN, questions // ROUNDS))
    return [(first, min(first + turn, questions)) for first in range(0, questions, turn)]


def rotated(names: Sequence[str], number: int) -> list[str]:
    """The order of a round."""
    start = number % len(names)
    return [*names[start:], *names[:start]]
