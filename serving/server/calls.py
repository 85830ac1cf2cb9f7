"""What a batch of questions means to a Scorer: one call of it for each kind of question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from pmd.serving.scorer import Scorer


@dataclass(frozen=True)
class Top:
    """Ask for the best tails, or heads if `inverse`; a question is (entity or text, relation)."""

    inverse: bool
    is_text: bool
    k: int
    exclude_known: bool
    reranked: bool
    among: tuple[str, ...] | None


@dataclass(frozen=True)
class Score:
    """Ask for the scores of triples; a question is (head, relation, tail)."""


@dataclass(frozen=True)
class Explain:
    """Ask what drove an answer; a question is (head, relation, tail)."""

    asks: Literal["tail", "head"]
    is_text: bool
    triples: int


Options: TypeAlias = Top | Score | Explain
Question: TypeAlias = tuple[str, ...]


def call(scorer: Scorer, options: Options, questions: Sequence[Question]) -> list[Any]:
    """The JSON-ready answer to each question. Raises what the Scorer raises, for all questions together."""
    if isinstance(options, Top):
        return _top(scorer, options, questions)
    if isinstance(options, Score):
        return [float(score) for score in scorer.score([(head, via, tail) for head, via, tail in questions])]
    return [
        scorer.explain(
            head, via, tail, asks=options.asks, is_text=options.is_text, triples=options.triples
        ).as_dict()
        for head, via, tail in questions
    ]


def _top(scorer: Scorer, options: Top, questions: Sequence[Question]) -> list[dict[str, Any]]:
    keys, relations = [key for key, _ in questions], [relation for _, relation in questions]
    how: dict[str, Any] = {"exclude_known": options.exclude_known, "reranked": options.reranked}
    if options.among is not None:
        how["among"] = options.among
    if options.inverse:
        found = scorer.top_heads(relations, keys, options.k, tail_is_text=options.is_text, **how)
    else:
        found = scorer.top_tails(keys, relations, options.k, head_is_text=options.is_text, **how)
    return [{"predictions": [prediction._asdict() for prediction in answer]} for answer in found]
