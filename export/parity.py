"""Is a bundle the model it was made from? Vectors, scores and metrics against torch, and the gate to pass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from pmd.serving.known import SPLIT_NAMES, TRAIN, VALID, IntArray, KnownAnswers, directed
from pmd.serving.ranking import FloatArray, rank_triples
from pmd.serving.vectors import VectorTable

BLOCK = 512  # queries scored at once: 512 x 40,943 float32 scores are 84 MB
TAIL_SHARE = 0.01


class Limit(NamedTuple):
    """One condition of a gate: a measure, and the least or the most it may be."""

    measure: str
    at_least: float = -math.inf
    at_most: float = math.inf
    standard_errors: float = 0.0
    """How many of its standard errors a measure may be beyond the bound: what chance can do to it."""

    def holds(self, value: float, error: float = 0.0) -> bool:
        """Whether `value` is within the limit; never for NaN, which fails every comparison."""
        slack = self.standard_errors * error
        return self.at_least - slack <= value <= self.at_most + slack

    def as_dict(self) -> dict[str, float]:
        """Only what is set, for JSON."""
        bounds = {"at_least": self.at_least, "at_most": self.at_most}
        set_bounds = {name: bound for name, bound in bounds.items() if math.isfinite(bound)}
        return set_bounds | ({"standard_errors": self.standard_errors} if self.standard_errors else {})


GATES: Mapping[str, tuple[Limit, ...]] = {
    # 1e-5 and less was measured on BERT towers of 2 to 12 layers; a wrong mask or pooling is 1e-2 and more
    "fp32": (Limit("max_score_gap", at_most=1e-4),),
    # Single scores move with every rounding, the ranking as a whole must not. Its MRR moves by chance as well: by
    # 0.2 % on 1,300 ranks, by much more on a toy graph, so a loss counts when it is more than chance makes.
    "int8": (Limit("mrr_kept", at_least=0.995, standard_errors=2.0),),
}
"""What each precision must keep. Its keys are the precisions there are."""

Gate: TypeAlias = Sequence[Limit]


class Failure(NamedTuple):
    """A limit that a bundle broke."""

    limit: Limit
    found: float
    error: float

    def __str__(self) -> str:
        """The measure, what was found and what is needed."""
        spread = f" +- {self.error:.2g}" if self.limit.standard_errors else ""
        return f"{self.limit.measure} is {self.found:.6g}{spread}, needed {in_words(self.limit.as_dict())}"


def in_words(bounds: Mapping[str, float]) -> str:
    """A limit's `as_dict` for people: at least 0.995 within 2 standard errors."""
    words = [f"{name.replace('_', ' ')} {bounds[name]:g}" for name in ("at_least", "at_most") if name in bounds]
    errors = bounds.get("standard_errors")
    return " and ".join(words) + (f" within {errors:g} standard errors" if errors else "")


@dataclass(frozen=True)
class Parity:
    """How far a bundle is from its torch model: gaps 0 and kept 1 for a perfect copy, NaN for a broken one."""

    split: str
    texts: int
    """Texts compared: the distinct queries of the split, and every entity."""
    max_cosine_gap: float
    """Largest 1 - cosine between the two vectors of a text."""
    max_score_gap: float
    p99_score_gap: float
    """1 % of all scores of a query and an entity differ by more than this."""
    mrr_torch: float
    mrr_bundle: float
    mrr_kept: float
    mrr_kept_error: float
    """Standard error of `mrr_kept`, from the pairs of ranks."""

    @classmethod
    def broken(cls, split: str, texts: int, mrr_torch: float) -> Parity:
        """The parity of a bundle whose vectors are not numbers."""
        return cls(split, texts, math.nan, math.nan, math.nan, mrr_torch, math.nan, math.nan, math.nan)

    def failures(self, gate: Gate) -> list[Failure]:
        """Every limit of the gate that does not hold."""
        values = asdict(self)
        found = [Failure(limit, values[limit.measure], values.get(f"{limit.measure}_error", 0.0)) for limit in gate]
        return [failure for failure in found if not failure.limit.holds(failure.found, failure.error)]

    def report(self, gate: Gate) -> dict[str, Any]:
        """Everything for JSON, the gate included; NaN becomes null."""
        values = {key: None if value != value else value for key, value in asdict(self).items()}
        return {**values, "gate": {limit.measure: limit.as_dict() for limit in gate}}


@dataclass(frozen=True)
class Reference:
    """What torch says: vectors of a split's distinct queries and of every entity, and the MRR they give.

    queries: (Q, D). entities: (E, D), all of unit length. ranks: (2N,), as `rank_triples` orders them.
    """

    split: str
    queries: FloatArray
    entities: FloatArray
    ranks: FloatArray

    @property
    def mrr(self) -> float:
        """Torch's MRR on the split."""
        return float((1 / self.ranks).mean())

    @classmethod
    def of(
        cls,
        known: KnownAnswers,
        split: int,
        pairs: tuple[IntArray, IntArray],
        queries: FloatArray,
        entities: FloatArray,
    ) -> Reference:
        """Rank the split with torch's vectors. pairs: heads and relations as `queries_of` gives them."""
        keys = pairs[1] * known.num_entities + pairs[0]
        table = VectorTable(np.asarray(entities, np.float32))

        def scores(heads: IntArray, relations: IntArray) -> FloatArray:
            return table.scores(queries[np.searchsorted(keys, relations * known.num_entities + heads)])

        return cls(SPLIT_NAMES[split], queries, entities, rank_triples(scores, known.triples(split), known).rank())

    def compare(self, queries: FloatArray, table: VectorTable, ranks: FloatArray) -> Parity:
        """The bundle's vectors of the same texts, and its ranks, against these. (Q, D), (E, D), (2N,)."""
        gaps = [_cosine_gap(self.queries, queries), _cosine_gap(self.entities, table.vectors())]
        worst, p99 = _score_gaps(self._scores(queries, table), len(queries) * len(table))
        kept, error = kept_share(ranks, self.ranks)
        return Parity(
            split=self.split,
            texts=len(queries) + len(table),
            max_cosine_gap=float(np.max(gaps)),
            max_score_gap=worst,
            p99_score_gap=p99,
            mrr_torch=self.mrr,
            mrr_bundle=float((1 / ranks).mean()),
            mrr_kept=kept,
            mrr_kept_error=error,
        )

    def _scores(self, queries: FloatArray, table: VectorTable) -> Iterator[FloatArray]:
        """Absolute score differences, a block of queries at a time, (block, E)."""
        ours, theirs = self.entities.astype(np.float64), table.vectors().astype(np.float64)
        for first in range(0, len(queries), BLOCK):
            rows = slice(first, first + BLOCK)
            yield np.abs(self.queries[rows].astype(np.float64) @ ours.T - queries[rows] @ theirs.T)


def split_to_compare(known: KnownAnswers) -> int:
    """The validation split, or the training split where there is none."""
    return VALID if len(known.triples(VALID)) else TRAIN


def queries_of(known: KnownAnswers, split: int) -> tuple[IntArray, IntArray]:
    """Heads and relations of the distinct directed queries of a split, int64 (Q,) each, rising."""
    rows = directed(known.triples(split), known.num_relations)
    keys = np.unique(rows[:, 1] * known.num_entities + rows[:, 0])
    return keys % known.num_entities, keys // known.num_entities


def kept_share(ranks: FloatArray, before: FloatArray) -> tuple[float, float]:
    """Share of the MRR that is left of ranks (N,), N > 1, and its standard error.

    Of the ratio of two means over the same triples, by its linearised residuals: Cochran, Sampling Techniques,
    section 6.4. 1 and 0 if no rank moved.
    """
    ours, theirs = 1 / ranks, 1 / before
    kept = ours.mean() / theirs.mean()
    residuals = ours - kept * theirs
    return float(kept), float(residuals.std(ddof=1) / math.sqrt(len(ranks)) / theirs.mean())


def _cosine_gap(ours: FloatArray, theirs: FloatArray) -> float:
    """Largest 1 - cosine of two rows, at least 0; NaN if either side holds NaN."""
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    cosine = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return float(np.maximum(1 - cosine, 0.0).max())


def _score_gaps(blocks: Iterator[FloatArray], total: int) -> tuple[float, float]:
    """The largest of `total` gaps and the one that 1 % are above: exact, without holding all of them."""
    tail, worst = math.ceil(TAIL_SHARE * total), 0.0
    kept: FloatArray = np.zeros(0)
    for block in blocks:
        worst = float(np.maximum(worst, block.max()))  # np.maximum, unlike max, lets NaN through
        kept = _largest(np.concatenate([kept, _largest(block.reshape(-1), tail)]), tail)
    return worst, float(kept.min())


def _largest(values: FloatArray, count: int) -> FloatArray:
    return values if count >= len(values) else np.partition(values, -count)[-count:]
