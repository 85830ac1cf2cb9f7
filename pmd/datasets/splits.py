"""Train, valid and test made from one set of triples, with a seed.

Transductive (the default): every entity and relation of valid and test also stands in train. Inductive: entities
are held out, and every triple of one goes to its split, so each valid and test triple has an entity unseen in
training (as in BLP, Daza et al., arXiv 2010.03496).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np

from pmd.datasets.keys import triple_keys
from pmd.errors import DatasetError
from pmd.graph import KnowledgeGraph
from pmd.serving.known import IntArray

log = logging.getLogger(__name__)
CHUNK = 100_000  # candidates looked at before asking whether enough are held out


@dataclass(frozen=True)
class SplitRule:
    """How to split: `valid` and `test` are shares of all triples."""

    seed: int = 0
    valid: float = 0.1
    test: float = 0.1
    inductive: bool = False

    def __post_init__(self) -> None:
        """Raise DatasetError for shares that leave nothing to train on."""
        if not (0 <= self.valid < 1 and 0 <= self.test < 1 and self.valid + self.test < 1):
            raise DatasetError(
                f"shares of valid {self.valid} and test {self.test} must be at least 0 and sum to less than 1"
            )


def resplit(graph: KnowledgeGraph, rule: SplitRule) -> KnowledgeGraph:
    """The graph with all its triples, repeats left out, split anew.

    Within a split triples keep the order they had. Raises DatasetError if fewer can be held out than one.
    """
    every = np.concatenate([graph.train, graph.valid, graph.test])
    keys = triple_keys(every, graph.num_entities, graph.num_relations)
    triples = every[np.sort(np.unique(keys, return_index=True)[1])]
    if len(triples) < len(every):
        log.warning("%s: %d repeated triples left out", graph.name, len(every) - len(triples))
    rng = np.random.default_rng(rule.seed)
    choose = _unseen_entities if rule.inductive else _seen_entities
    sizes = round(rule.valid * len(triples)), round(rule.test * len(triples))
    part = choose(triples, graph, sizes, rng)
    found = np.bincount(part, minlength=3)
    if sum(sizes) and not found[1:].sum():
        raise DatasetError(
            f"none of the {len(triples)} triples of {graph.name} can be held out with every entity kept in train; "
            f"split it inductively, or put it into a folder as train.tsv to train without valid and test"
        )
    if (found[1:] < sizes).any() and not rule.inductive:
        log.warning(
            "%s: %d and %d triples asked for, %d and %d can be held out with every entity kept in train",
            *(graph.name, *sizes, *found[1:].tolist()),
        )
    train, valid, test = (triples[part == number] for number in range(3))
    return replace(graph, train=train, valid=valid, test=test)


def _seen_entities(
    triples: IntArray, graph: KnowledgeGraph, sizes: tuple[int, int], rng: np.random.Generator
) -> IntArray:
    """Split of each triple, uint8 (N,): 0 train, 1 valid, 2 test.

    Triples are held out in random order unless one is the last to name its head, relation or tail.
    """
    entities = np.bincount(triples[:, [0, 2]].ravel(), minlength=graph.num_entities)
    loops = triples[triples[:, 0] == triples[:, 2], 0]
    left = (entities - np.bincount(loops, minlength=graph.num_entities)).tolist()
    relations = np.bincount(triples[:, 1], minlength=graph.num_relations).tolist()
    order = rng.permutation(len(triples))
    held: list[int] = []
    for start in range(0, len(order), CHUNK):
        for row, (head, relation, tail) in zip(
            order[start : start + CHUNK].tolist(), triples[order[start : start + CHUNK]].tolist(), strict=True
        ):
            if len(held) == sum(sizes):
                break
            if left[head] > 1 and left[tail] > 1 and relations[relation] > 1:
                held.append(row)
                relations[relation] -= 1
                left[head] -= 1
                left[tail] -= head != tail
    # Where fewer than wanted can be held out, valid and test share them in proportion.
    test = len(held) * sizes[1] // max(sum(sizes), 1)
    part = np.zeros(len(triples), dtype=np.uint8)
    part[held[:test]] = 2
    part[held[test:]] = 1
    return part


def _unseen_entities(
    triples: IntArray, graph: KnowledgeGraph, sizes: tuple[int, int], rng: np.random.Generator
) -> IntArray:
    """Split of each triple, as above: entities are held out in random order until their triples are enough.

    A hub, with more triples than the smaller split is to have, is never held out.
    """
    degree = np.bincount(triples[:, [0, 2]].ravel(), minlength=graph.num_entities)
    place = rng.permutation(graph.num_entities)
    place[degree > min(size for size in (*sizes, len(triples)) if size)] = graph.num_entities
    first = np.minimum(place[triples[:, 0]], place[triples[:, 2]])
    claimed = np.cumsum(np.bincount(first, minlength=graph.num_entities + 1)[: graph.num_entities])
    test_end = int(np.searchsorted(claimed, sizes[1], side="right"))
    valid_end = int(np.searchsorted(claimed, sum(sizes), side="right"))
    return np.where(first < test_end, 2, np.where(first < valid_end, 1, 0)).astype(np.uint8)
