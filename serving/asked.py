"""What a caller gave, checked before it is used: a value of a wrong kind or out of range is a QueryError."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Set
from typing import Any

import numpy as np

from pmd.serving.errors import QueryError

SHOWN = 60  # characters of a wrong value in a message
MOST_THREADS = 1024  # far above any device that a bundle is for; 100,000 threads stop the process for minutes
TEXTS = (str, bytes, bytearray, memoryview)
NOT_LISTS = (*TEXTS, Mapping, Set)
"""What has a length and is no list of ids: texts, bytes, and what has no order of its own."""


def whole_number(value: object, name: str, *, least: int = 1) -> int:
    """`value` as an int, from `least` on. Raises QueryError for anything but a whole number, True and False too."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None:
        raise QueryError(f"{name} must be a whole number, got {shown(value)}")
    if number < least:
        raise QueryError(f"{name} must be {least} or more, got {shown(number)}")
    return number


def flag(value: object, name: str) -> bool:
    """`value` as a bool. Raises QueryError for what is neither True nor False: "no" would count as true."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise QueryError(f"{name} must be True or False, got {shown(value)}")


def listed(given: object, what: str, *, ordered: bool = True) -> list[Any]:
    """The items of a list, tuple or row of an array, or, if the order says nothing, of a set or a mapping's keys.

    Raises QueryError, which begins with `what`, for anything else.
    """
    if not isinstance(given, NOT_LISTS if ordered else TEXTS) and hasattr(given, "__len__"):
        try:
            items: list[Any] = list(given)  # type: ignore[call-overload]
            return items
        except TypeError:  # a class, or an array without a row
            pass
    raise QueryError(f"{what}; got {type(given).__name__} {shown(given)}")


def thread_count(threads: object) -> int:
    """A number of threads from 1 to MOST_THREADS. Raises QueryError."""
    count = whole_number(threads, "threads")
    if count > MOST_THREADS:
        raise QueryError(f"threads must be {MOST_THREADS} at most, got {shown(count)}")
    return count


def shown(value: object) -> str:
    """The beginning of a value, on one line."""
    try:
        text = repr(value)
    except Exception:  # of the caller's own class
        return "something that cannot be shown"
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"
