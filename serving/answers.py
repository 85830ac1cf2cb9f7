"""What a question comes with and what comes back: how it is meant, its checks, and its best answers."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pmd.serving.errors import QueryError
from pmd.serving.ranking import FloatArray
from pmd.serving.snapshot import Question, Snapshot
from pmd.serving.vectors import top_k


class Prediction(NamedTuple):
    """One answer. entity: its id; name: as people read it; score: cosine of question and answer, -1 to 1."""

    entity: str
    name: str
    score: float


class How(NamedTuple):
    """How a question is meant."""

    inverse: bool
    is_text: bool
    exclude_known: bool
    reranked: bool


def best_answers(
    state: Snapshot, question: Question, scores: FloatArray, k: int, exclude_known: bool
) -> list[Prediction]:
    """The `k` best answers by scores, (E,), which are changed: known answers become -inf where excluded."""
    if exclude_known and question.head is not None:
        scores[state.tables.known.answers_of(question.head, question.relation)] = -np.inf
    rows = state.tables.entities
    return [Prediction(rows[index].id, rows[index].name, float(scores[index])) for index in top_k(scores, k)]


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
