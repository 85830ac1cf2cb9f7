"""A slow, obvious reference of the tiny graph: what every question must answer, from plain lists and sets.

Scores come from `Scorer.score_queries`, one question at a time: exact scores of every entity, without the search,
the exclusion, the batches and the restriction that are under test. Which answers those leave is worked out here.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from pmd.serving import Scorer
from pmd.serving.ranking import FloatArray
from tests.tiny_bundle import ENTITIES, RELATIONS, RERANK, TEST_TRIPLES, TRAIN, VALID_TRIPLES


class Refused(Exception):
    """The reference does not answer such a question."""


class Reference:
    """Answers by the rule, for the unchanged tiny graph of a Scorer."""

    def __init__(self, scorer: Scorer) -> None:
        self.ids = [row.id for row in ENTITIES]
        self.names = [row.name for row in ENTITIES]
        self.relations = [row.id for row in RELATIONS]
        self.relation_texts = [row.text for row in RELATIONS]
        self.known = {*TRAIN, *VALID_TRIPLES, *TEST_TRIPLES}
        self.near = {*TRAIN, *((tail, via, head) for head, via, tail in TRAIN)}
        self._scorer = scorer
        entities = len(self.ids)
        pairs = [(head, via) for via in range(2 * len(self.relations)) for head in range(entities)]
        self._grid = {pair: scorer.score_queries(np.array([pair[0]]), np.array([pair[1]]))[0] for pair in pairs}
        self._texts: dict[tuple[str, str], FloatArray] = {}

    def entity(self, key: object) -> int:
        """The index of an id, or of a name that one entity has."""
        return self._found(key, self.ids, self.names)

    def relation(self, key: object) -> int:
        """Likewise for a relation."""
        return self._found(key, self.relations, self.relation_texts)

    def top(self, keys: object, relations: object, k: object, **how: Any) -> list[Any]:
        """What top_tails gives, or top_heads if `inverse`: [(id, score)], or a list of such for lists."""
        count = _count(k)
        is_text, excluded, near = (_flag(how[name]) for name in ("is_text", "exclude_known", "reranked"))
        allowed = self._allowed(how["among"])
        pairs = self._pairs(keys, relations)
        answers = []
        for key, relation in pairs:
            via = self.relation(relation)
            head = None if is_text else self.entity(key)
            scores = (
                self._text_scores(key, via, how["inverse"]) if is_text else self.scores(head, via, how["inverse"])
            )
            if near and head is not None:
                scores = scores + np.float32(RERANK["weight"]) * self._beside(head)
            left = [
                index
                for index in range(len(self.ids))
                if index in allowed
                and not (excluded and head is not None and self.knows(head, via, index, how["inverse"]))
            ]
            left.sort(key=lambda index: (-scores[index], index))
            answers.append([(self.ids[index], float(scores[index])) for index in left[:count]])
        return answers[0] if isinstance(keys, str) and isinstance(relations, str) else answers

    def scores(self, head: int, relation: int, inverse: bool) -> FloatArray:
        """Scores of every entity, (E,)."""
        return self._grid[head, relation + inverse * len(self.relations)]

    def knows(self, given: int, relation: int, answer: int, inverse: bool) -> bool:
        """Whether the graph has this triple."""
        head, tail = (answer, given) if inverse else (given, answer)
        return (self.ids[head], self.relations[relation], self.ids[tail]) in self.known

    def _beside(self, head: int) -> FloatArray:
        joined = {(one, two) for one, _, two in self.near}
        return np.array(
            [(self.ids[head], other) in joined and other != self.ids[head] for other in self.ids], np.float32
        )

    def _text_scores(self, text: object, relation: int, inverse: bool) -> FloatArray:
        if not isinstance(text, str) or not text.strip():
            raise Refused
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise Refused from error
        via = self.relation_texts[relation]
        pair = (str(text), f"inverse {via}" if inverse else via)
        if pair not in self._texts:
            self._texts[pair] = self._scorer.bundle.tables.vectors.scores(self._scorer._encoder([pair]))[0]
        return self._texts[pair]

    def _allowed(self, among: object) -> Collection[int]:
        if among is None:
            return range(len(self.ids))
        if isinstance(among, Callable):  # type: ignore[arg-type]
            return {index for index, key in enumerate(self.ids) if among(key)}  # type: ignore[operator]
        if isinstance(among, str | bytes) or not isinstance(among, Collection):
            raise Refused
        if isinstance(among, bytearray) or (isinstance(among, np.ndarray) and not among.ndim):
            raise Refused
        return {self.entity(key) for key in among}

    def _pairs(self, keys: object, relations: object) -> list[tuple[object, object]]:
        one, other = (given if isinstance(given, str) else _list(given) for given in (keys, relations))
        if isinstance(one, str):
            one = [one] * (1 if isinstance(other, str) else len(other))
        if isinstance(other, str):
            other = [other] * len(one)
        if len(one) != len(other):
            raise Refused
        return list(zip(one, other, strict=True))

    @staticmethod
    def _found(key: object, ids: list[str], names: list[str]) -> int:
        if not isinstance(key, str):
            raise Refused
        if key in ids:
            return ids.index(key)
        if names.count(key) != 1:
            raise Refused
        return names.index(key)


def _list(given: object) -> list[Any]:
    if isinstance(given, list | tuple | range) or (isinstance(given, np.ndarray) and given.ndim):
        return list(given)
    raise Refused


def _count(k: object) -> int:
    if isinstance(k, bool):
        raise Refused
    try:
        count = operator.index(k)  # type: ignore[arg-type]
    except TypeError as error:
        raise Refused from error
    if count < 1:
        raise Refused
    return count


def _flag(value: object) -> bool:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise Refused
