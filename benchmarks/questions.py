"""Which questions are timed: real ones, of real lengths, the same for every bundle of a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from pmd.benchmarks.errors import MeasureError
from pmd.serving.known import SPLIT_NAMES, directed

if TYPE_CHECKING:
    from pmd.serving.scorer import Prediction, Scorer

TOP = 10
"""Answers asked for."""
Batch: TypeAlias = "list[Question]"


@dataclass(frozen=True)
class Question:
    """(entity, relation, ?), or with `inverse` (?, relation, entity); ids of the bundle."""

    entity: str
    relation: str
    inverse: bool

    def ask(self, scorer: Scorer) -> list[Prediction]:
        """The ten best answers that are not known already: text made, encoded, scored and ranked."""
        if self.inverse:
            return scorer.top_heads(self.relation, self.entity, k=TOP)
        return scorer.top_tails(self.entity, self.relation, k=TOP)


def of_split(scorer: Scorer, split: str, count: int, seed: int = 0) -> list[Question]:
    """`count` questions of a split's triples in both directions, shuffled; a small split comes round again.

    Raises MeasureError if the bundle holds no triples of the split.
    """
    triples = scorer.known.triples(SPLIT_NAMES.index(split))
    if not len(triples):
        raise MeasureError(f"the bundle holds no {split} triples to ask about; choose another --split")
    both = directed(triples, scorer.known.num_relations)
    order = np.resize(np.random.default_rng(seed).permutation(len(both)), count)
    return [_question(scorer, int(head), int(relation)) for head, relation in both[order, :2]]


def batches(questions: Sequence[Question], size: int, count: int) -> list[Batch]:
    """`count` batches of `size` questions, each all of one direction, the directions in turn."""
    distinct = list(dict.fromkeys(questions))  # a Scorer encodes equal texts of a call once
    sides = [[q for q in distinct if q.inverse is inverse] for inverse in (False, True)]
    sides = [side for side in sides if side]
    made: list[Batch] = []
    for index in range(count):
        side = sides[index % len(sides)]
        start = index // len(sides) * size
        made.append([side[(start + place) % len(side)] for place in range(size)])
    return made


def ask_batch(scorer: Scorer, batch: Batch) -> list[list[Prediction]]:
    """Ten best answers of each question of a batch of one direction, in one call."""
    entities, relations = [q.entity for q in batch], [q.relation for q in batch]
    if batch[0].inverse:
        return scorer.top_heads(relations, entities, k=TOP)
    return scorer.top_tails(entities, relations, k=TOP)


def _question(scorer: Scorer, entity: int, relation: int) -> Question:
    count = scorer.known.num_relations
    return Question(scorer.entity_ids[entity], scorer.relation_ids[relation % count], relation >= count)
