"""Known answers: which entities already complete a directed query, in CSR form.

A directed query is (head, relation) with relation in 0 … 2R-1: relation r + R is the inverse of r, so that
head prediction of (?, r, t) is tail prediction of (t, r + R, ?). One structure serves the negatives of
training (train split only), filtered ranking (all splits) and the exclusion of known answers on the edge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

IntArray: TypeAlias = NDArray[np.integer]

TRAIN, VALID, TEST = 0, 1, 2
SPLIT_NAMES = ("train", "valid", "test")
KEY_LIMIT = 2**63  # what query, answer and split together must stay below to be sorted as one int64


def directed(triples: IntArray, num_relations: int) -> IntArray:
    """Every triple and its inverse, (N, 3) -> (2N, 3): first all (h, r, t), then all (t, r + R, h)."""
    inverse = triples[:, ::-1].copy()
    inverse[:, 1] += num_relations
    return np.concatenate([triples, inverse])


def spread(starts: IntArray, counts: IntArray) -> tuple[IntArray, IntArray]:
    """All places of many ranges, starts (R,) and counts (R,): the range each is of, and the place, both (N,)."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) + np.repeat(starts - (np.cumsum(counts) - counts), counts)


@dataclass(frozen=True)
class KnownAnswers:
    """Answers of every directed query.

    keys: int64 (K,), rising, relation * E + head. offsets: int64 (K + 1,). answers: int32 (N,), rising within
    a query. splits: uint8 (N,), the split an answer came from (0 train, 1 valid, 2 test; the first that has it).
    """

    num_entities: int
    num_relations: int
    keys: IntArray
    offsets: IntArray
    answers: IntArray
    splits: IntArray

    @classmethod
    def from_triples(cls, num_entities: int, num_relations: int, *splits: IntArray) -> KnownAnswers:
        """Build from one (N, 3) int array per split, in the order train, valid, test."""
        parts: list[IntArray] = [np.asarray(triples, dtype=np.int64).reshape(-1, 3) for triples in splits]
        fits = 2 * num_relations * num_entities**2 * max(len(parts), 1) <= KEY_LIMIT
        sort = _sorted_as_one_key if fits else _sorted_as_columns
        keys, answers, split = sort(num_entities, num_relations, parts)
        first = np.ones(len(keys), dtype=bool)
        first[1:] = (keys[1:] != keys[:-1]) | (answers[1:] != answers[:-1])
        keys, answers, split = keys[first], answers[first], split[first]
        unique, offsets = _rows(keys)
        return cls(num_entities, num_relations, unique, offsets, answers.astype(np.int32), split)

    def of_split(self, *wanted: int) -> KnownAnswers:
        """The same structure with only the answers that came from the given splits."""
        keep = np.isin(self.splits, wanted)
        keys = np.repeat(self.keys, np.diff(self.offsets))[keep]
        unique, offsets = _rows(keys)
        return KnownAnswers(
            self.num_entities, self.num_relations, unique, offsets, self.answers[keep], self.splits[keep]
        )

    def reindexed(self, place: IntArray, num_entities: int) -> KnownAnswers:
        """The same answers after entities were added or removed.

        place: (E,), the new index of each old entity, rising, or -1 where it is gone together with its answers.
        """
        keys = np.repeat(self.keys, np.diff(self.offsets))
        heads, answers = place[keys % self.num_entities], place[self.answers]
        keep = (heads >= 0) & (answers >= 0)
        keys = (keys // self.num_entities * num_entities + heads)[keep]  # places rise, so the keys still do
        unique, offsets = _rows(keys)
        return KnownAnswers(
            num_entities, self.num_relations, unique, offsets, answers[keep].astype(np.int32), self.splits[keep]
        )

    def queries(self) -> IntArray:
        """Every directed query that has an answer, int64 (K, 2): head, relation."""
        return np.stack([self.keys % self.num_entities, self.keys // self.num_entities], axis=1)

    def triples(self, split: int) -> IntArray:
        """The undirected triples of one split, int64 (N, 3), sorted by relation, head, tail."""
        keys = np.repeat(self.keys, np.diff(self.offsets))
        keep = (self.splits == split) & (keys < self.num_relations * self.num_entities)
        head, relation = keys[keep] % self.num_entities, keys[keep] // self.num_entities
        return np.stack([head, relation, self.answers[keep].astype(np.int64)], axis=1)

    def spans(self, heads: IntArray, relations: IntArray) -> tuple[IntArray, IntArray]:
        """Start and end in `answers` of each query's answers; equal where a query has none. (Q,), (Q,).

        Nothing is known of a head that came after these answers, with an index from E on.
        """
        heads = np.asarray(heads, np.int64)
        wanted = np.asarray(relations, np.int64) * self.num_entities + heads
        row = np.searchsorted(self.keys, wanted)
        found = (row < len(self.keys)) & (heads < self.num_entities)
        found[found] = self.keys[row[found]] == wanted[found]
        row = np.where(found, row, 0)
        if not len(self.keys):
            return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), np.int64)
        return np.where(found, self.offsets[row], 0), np.where(found, self.offsets[row + 1], 0)

    def pairs(self, heads: IntArray, relations: IntArray) -> tuple[IntArray, IntArray]:
        """All answers of a batch of queries as coordinates: query index (N,) and entity (N,)."""
        start, end = self.spans(heads, relations)
        query, place = spread(start, end - start)
        return query, self.answers[place]

    def span(self, head: int, relation: int) -> tuple[int, int]:
        """As `spans` for one directed query, ten times sooner."""
        key = relation * self.num_entities + head
        row = int(self.keys.searchsorted(key))
        if head >= self.num_entities or row == len(self.keys) or self.keys[row] != key:
            return 0, 0
        return int(self.offsets[row]), int(self.offsets[row + 1])

    def answers_of(self, head: int, relation: int) -> IntArray:
        """Answers of one directed query, int32, rising."""
        start, end = self.span(head, relation)
        return self.answers[start:end]


def _rows(keys: IntArray) -> tuple[IntArray, IntArray]:
    """Distinct keys (K,) and offsets int64 (K + 1,) of sorted keys (N,)."""
    unique, starts = np.unique(keys, return_index=True)
    return unique, np.append(starts, len(keys)).astype(np.int64)


def _sorted_as_one_key(num_entities: int, num_relations: int, parts: list[IntArray]) -> tuple[IntArray, ...]:
    """Query key, answer and split of all directed triples, sorted by them in this order, (2N,) each.

    One int64 holds all three, so one plain sort does it: for 10 million triples 2 s rather than 16 and 1 GiB less
    than sorting by columns (one core of an AVX2 machine).
    """
    packed = np.empty(2 * sum(len(part) for part in parts), dtype=np.int64)
    end = 0
    for split, part in enumerate(parts):
        head, relation, tail = part.T
        for source, kind, answer in ((head, relation, tail), (tail, relation + num_relations, head)):
            start, end = end, end + len(part)
            packed[start:end] = ((kind * num_entities + source) * num_entities + answer) * len(parts) + split
    packed.sort()
    packed, split_column = np.divmod(packed, max(len(parts), 1))
    keys, answers = np.divmod(packed, num_entities)
    return keys, answers, split_column.astype(np.uint8)


def _sorted_as_columns(num_entities: int, num_relations: int, parts: list[IntArray]) -> tuple[IntArray, ...]:
    """The same for graphs so large that one int64 does not hold query, answer and split."""
    rows = np.concatenate([directed(part, num_relations) for part in parts])
    lengths = np.array([2 * len(part) for part in parts], dtype=np.int64)
    split = np.repeat(np.arange(len(parts), dtype=np.uint8), lengths)
    keys = rows[:, 1] * num_entities + rows[:, 0]
    order = np.lexsort((split, rows[:, 2], keys))
    return keys[order], rows[order, 2], split[order]
