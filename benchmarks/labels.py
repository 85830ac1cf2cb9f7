"""Where the labels of a plot go: beside each point, covering no other, and at round numbers of a log axis."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TypeAlias

Spot: TypeAlias = Sequence[float]
Box: TypeAlias = tuple[float, float, float, float]
"""Left, bottom, right, top."""

SIDES = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1))
"""Places around a point in order of preference: above, below, right, left, then the corners."""
POINT_RADIUS, GAP = 5.0, 4.0
LINE_RADIUS, LINE_STEP = 1.0, 4.0
WIDTH_RATIO = 0.62
"""Width of a character against the font's size, on the safe side for figures and small letters."""


def offsets(
    spots: Sequence[Spot], texts: Sequence[str], size: float, lines: Sequence[Sequence[Spot]] = ()
) -> list[tuple[float, float] | None]:
    """Middle of each label as an offset from its point; None where every place is taken.

    spots, lines, size and offsets are in points (1/72 inch). Points and lines come first to be kept free, then
    labels in the order given.
    """
    taken = [_around(spot, POINT_RADIUS) for spot in spots]
    taken += [_around(spot, LINE_RADIUS) for line in lines for spot in _along(line)]
    found: list[tuple[float, float] | None] = []
    for (x, y), text in zip(spots, texts, strict=True):
        width = WIDTH_RATIO * size * len(text)
        boxes = [_box(x, y, width, size, side) for side in SIDES]
        box = next((box for box in boxes if not any(_overlap(box, other) for other in taken)), None)
        found.append(None if box is None else ((box[0] + box[2]) / 2 - x, (box[1] + box[3]) / 2 - y))
        taken += [] if box is None else [box]
    return found


def round_numbers(low: float, high: float) -> list[float]:
    """Four to eight round numbers between `low` and `high`, both positive, denser where the range is narrow."""
    for steps in (
        (1,),
        (1, 3),
        (1, 2, 5),
        (1, 1.5, 2, 3, 4, 6, 8),
        tuple(1 + step / 4 for step in range(36)),
        tuple(1 + step / 50 for step in range(450)),
    ):
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [step * 10.0**power for power in powers for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 4:
            break
    return ticks[:: math.ceil(len(ticks) / 8)] if ticks else [low, high]


def _around(spot: Spot, radius: float) -> Box:
    return spot[0] - radius, spot[1] - radius, spot[0] + radius, spot[1] + radius


def _along(line: Sequence[Spot]) -> Iterator[Spot]:
    """Places every few points along a broken line."""
    for start, end in itertools.pairwise(line):
        count = max(1, round(math.dist(start, end) / LINE_STEP))
        for step in range(count + 1):
            share = step / count
            yield start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])


def _box(x: float, y: float, width: float, height: float, side: tuple[int, int]) -> Box:
    gap = POINT_RADIUS + GAP
    middle_x, middle_y = x + side[0] * (gap + width / 2), y + side[1] * (gap + height / 2)
    if all(side):  # a corner is further away than a side: come nearer
        middle_x, middle_y = middle_x - side[0] * GAP, middle_y - side[1] * GAP
    return middle_x - width / 2, middle_y - height / 2, middle_x + width / 2, middle_y + height / 2


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
