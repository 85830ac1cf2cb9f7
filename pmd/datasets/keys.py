"""Triples and pairs as single integers, so that sets of them are sorted arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pmd.errors import DatasetError
from pmd.serving.known import IntArray

BoolArray = NDArray[np.bool_]
LIMIT = 2**63


def pair_keys(first: IntArray, second: IntArray, num_entities: int) -> IntArray:
    """An int64 (N,) per pair of entities, equal for equal pairs alone."""
    return first.astype(np.int64) * num_entities + second


def triple_keys(triples: IntArray, num_entities: int, num_relations: int) -> IntArray:
    """An int64 (N,) per triple of int (N, 3), equal for equal triples alone.

    Raises DatasetError if entities² × relations is 2^63 or more (300 million entities and 100 relations fit).
    """
    if num_entities**2 * num_relations >= LIMIT:
        raise DatasetError(
            f"{num_entities} entities and {num_relations} relations are too many to compare triples as 64-bit "
            f"keys; check or split a part of the graph"
        )
    return pair_keys(triples[:, 0], triples[:, 2], num_entities) * num_relations + triples[:, 1]


def among(keys: IntArray, others: IntArray) -> BoolArray:
    """Which keys are among the others, bool (N,); `others` rising."""
    if not len(others):
        return np.zeros(len(keys), dtype=bool)
    place = np.minimum(np.searchsorted(others, keys), len(others) - 1)
    return others[place] == keys


def num_repeats(keys: IntArray) -> int:
    """Keys that equal the one before; `keys` rising. (numpy's `unique` hashes: 20 times as long.)"""
    return int((keys[1:] == keys[:-1]).sum())
