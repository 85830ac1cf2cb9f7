"""What a question comes with and what comes back: how it is meant, its checks, and what is wanted for it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from pmd.serving.asked import flag, listed, shown, whole_number
from pmd.serving.errors import QueryError
from pmd.serving.known import IntArray
from pmd.serving.rows import cell
from pmd.serving.search import Found, Wish
from pmd.serving.snapshot import NONE, Question, Snapshot

AMONG = "among is a list of ids, or a function of an id"  # in messages
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


def wishes(state: Snapshot, questions: Sequence[Question], k: int, how: How, among: Among | None) -> list[Wish]:
    """What to search for, a wish to a question. Raises UnknownEntity, QueryError for what `among` holds."""
    allowed = _allowed(state, among)
    return [
        Wish(
            k,
            excluded=state.known_answers(question) if how.exclude_known else None,
            allowed=allowed,
            nearer=state.within(question, how.hops) if how.hops else None,
            weight=how.weight,
        )
        for question in questions
    ]


def predictions(state: Snapshot, found: Found) -> list[Prediction]:
    """What was found, by id and name."""
    rows = state.rows
    return [
        Prediction(cell(rows, index, 0), cell(rows, index, 1), score)
        for index, score in zip(found[0].tolist(), found[1].tolist(), strict=True)
    ]


def paired(keys: str | Sequence[str], relations: str | Sequence[str]) -> list[tuple[str, str]]:
    """Each entity with its relation; a single one of either serves all of the other. Raises QueryError."""
    wanted = "give ids, names or texts, one or a list of them"
    keys = keys if isinstance(keys, str) else listed(keys, wanted)
    relations = relations if isinstance(relations, str) else listed(relations, wanted)
    if isinstance(keys, str):
        keys = [keys] * (1 if isinstance(relations, str) else len(relations))
    if isinstance(relations, str):
        relations = [relations] * len(keys)
    if len(keys) != len(relations):
        raise QueryError(f"{len(keys)} entities and {len(relations)} relations; give one relation, or one for each")
    return list(zip(keys, relations, strict=True))


def directed_queries(state: Snapshot, heads: IntArray, relations: IntArray) -> tuple[IntArray, IntArray]:
    """Indices of heads and directed relations, (Q,) each, as int64. Raises QueryError if one is out of range."""
    try:
        heads, relations = np.asarray(heads), np.asarray(relations)
    except ValueError as error:  # lists of unequal lengths
        raise QueryError(f"heads and relations must be two equally long rows: {error}") from error
    if heads.ndim != 1 or heads.shape != relations.shape:
        raise QueryError(f"heads and relations must be two equally long rows, got {heads.shape}, {relations.shape}")
    for indices, limit, kind in (
        (heads, len(state.entities.ids), "head"),
        (relations, 2 * len(state.relations.ids), "directed relation"),
    ):
        if len(indices) and indices.dtype.kind not in "iu":
            raise QueryError(f"{kind} indices must be whole numbers, got {indices.dtype}")
        if len(indices) and not (indices.min() >= 0 and indices.max() < limit):
            raise QueryError(f"a {kind} index is out of range, expected 0 to {limit - 1}")
    return heads.astype(np.int64), relations.astype(np.int64)


def checked_k(k: int) -> int:
    """`k` as an int. Raises QueryError if it is not a whole number of at least 1."""
    return whole_number(k, "k")


def questions_of(
    state: Snapshot, keys: str | Sequence[str], relations: str | Sequence[str], how: How
) -> list[Question]:
    """The directed queries that were asked. Raises UnknownEntity, UnknownRelation, QueryError."""
    inverse, is_text = how.inverse, flag(how.is_text, "head_is_text or tail_is_text")
    flag(how.exclude_known, "exclude_known")
    return [state.question(key, via, inverse=inverse, is_text=is_text) for key, via in paired(keys, relations)]


def pair_questions(state: Snapshot, triples: Sequence[tuple[str, str, str]]) -> tuple[list[Question], IntArray]:
    """The questions for tails of triples, and the indices of their tails, int64 (N,). Raises as `questions_of`."""
    questions, tails = [], []
    for triple in listed(triples, "give a list of triples"):
        parts = listed(triple, "a triple is (head, relation, tail)")
        if len(parts) != 3:
            raise QueryError(f"a triple is (head, relation, tail), got {shown(triple)}")
        head, relation, tail = parts
        questions.append(state.question(head, relation, inverse=False, is_text=False))
        tails.append(state.entities.find(tail))
    return questions, np.array(tails, dtype=np.int64)


def _allowed(state: Snapshot, among: Among | None) -> IntArray | None:
    """Indices of the entities that may be answers, rising; None for all. Raises UnknownEntity, QueryError."""
    if among is None:
        return None
    if callable(among):
        gone = set(state.fresh.gone.tolist())
        places = (index for index in range(len(state.rows)) if index not in gone)
        chosen = [index for index in places if among(cell(state.rows, index, 0))]
    elif isinstance(among, Collection) and not isinstance(among, str | bytes):
        chosen = [state.entities.find(key) for key in listed(among, AMONG, ordered=False)]
    else:
        raise QueryError(f"{AMONG}; got {type(among).__name__}")
    return np.unique(np.array(chosen, dtype=np.int64)) if chosen else NONE
