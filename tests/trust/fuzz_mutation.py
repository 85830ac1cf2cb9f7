"""Changed inputs: bytes that were flipped, cut and spliced, and JSON trees with other values, keys and depths."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

ODD_TEXTS = (
    "",
    " ",
    "\t",
    "\n",
    "\r\n",
    "\x00",
    "\x1b[31m",
    "\x85",
    "\u2028",
    "\ud800",
    "\udcff",
    "\ufeff",
    "\u202e",
    "\u200b",
    "\u0301",
    "👩‍👩‍👧",
    "ﬁ",
    "İ",
    "ß",
    "..",
    "../x",
    "/etc/passwd",
    "C:\\x",
    "{name}",
    "{",
    "{x}",
    "null",
    "1e999",
    "a" * 5000,
    "́" * 300,
)
ODD_NUMBERS = (
    0,
    -1,
    1,
    2,
    7,
    255,
    2**31,
    2**32,
    2**63 - 1,
    2**63,
    -(2**63),
    10**30,
    10**400,
    0.5,
    -0.0,
    1e308,
    5e-324,
)
ODD_VALUES: tuple[Any, ...] = (None, True, False, [], {}, [[]], {"": {}}, [None], *ODD_NUMBERS, *ODD_TEXTS)
ODD_BYTES = (
    *(bytes([value]) for value in b"\x00\t\n\r\"'\\{}[]<>,:;|&*!%@#-+._/ \x7f\x80\xc0\xff"),
    *(
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
        b"\xf0\x9f\x98\x80",
        b"\r\n",
        b"PK\x03\x04",
        b"\x93NUMPY",
        b"NaN",
        b"1e999",
    ),
    *(b"\\ud800", b"-1", b"4294967296", b"9223372036854775808", b"null", b"!!python/object:x", b"@prefix"),
)
DEPTHS = (50, 2000, 100_000)
MOST_BYTES = 1 << 16


def mutated(rng: random.Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """`data` changed in one to four places."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        data = rng.choice(CHANGES)(rng, data, others)
    return data[:MOST_BYTES]


def _flipped(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    if not data:
        return rng.randbytes(1)
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]


def _replaced(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    start, end = _span(rng, data)
    return data[:start] + rng.randbytes(end - start) + data[end:]


def _inserted(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    place = rng.randrange(len(data) + 1)
    return data[:place] + rng.choice(ODD_BYTES) * rng.choice((1, 1, 1, 2, 50)) + data[place:]


def _deleted(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    start, end = _span(rng, data)
    return data[:start] + data[end:]


def _doubled(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    start, end = _span(rng, data)
    return data[:end] + data[start:end] * rng.choice((1, 1, 3)) + data[end:]


def _cut(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _spliced(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    other = rng.choice(others) if others else data
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def _swapped_lines(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    lines = data.splitlines(keepends=True)
    if len(lines) < 2:
        return data
    one, two = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[one], lines[two] = lines[two], lines[one]
    return b"".join(lines)


CHANGES: tuple[Callable[[random.Random, bytes, Sequence[bytes]], bytes], ...] = (
    _flipped,
    _replaced,
    _inserted,
    _inserted,
    _deleted,
    _doubled,
    _cut,
    _spliced,
    _swapped_lines,
)


def _span(rng: random.Random, data: bytes) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.choice((1, 2, 4, 16, 200)))


def mutated_tree(rng: random.Random, tree: Any) -> Any:
    """A copy of a JSON tree with one to three values, keys or items changed, dropped, moved or added."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        tree = _changed_once(rng, tree)
    return tree


def tree_bytes(rng: random.Random, tree: Any) -> bytes:
    """A mutated tree as JSON, now and then nested so deeply that no parser should follow it."""
    text = json.dumps(mutated_tree(rng, tree), ensure_ascii=rng.random() < 0.5, allow_nan=True)
    if rng.random() < 0.01:
        depth, (left, right) = rng.choice(DEPTHS), rng.choice((("[", "]"), ('{"a":', "}")))
        text = text.replace("null", left * depth + "0" + right * depth, 1)
    return text.encode("utf-8", "surrogatepass")


def odd_value(rng: random.Random, depth: int = 0) -> Any:
    """Any JSON value, odd ones above all; NaN and infinity, which only Python writes, among them."""
    kind = rng.random()
    if kind < 0.05:
        return rng.choice((float("nan"), float("inf"), float("-inf")))
    if kind < 0.12 and depth < 3:
        return [odd_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind < 0.2 and depth < 3:
        return {rng.choice(ODD_TEXTS): odd_value(rng, depth + 1) for _ in range(rng.randrange(3))}
    return copy.copy(rng.choice(ODD_VALUES))


def _changed_once(rng: random.Random, tree: Any) -> Any:
    places = list(_places(tree))
    if not places or rng.random() < 0.01:
        return odd_value(rng)
    holder, key = rng.choice(places)
    action = rng.random()
    if action < 0.5:
        holder[key] = odd_value(rng)
    elif action < 0.65:
        del holder[key]
    elif action < 0.8:
        other, place = rng.choice(places)
        try:
            holder[key] = copy.deepcopy(other[place])
        except (KeyError, IndexError):
            holder[key] = None
    elif isinstance(holder, dict):
        holder[rng.choice(ODD_TEXTS) if rng.random() < 0.7 else str(key) + "x"] = holder.pop(key)
    else:
        holder.insert(rng.randrange(len(holder) + 1), odd_value(rng))
    return tree


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Where every value of a tree stands: its holder and its key or index."""
    found, left = [], [tree]
    while left:
        holder = left.pop()
        keys = holder if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        for key in keys:
            found.append((holder, key))
            left.append(holder[key])
    return found
