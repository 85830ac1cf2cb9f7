"""The shapes of answers, for the OpenAPI document; tests hold the answers to them."""

from __future__ import annotations

from typing import Any, Literal

from pmd.serving.server.schemas import Shape


class Prediction(Shape):
    """One answer: its id, its name, and the cosine of question and answer, plus the weight of re-ranking."""

    entity: str
    name: str
    score: float


class Answer(Shape):
    """The answers to one question, best first."""

    predictions: list[Prediction]


class Answers(Shape):
    """The answers to a list of questions, in their order."""

    answers: list[Answer]


class Scores(Shape):
    """A score for each triple, in their order."""

    scores: list[float]


class KnownTriple(Shape):
    """A known triple like the one asked about; a cosine is null on the side that was given as text."""

    head: str
    relation: str
    tail: str
    head_cosine: float | None
    tail_cosine: float | None


class Explanation(Shape):
    """What an answer rests on.

    Rank: 1 is best, known answers left out. Reranked rank and hops: null where the bundle or the question has none.
    Neighbours: ids of entities whose names stand in the question's text. Nearest: known triples, most alike first.
    """

    answer: Prediction
    rank: int
    reranked_rank: int | None
    hops: int | None
    is_known: bool
    question_text: list[str]
    answer_text: str
    neighbours: list[str]
    nearest: list[KnownTriple]


class Explained(Shape):
    """What drove an answer."""

    explanation: Explanation


class Changes(Shape):
    """Entities added, removed and updated since the bundle was exported."""

    added: int
    removed: int
    updated: int


class Changed(Shape):
    """That a change was made: the entity's id, and what the bundle has now.

    Kept: whether changes outlive the process, in a journal.
    """

    entity: str
    entities: int
    changes: Changes
    kept: bool


class Bundle(Shape):
    """What a bundle says of itself; metrics are null where they were not measured, kept is as in Changed."""

    name: str
    dataset: str
    method: str
    grade: int
    precision: str
    encoder: str
    entities: int
    relations: int
    changes: Changes
    kept: bool
    reranks: bool
    metrics: dict[str, Any]


class Bundles(Shape):
    """The bundles of this server."""

    bundles: list[Bundle]


class Relation(Shape):
    """A relation: its id, and its text as people read it."""

    id: str
    text: str


class Relations(Shape):
    """The relations of a bundle."""

    relations: list[Relation]


class Entity(Shape):
    """An entity: its id, and its name as people read it."""

    id: str
    name: str


class Entities(Shape):
    """Entities that fit what was typed."""

    entities: list[Entity]


class Health(Shape):
    """That the process lives, or that it takes questions."""

    status: Literal["ok", "ready"]


class ErrorBody(Shape):
    """A code for programs and a line for people."""

    code: str
    message: str


class Error(Shape):
    """Every answer that is not a success."""

    error: ErrorBody
