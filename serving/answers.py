"""What a question comes with and what comes back: how it is meant, its checks, and what is wanted for it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from pmd.serving.errors import QueryError
from pmd.serving.known import IntArray
from pmd.serving.rows import cell
from pmd.serving.search import Found, Wish
from pmd.serving.snapshot import NONE, Question, Snapshot

Among: TypeAlias = Collection[str] | Callable[[str], bool]
"""Who may be an answer: ids or names, or a predicate that is asked about every id."""


class Prediction(NamedTuple):
    """One answer. entity: its id; name: as people read it; score: cosine of question and answer, -1 to 1."""

    entity: str
    name: str
    score: float


class How(NamedTuple):
    """How a question is meant. hops and weight: of re-ranking, 0 without."""

    inverse: bool
    is_text: bool
    exclude_known: bool
    hops: int = 0
    weight: float = 0.0


def wish_of(state: Snapshot, question: Question, k: int, how: How, allowed: IntArray | None) -> Wish:
    """What to search for."""
    return Wish(
        k,
        excluded=state.known_answers(question) if how.exclude_known else None,
        allowed=allowed,
        nearer=state.within(question, how.hops) if how.hops else None,
        weight=how.weight,
    )


def predictions(state: Snapshot, found: Found) -> list[Prediction]:
    """What was found, by id and name."""
    rows = state.rows
    return [
        Prediction(cell(rows, index, 0), cell(rows, index, 1), score)
        for index, score in zip(found[0].tolist(), found[1].tolist(), strict=True)
    ]


def allowed_of(state: Snapshot, among: Among | None) -> IntArray | None:
    """Indices of the entities that may be answers, rising; None for all. Raises UnknownEntity, QueryError."""
    if among is None:
        return None
    if callable(among):
        gone = set(state.fresh.gone.tolist())
        places = (index for index in range(len(state.rows)) if index not in gone)
        chosen = [index for index in places if among(cell(state.rows, index, 0))]
    elif isinstance(among, Collection) and not isinstance(among, str | bytes):
        chosen = [state.entities.find(key) for key in among]
    else:
        raise QueryError(f"among is a list of ids, or a function of an id, got {type(among).__name__}")
    return np.unique(np.array(chosen, dtype=np.int64)) if chosen else NONE


def paired(keys: str | Sequence[str], relations: str | Sequence[str]) -> list[tuple[str, str]]:
    """Each entity with its relation; a single one of either serves all of the other."""
    for given in (keys, relations):
        if not hasattr(given, "__len__"):
            raise QueryError(f"give ids, names or texts, one or a list of them; got {type(given).__name__}")
    if isinstance(keys, str):
        keys = [keys] * (1 if isinstance(relations, str) else len(relations))
    if isinstance(relations, str):
        relations = [relations] * len(keys)
    if len(keys) != len(relations):
        raise QueryError(f"{len(keys)} entities and {len(relations)} relations; give one relation, or one for each")
    return list(zip(keys, relations, strict=True))


def checked_k(k: int) -> int:
    """`k` as an int. Raises QueryError if it is not a whole number of at least 1."""
    try:
        count = operator.index(k)
    except TypeError as error:
        raise QueryError(f"k must be a whole number, got {k!r}") from error
    if count < 1:
        raise QueryError(f"k must be 1 or more, got {count}")
    return count
