"""What ranks say beyond their mean: kinds of rank, parts of the graph, intervals, and tests between two models."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pmd.serving.known import TRAIN, IntArray, KnownAnswers, directed
from pmd.serving.ranking import TIE_SHARE, FloatArray, Metrics, RankingError, Ranks, summarise

Parts: TypeAlias = Mapping[str, IntArray]
"""Name of a part -> indices of its triples."""

MANY = 1.5  # answers a query on average from which a side counts as N (Bordes et al., NeurIPS 2013)
DEGREE_EDGES = (1, 3, 10, 30, 100, 1000)
"""Training degrees at which a new bin begins; below the first are entities never seen in training."""
SAMPLES = 1000
LEVEL = 0.95
SAMPLES_AT_ONCE = 50  # 50 resamples of 40,000 reciprocal ranks are 16 MB


def figures(ranks: Ranks, kind: Any = "realistic", *, filtered: bool = True) -> Metrics:
    """MRR, mean rank, Hits@k, and the adjusted mean rank index, over all triples of `ranks`.

    amri is 1 - (mean rank - 1) / (its expectation under random scores - 1): 1 is perfect, 0 is chance, whatever
    the number of candidates (Berrendorf et al., arXiv 2002.06914). None where only one candidate was left.
    """
    values = ranks.rank(kind, filtered=filtered)
    expected = (ranks.candidates(filtered=filtered) + 1).mean() / 2 if len(values) else 0.0
    found = summarise(values)
    found["amri"] = float(1 - (found["mean_rank"] - 1) / (expected - 1)) if expected > 1 else None
    return found


def analyse(ranks: Ranks, triples: IntArray, known: KnownAnswers, *, seed: int = 0) -> dict[str, Any]:
    """Everything about the ranks of a split, as plain values for JSON.

    ranks: of `rank_triples(…, triples, known)`, 2N. triples: (N, 3). known: with the training split in it, which
    defines categories, degrees and what was seen. Keys: `filtered` and `raw` (each kind of rank: both sides,
    head, tail, and `macro`, the mean over distinct queries), `by_relation`, `by_category`, `by_degree`, `by_seen`
    (realistic, filtered), and `interval` (bootstrap, over triples).
    """
    wanted = directed(triples, known.num_relations)
    parts = {
        "by_relation": by_relation(wanted),
        "by_category": by_category(wanted, known),
        "by_degree": by_degree(wanted, known),
        "by_seen": by_seen(wanted, known),
    }
    return {
        "filtered": {kind: _sides(ranks, wanted, kind, filtered=True) for kind in TIE_SHARE},
        "raw": {kind: _sides(ranks, wanted, kind, filtered=False) for kind in TIE_SHARE},
        **{
            name: {part: figures(ranks.take(index)) for part, index in split.items()}
            for name, split in parts.items()
        },
        "interval": intervals(ranks, seed=seed),
    }


def _sides(ranks: Ranks, wanted: IntArray, kind: Any, *, filtered: bool) -> dict[str, Any]:
    tail, head = np.split(np.arange(len(wanted)), 2)
    values = ranks.rank(kind, filtered=filtered)
    return {
        **figures(ranks, kind, filtered=filtered),
        "head": figures(ranks.take(head), kind, filtered=filtered),
        "tail": figures(ranks.take(tail), kind, filtered=filtered),
        "macro": macro(values, wanted),
    }


def macro(values: FloatArray, wanted: IntArray) -> Metrics:
    """Metrics in which every distinct directed query counts once, however many answers it has."""
    _, query = np.unique(wanted[:, :2], axis=0, return_inverse=True)
    count = np.bincount(query)
    per_query = {
        "mrr": np.bincount(query, weights=1 / values) / count,
        "mean_rank": np.bincount(query, weights=values) / count,
        **{f"hits@{k}": np.bincount(query, weights=values <= k) / count for k in (1, 3, 10)},
    }
    return {**{name: float(value.mean()) for name, value in per_query.items()}, "queries": len(count)}


# ---- parts of a split: indices into the 2N directed triples --------------------------------------------------


def by_relation(wanted: IntArray) -> Parts:
    """Directed relations by number, 0 … 2R - 1, those that occur."""
    return {str(relation): np.flatnonzero(wanted[:, 1] == relation) for relation in np.unique(wanted[:, 1])}


def by_category(wanted: IntArray, known: KnownAnswers) -> Parts:
    """1-1, 1-N, N-1, N-N, read in the direction asked: N at the end means many answers a query in training.

    The bound is 1.5 on average (Bordes et al., NeurIPS 2013). A relation without training triples is `unseen`.
    """
    train = known.of_split(TRAIN)
    relation = train.keys // known.num_entities
    queries = np.bincount(relation, minlength=2 * known.num_relations)
    answers = np.bincount(relation, weights=np.diff(train.offsets), minlength=2 * known.num_relations)
    many = answers > MANY * queries
    inverse = (np.arange(2 * known.num_relations) + known.num_relations) % (2 * known.num_relations)
    label = np.array(
        [
            f"{'N' if many[back] else '1'}-{'N' if many[forth] else '1'}" if queries[forth] else "unseen"
            for forth, back in enumerate(inverse)
        ]
    )
    return _labelled(label[wanted[:, 1]])


def by_degree(wanted: IntArray, known: KnownAnswers) -> Parts:
    """Bins of the answer's degree, its number of directed training triples."""
    bin_of = np.searchsorted(DEGREE_EDGES, _degrees(known)[wanted[:, 2]], side="right")
    edges = (0, *DEGREE_EDGES)
    names = [f"{low}-{high - 1}" if high - low > 1 else f"{low}" for low, high in itertools.pairwise(edges)]
    names.append(f"{edges[-1]}+")
    return {names[b]: np.flatnonzero(bin_of == b) for b in np.unique(bin_of)}


def by_seen(wanted: IntArray, known: KnownAnswers) -> Parts:
    """`seen`: both entities occur in training; `unseen`: one does not."""
    seen = _degrees(known) > 0
    both = seen[wanted[:, 0]] & seen[wanted[:, 2]]
    return _labelled(np.where(both, "seen", "unseen"))


def _degrees(known: KnownAnswers) -> IntArray:
    train = known.of_split(TRAIN)
    return np.bincount(train.answers, minlength=known.num_entities)


def _labelled(labels: NDArray[np.str_]) -> Parts:
    return {str(label): np.flatnonzero(labels == label) for label in np.unique(labels)}


# ---- how sure --------------------------------------------------------------------------------------------------


def intervals(
    ranks: Ranks, *, seed: int = 0, samples: int = SAMPLES, level: float = LEVEL
) -> dict[str, list[float]]:
    """Percentile bootstrap intervals of mrr, mean_rank and hits@k, over triples (both sides of one drawn together).

    The same seed gives the same numbers.
    """
    values = ranks.rank()
    measured = {"mrr": 1 / values, "mean_rank": values, **{f"hits@{k}": (values <= k) * 1.0 for k in (1, 3, 10)}}
    names = list(measured)
    per_triple = np.stack([_both_sides(measured[name]) for name in names])
    means = np.concatenate(list(_resampled_means(per_triple, seed, samples)), axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=1)
    return {name: [float(low[place]), float(high[place])] for place, name in enumerate(names)}


def paired_test(ours: Ranks, theirs: Ranks, *, seed: int = 0, samples: int = SAMPLES) -> dict[str, Any]:
    """Whether two models' MRR on the same triples differ: difference, bootstrap interval, and p by sign flips.

    The p value is two-sided: the share of random sign flips of the per-triple differences whose mean is at least
    as far from 0 as the one found, with one added to both counts so that it is never 0 (Phipson and Smyth 2010).
    Raises RankingError if the models ranked another number of triples.
    """
    one, other = 1 / ours.rank(), 1 / theirs.rank()
    if one.shape != other.shape:
        raise RankingError(
            f"{len(one)} ranks against {len(other)}; a paired test needs the same triples on both sides"
        )
    gap = _both_sides(one - other)
    means = np.concatenate(list(_resampled_means(gap[None], seed, samples)), axis=1)[0]
    rng = np.random.default_rng([seed, 1])
    flips = np.concatenate(
        [
            (rng.choice([-1.0, 1.0], (SAMPLES_AT_ONCE, len(gap))) @ gap) / len(gap)
            for _ in range(samples // SAMPLES_AT_ONCE)
        ]
    )
    extreme = np.count_nonzero(np.abs(flips) >= abs(gap.mean()) - 1e-15)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {
        "difference": float(gap.mean()),
        "interval": [float(low), float(high)],
        "p_value": (extreme + 1) / (len(flips) + 1),
        "triples": len(gap),
    }


def _both_sides(values: FloatArray) -> FloatArray:
    """Mean of a triple's two sides, (2N,) -> (N,): they are not independent, so they are drawn together."""
    return np.asarray(values.reshape(2, -1).mean(axis=0))


def _resampled_means(per_triple: FloatArray, seed: int, samples: int) -> Iterator[FloatArray]:
    """Means over triples drawn with replacement, (M, N) -> blocks of (M, samples)."""
    rng = np.random.default_rng([seed, 0])
    count = per_triple.shape[1]
    for first in range(0, samples, SAMPLES_AT_ONCE):
        drawn = rng.integers(count, size=(min(SAMPLES_AT_ONCE, samples - first), count))
        yield per_triple[:, drawn].mean(axis=2)
