"""What an answer rests on: the text that was read, where the answer ranks, and the known triples most like it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pmd.serving.answers import Prediction
from pmd.serving.known import IntArray
from pmd.serving.ranking import FloatArray
from pmd.serving.snapshot import Question, Snapshot
from pmd.serving.vectors import VectorTable


class KnownTriple(NamedTuple):
    """A triple of the graph like the one asked about, of the same relation.

    head_cosine, tail_cosine: of its head with the asked head, and of its tail with the asked tail, by the vectors
    of the entities, -1 to 1; None on the side that was given as text, for which there is no such vector.
    """

    head: str
    relation: str
    tail: str
    head_cosine: float | None
    tail_cosine: float | None


class Explanation(NamedTuple):
    """Why an entity is, or is not, a good answer to a question.

    answer: with its score. rank: 1 is best, among the entities that the graph does not already have as answers.
    reranked_rank: the same with neighbour re-ranking, None where the bundle or a text has none. hops: edges between
    the question's entity and the answer, None where they are further apart than re-ranking looks, or it is off.
    is_known: whether the graph already has this answer. question_text: head text and relation text, as the model
    read them. answer_text: the answer's text. neighbours: ids of entities whose names stand in the question's text.
    nearest: known triples of this relation, most alike first.
    """

    answer: Prediction
    rank: int
    reranked_rank: int | None
    hops: int | None
    is_known: bool
    question_text: tuple[str, str]
    answer_text: str
    neighbours: tuple[str, ...]
    nearest: tuple[KnownTriple, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain = self._asdict()
        nearest = [triple._asdict() for triple in self.nearest]
        return plain | {"answer": self.answer._asdict(), "nearest": nearest}


def explain(
    state: Snapshot, question: Question, answer: int, scores: FloatArray, hops: int, weight: float, count: int
) -> Explanation:
    """Explain one answer of a compacted graph. scores: of every entity, float32 (E,). count: known triples to show.

    hops, weight: of re-ranking; hops 0 without.
    """
    known = state.known_answers(question)
    row = state.rows[answer]
    distance = _distance(state, question, answer, hops)
    moved: int | None = None
    if hops and question.head is not None:
        nearer = scores.copy()
        nearer[state.within(question, hops)] += np.float32(weight)
        moved = _rank(nearer, answer, known)
    return Explanation(
        answer=Prediction(row.id, row.name, float(scores[answer])),
        rank=_rank(scores, answer, known),
        reranked_rank=moved,
        hops=distance,
        is_known=bool(np.isin(answer, known)),
        question_text=question.text,
        answer_text=state.texts.entity(answer),
        neighbours=_named(state, question),
        nearest=_nearest(state, question, answer, count),
    )


def _rank(scores: FloatArray, answer: int, known: IntArray) -> int:
    """Place of an answer, equal scores in the order of the entities, other known answers left out."""
    before = (scores > scores[answer]) | ((scores == scores[answer]) & (np.arange(len(scores)) < answer))
    before[known] = False
    return 1 + int(before.sum())


def _distance(state: Snapshot, question: Question, answer: int, hops: int) -> int | None:
    if question.head == answer and hops:
        return 0
    return next((near for near in range(1, hops + 1) if answer in state.within(question, near)), None)


def _named(state: Snapshot, question: Question) -> tuple[str, ...]:
    if question.head is None:
        return ()
    return tuple(state.rows[index].id for index in state.texts.shown_neighbours(question.head, question.relation))


def _nearest(state: Snapshot, question: Question, answer: int, count: int) -> tuple[KnownTriple, ...]:
    known, entities = state.tables.known, len(state.rows)
    first, last = np.searchsorted(known.keys, [question.relation * entities, (question.relation + 1) * entities])
    heads = np.repeat(known.keys[first:last] % entities, np.diff(known.offsets[first : last + 1]))
    tails = known.answers[known.offsets[first] : known.offsets[last]].astype(np.int64)
    other = (heads != question.head) | (tails != answer) if question.head is not None else np.ones(len(heads), bool)
    heads, tails = heads[other], tails[other]
    vectors = state.tables.vectors
    by_head = None if question.head is None else _cosines(vectors, question.head, heads)
    by_tail = _cosines(vectors, answer, tails)
    alike = by_tail if by_head is None else by_head + by_tail
    best = np.argsort(-alike, kind="stable")[:count]
    inverse = question.relation >= len(state.tables.relations)
    relation = state.tables.relations[question.relation % len(state.tables.relations)].id
    found = []
    for place in best.tolist():
        source, target = state.rows[heads[place]].id, state.rows[tails[place]].id
        source_cosine = None if by_head is None else float(by_head[place])
        target_cosine = float(by_tail[place])
        if inverse:
            source, target, source_cosine, target_cosine = target, source, target_cosine, source_cosine
        found.append(KnownTriple(source, relation, target, source_cosine, target_cosine))
    return tuple(found)


def _cosines(vectors: VectorTable, entity: int, others: IntArray) -> FloatArray:
    """Cosines of one entity with others, float32, of their vectors as stored."""
    one = vectors.take(np.array([entity])).vectors().astype(np.float64)
    one /= np.linalg.norm(one)
    distinct, place = np.unique(others, return_inverse=True)
    cosines = vectors.scores(one)[0][distinct][place]
    return np.asarray(cosines.clip(-1, 1))  # vectors rounded to int8 are a little longer or shorter than 1
