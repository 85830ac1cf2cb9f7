"""Is a bundle the model it was made from? Vectors, scores and metrics against torch, and the gate to pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from pmd.export.making import MEASURES, Making
from pmd.export.width import Narrowing
from pmd.serving.known import SPLIT_NAMES, TRAIN, VALID, IntArray, KnownAnswers, directed
from pmd.serving.ranking import FloatArray, rank_triples
from pmd.serving.vectors import VectorTable

BLOCK = 128  # queries scored at once: 128 x 40,943 float32 scores are 21 MB, and a few copies of them are held
CHUNK = 8192  # entities scored at once: 8,192 x 384 float64 are 25 MB
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


Gate: TypeAlias = Sequence[Limit]

GATES: Mapping[str, tuple[Limit, ...]] = {
    # 1e-5 and less was measured on BERT towers of 2 to 12 layers; a wrong mask or pooling is 1e-2 and more
    "fp32": (Limit("max_score_gap", at_most=1e-4),),
    # half precision keeps 11 bits: 2e-3 was measured on MiniLM and BERT towers
    "fp16": (Limit("max_score_gap", at_most=1e-2), Limit("mrr_kept", at_least=0.998, standard_errors=2.0)),
    # Single scores move with every rounding, the ranking as a whole must not. Its MRR moves by chance as well: by
    # 0.2 % on 1,300 ranks, by much more on a toy graph, so a loss counts when it is more than chance makes.
    "int8": (Limit("mrr_kept", at_least=0.995, standard_errors=2.0),),
    "int8-static": (Limit("mrr_kept", at_least=0.99, standard_errors=2.0),),
    "int4": (Limit("mrr_kept", at_least=0.97, standard_errors=2.0),),
}
"""What each precision must keep."""
NARROW: Gate = (Limit("mrr_kept", at_least=0.97, standard_errors=2.0),)
"""What vectors narrower than the model's must keep, in any precision: their scores are others by design."""


def gate_of(making: Making, overrides: Mapping[str, float] | None = None) -> Gate:
    """The limits that a bundle must pass. overrides: measure -> bound, in place of or beside the usual ones."""
    changes = {
        measure: Limit(measure, **{MEASURES[measure]: bound}) for measure, bound in (overrides or {}).items()
    }
    usual = {limit.measure: limit for limit in (NARROW if making.width else GATES[making.precision])}
    return tuple((usual | changes).values())


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
    """Texts compared: the distinct queries of the split, and entities, at most 1,024 of them."""
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
    entity_tower_gap: float
    """Largest 1 - cosine between a stored vector and what the bundle's entity tower makes of the same text."""

    @classmethod
    def broken(cls, split: str, texts: int, mrr_torch: float) -> Parity:
        """The parity of a bundle whose vectors are not numbers."""
        return cls(split, texts, math.nan, math.nan, math.nan, mrr_torch, math.nan, math.nan, math.nan, math.nan)

    @classmethod
    def read(cls, report: Mapping[str, Any]) -> tuple[Parity, Gate]:
        """The parity and the gate of a `report`, as a manifest holds it. Raises KeyError, TypeError for another."""
        values: dict[str, Any] = {field.name: report[field.name] for field in fields(cls)}
        values = {name: math.nan if value is None else value for name, value in values.items()}
        gate = tuple(Limit(measure, **bounds) for measure, bounds in report["gate"].items())
        return cls(**values), gate

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
    """What torch says: vectors of a split's distinct queries and of every entity, and the ranks they give.

    queries: (Q, D), in the order of `queries_of`. entities: (E, D), all of unit length. ranks: (2N,), as
    `rank_triples` orders them.
    """

    known: KnownAnswers
    split: int
    queries: FloatArray
    entities: FloatArray
    ranks: FloatArray

    @property
    def mrr(self) -> float:
        """Torch's MRR on the split."""
        return float((1 / self.ranks).mean())

    @classmethod
    def of(cls, known: KnownAnswers, split: int, queries: FloatArray, entities: FloatArray) -> Reference:
        """Rank the split with torch's vectors."""
        table = VectorTable(np.asarray(entities, np.float32))
        return cls(known, split, queries, entities, _ranks(known, split, queries, table, lambda rows, scores: None))

    def compare(
        self,
        queries: FloatArray,
        table: VectorTable,
        sampled: tuple[IntArray, FloatArray],
        narrowing: Narrowing | None,
    ) -> Parity:
        """A bundle's vectors of the same queries, (Q, W), and its table of entity vectors, against these.

        sampled: some entities and what the bundle's entity tower makes of their texts, (S,) and (S, W). narrowing:
        how vectors of width D became those of width W; None where they are as wide.
        """
        chosen, again = sampled
        if not (np.isfinite(queries).all() and np.isfinite(again).all()):
            return Parity.broken(SPLIT_NAMES[self.split], len(queries) + len(chosen), self.mrr)
        lifted = narrowing.lifted if narrowing else lambda vectors: vectors
        gaps = _Gaps(len(queries) * len(table))

        def compared(rows: slice, scores: FloatArray) -> None:
            gaps.add(np.abs(scores - self.queries[rows] @ self.entities.T))

        ranks = _ranks(self.known, self.split, queries, table, compared)
        kept, error = kept_share(ranks, self.ranks)
        stored = table.vectors()
        pairs = (
            (self.queries, queries),
            (self.entities, stored),
            (self.entities[chosen], again),
        )
        return Parity(
            split=SPLIT_NAMES[self.split],
            texts=len(queries) + len(chosen),
            max_cosine_gap=max(cosine_gap(theirs, lifted(ours)) for theirs, ours in pairs),
            max_score_gap=gaps.worst,
            p99_score_gap=gaps.tail_bound(),
            mrr_torch=self.mrr,
            mrr_bundle=float((1 / ranks).mean()),
            mrr_kept=kept,
            mrr_kept_error=error,
            entity_tower_gap=cosine_gap(stored[chosen], again),
        )


def _ranks(
    known: KnownAnswers,
    split: int,
    queries: FloatArray,
    table: VectorTable,
    seen: Callable[[slice, FloatArray], None],
) -> FloatArray:
    """Ranks of a split by query vectors and a table, (2N,): those of a Scorer with the same vectors, to the bit.

    seen: is given every block of scores with its rows.
    """
    heads, relations = queries_of(known, split)
    keys = relations * known.num_entities + heads

    def scores(heads: IntArray, relations: IntArray) -> FloatArray:
        first = int(np.searchsorted(keys, relations[0] * known.num_entities + heads[0]))
        rows = slice(first, first + len(heads))  # both go through the queries in rising order
        block = table.scores(queries[rows], chunk=CHUNK, shared=True)
        seen(rows, block)
        return block

    return rank_triples(scores, known.triples(split), known, block=BLOCK).rank()


class _Gaps:
    """The largest of `total` gaps and the one that 1 % are above: exact, without holding all of them."""

    def __init__(self, total: int) -> None:
        self.worst, self._tail = 0.0, math.ceil(TAIL_SHARE * total)
        self._kept: FloatArray = np.zeros(0, np.float32)

    def add(self, gaps: FloatArray) -> None:
        """Take a block of them into account."""
        self.worst = float(np.maximum(self.worst, gaps.max()))  # np.maximum, unlike max, lets NaN through
        bar = self._kept.min() if len(self._kept) == self._tail else -1.0
        self._kept = _largest(np.concatenate([self._kept, gaps[gaps > bar]]), self._tail)

    def tail_bound(self) -> float:
        """The gap that 1 % are above."""
        return float(self._kept.min())


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


def cosine_gap(ours: FloatArray, theirs: FloatArray) -> float:
    """Largest 1 - cosine of two rows, at least 0; NaN if either side holds NaN."""
    worst = 0.0
    for first in range(0, len(ours), CHUNK):  # in float64 a whole table would be several times as large
        a, b = (rows[first : first + CHUNK].astype(np.float64) for rows in (ours, theirs))
        with np.errstate(divide="ignore", invalid="ignore"):  # of a row of zeros or with infinity: NaN
            cosine = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
        worst = np.maximum(worst, (1 - cosine).max())  # np.maximum, unlike max, lets NaN through
    return float(worst)


def _largest(values: FloatArray, count: int) -> FloatArray:
    return values if count >= len(values) else np.partition(values, -count)[-count:]
