"""Fuzzing of the query API: right, odd and wrong arguments of every kind, against a slow and obvious reference."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from tests.trust.attack import Attack, Ground, Tally
from tests.trust.fuzz_engine import Broken, numbered, settled
from tests.trust.fuzz_mutation import ODD_TEXTS, ODD_VALUES

if TYPE_CHECKING:
    from pmd.serving import Scorer
    from tests.trust.fuzz_model import Reference

BATCH_GAP = 1e-5
"""What stands beside a text in a batch moves a score of a float graph by less; see TowerEncoder."""
TEXTS = ("a hot body", "blood", "pain pain pain", "İstanbul ß ﬁ", "a\u0301 \u202e!", "x" * 3000, "\x00a", "aspirin")


class Raised(Exception):
    """What a caller's own function raises, which must come back as it is."""


def _raising(key: str) -> bool:
    raise Raised(key)


class _Odd:
    """A value that refuses whatever it is asked."""

    def __len__(self) -> int:
        raise TypeError("no length")

    def __repr__(self) -> str:
        raise ValueError("no words")


class Draw:
    """Arguments at random: mostly right ones, of the tiny graph."""

    def __init__(self, rng: random.Random, reference: Reference) -> None:
        import numpy as np

        self.rng = rng
        self._np = np
        self.entities = [*reference.ids, *(name for name in reference.names if reference.names.count(name) == 1)]
        self.relations = [*reference.relations, *reference.relation_texts]

    def odd(self) -> Any:
        """Anything at all."""
        np, rng = self._np, self.rng
        more = (
            b"aspirin",
            ("a",),
            {"aspirin"},
            frozenset(),
            object(),
            list,
            len,
            1j,
            Ellipsis,
            _Odd(),
            bytearray(b"a"),
        )
        arrays = (
            np.array("a"),
            np.array(["aspirin", "pain"]),
            np.float32(2),
            np.zeros((2, 2)),
            np.array([], str),
            np.bool_(True),
        )
        if rng.random() < 0.5:
            return rng.choice(ODD_VALUES)
        return rng.choice(
            (*more, *arrays, (key for key in ["aspirin"]), {"aspirin": 1}.keys(), range(3), float("nan"))
        )

    def key(self, good: list[str], wrong: float) -> Any:
        """An entity or relation, or something else with a chance of `wrong`."""
        if self.rng.random() >= wrong:
            return self.rng.choice(good)
        return self.rng.choice(ODD_TEXTS) if self.rng.random() < 0.5 else self.odd()

    def keys(self, good: list[str], wrong: float) -> Any:
        """One of them, or a list."""
        if self.rng.random() < 0.75:
            return self.key(good, wrong)
        items = [self.key(good, wrong / 2) for _ in range(self.rng.choice((0, 1, 2, 3, 3, 5)))]
        return self.rng.choice((list, tuple, list, self._array))(items)

    def k(self, wrong: float) -> Any:
        """A number of answers."""
        if self.rng.random() < wrong:
            return self.odd()
        good = (1, 2, 3, 10, 12, 13, 100, 10**6, 2**63, 10**30, self._np.int64(4), self._np.uint8(7))
        return self.rng.choice(good)

    def flag(self, wrong: float) -> Any:
        """True or False."""
        if self.rng.random() < wrong:
            return self.odd()
        return self.rng.choice((True, False, self._np.bool_(True)))

    def among(self, wrong: float) -> Any:
        """Who may be an answer."""
        rng = self.rng
        if rng.random() < wrong:
            return rng.choice((self.odd(), [self.odd()], _raising))
        some = [rng.choice(self.entities) for _ in range(rng.randrange(8))]
        kinds = (
            lambda: some,
            lambda: set(some),
            lambda: tuple(some),
            lambda: lambda key: "a" in key,
            lambda: dict.fromkeys(some),
        )
        return None if rng.random() < 0.5 else rng.choice(kinds)()

    def _array(self, items: list[Any]) -> Any:
        if all(isinstance(item, str) and "\x00" not in item for item in items) and items:
            return self._np.array(items, dtype=object)
        return items


def _same(found: Any, expected: Any, gap: float) -> None:
    """Raise Broken unless answers are the reference's; with a gap, scores may differ by it, and so their order."""
    if isinstance(expected, list) and expected and isinstance(expected[0], list):
        if len(found) != len(expected):
            raise Broken(f"{len(found)} answers to {len(expected)} questions")
        for one, other in zip(found, expected, strict=True):
            _same(one, other, gap)
        return
    plain = [(answer.entity, answer.score) for answer in found]
    if not gap and plain != expected:
        raise Broken(f"answered {plain[:4]}, expected {expected[:4]}")
    if gap and (
        len(plain) != len(expected)
        or any(abs(one[1] - other[1]) > gap for one, other in zip(plain, expected, strict=True))
    ):
        raise Broken(f"answered {plain[:4]}, expected {expected[:4]} within {gap}")


def _compared(ask: Callable[[], Any], expect: Callable[[], Any], same: Callable[[Any, Any], None]) -> str:
    """Ask both: the Scorer must refuse what the reference refuses, with a PmdError, and answer what it answers."""
    from pmd.serving.errors import PmdError
    from tests.trust.fuzz_model import Refused

    try:
        expected = expect()
    except Refused:
        expected = None
    except Raised:
        expected = Raised

    def run() -> str:
        try:
            found = ask()
        except Raised:
            return "the caller's own exception"
        if expected is None or expected is Raised:
            raise Broken(f"answered {str(found)[:100]} to a question that cannot be answered")
        same(found, expected)
        return "as the reference"

    outcome = settled(run, PmdError)
    if (
        expected is not None
        and expected is not Raised
        and outcome not in ("as the reference", "the caller's own exception")
    ):
        raise Broken(f"{outcome} for a question that the reference answers")
    return outcome


def _ask_top(scorer: Scorer, reference: Reference, draw: Draw, exact: bool) -> str:
    rng, wrong = draw.rng, draw.rng.choice((0.0, 0.0, 0.1, 0.4))
    inverse = rng.random() < 0.5
    is_text = rng.choice((False, False, True)) if rng.random() >= wrong / 3 else draw.odd()
    given = draw.keys(list(TEXTS) if is_text is True else draw.entities, wrong)
    how = {
        "exclude_known": draw.flag(wrong / 3),
        "reranked": draw.flag(wrong / 3),
        "among": draw.among(wrong / 2),
    }
    relation, k = draw.keys(draw.relations, wrong), draw.k(wrong)
    if inverse:
        ask = partial(scorer.top_heads, relation, given, k, tail_is_text=is_text, **how)
    else:
        ask = partial(scorer.top_tails, given, relation, k, head_is_text=is_text, **how)
    expect = partial(reference.top, given, relation, k, is_text=is_text, inverse=inverse, **how)
    alone = isinstance(given, str) and isinstance(relation, str)
    return _compared(ask, expect, partial(_same, gap=0.0 if exact or alone else BATCH_GAP))


def _ask_score(scorer: Scorer, reference: Reference, draw: Draw, exact: bool) -> str:
    rng, wrong = draw.rng, draw.rng.choice((0.0, 0.05, 0.3))
    triples: Any = [
        rng.choice((tuple, list))(draw.key(good, wrong) for good in (draw.entities, draw.relations, draw.entities))
        for _ in range(rng.randrange(5))
    ]
    if rng.random() < wrong:
        triples = rng.choice((draw.odd(), [*triples, draw.odd()], [("aspirin", "treats")], {"aspirin"}))

    def expect() -> list[float]:
        from tests.trust.fuzz_model import Refused, _list

        listed = [_list(triple) for triple in _list(triples)]
        if any(len(triple) != 3 for triple in listed):
            raise Refused
        found = []
        for head, via, tail in listed:
            one, relation, other = reference.entity(head), reference.relation(via), reference.entity(tail)
            found.append(float(reference.scores(one, relation, False)[other]))
        return found

    def same(found: Any, expected: list[float]) -> None:
        gap = 0.0 if exact or len(expected) == 1 else BATCH_GAP
        if found.shape != (len(expected),) or any(
            abs(one - other) > gap for one, other in zip(found, expected, strict=True)
        ):
            raise Broken(f"scored {found.tolist()}, expected {expected}")

    return _compared(lambda: scorer.score(triples), expect, same)


def _ask_explain(scorer: Scorer, reference: Reference, draw: Draw, exact: bool) -> str:
    from tests.trust.fuzz_model import Refused, _count

    rng, wrong = draw.rng, draw.rng.choice((0.0, 0.05, 0.3))
    head, via, tail = (draw.key(good, wrong) for good in (draw.entities, draw.relations, draw.entities))
    asks = rng.choice(("tail", "head")) if rng.random() >= wrong else draw.odd()
    triples = draw.k(wrong)

    def expect() -> tuple[float, int, bool]:
        if not isinstance(asks, str) or asks not in ("tail", "head"):
            raise Refused
        _count(triples)
        given, wanted = (head, tail) if asks == "tail" else (tail, head)
        one, relation, answer = reference.entity(given), reference.relation(via), reference.entity(wanted)
        scores = reference.scores(one, relation, asks == "head")
        known = [reference.knows(one, relation, other, asks == "head") for other in range(len(scores))]
        key = (-scores[answer], answer)
        rank = 1 + sum((-scores[i], i) < key and not known[i] for i in range(len(scores)))
        return float(scores[answer]), rank, known[answer]

    def same(found: Any, expected: tuple[float, int, bool]) -> None:
        said = (found.answer.score, found.rank, found.is_known)
        if said != expected or len(found.nearest) > int(triples):
            raise Broken(f"explained as {said}, expected {expected}")

    return _compared(lambda: scorer.explain(head, via, tail, asks=asks, triples=triples), expect, same)


def _ask_find(scorer: Scorer, reference: Reference, draw: Draw, exact: bool) -> str:
    key = draw.key([*draw.entities, "nobody", "cold"], 0.5)

    def expect() -> tuple[str | None]:
        from tests.trust.fuzz_model import Refused

        if not isinstance(key, str):
            raise Refused
        try:
            return (reference.ids[reference.entity(key)],)
        except Refused:
            return (None,)

    def same(found: Any, expected: tuple[str | None]) -> None:
        if (found,) != expected:
            raise Broken(f"found {found!r}, expected {expected[0]!r}")

    return _compared(lambda: scorer.find_entity(key), expect, same)


def _ask_grid(scorer: Scorer, reference: Reference, draw: Draw, exact: bool) -> str:
    """score_queries, evaluate and split_scores: only which arguments they take."""
    import numpy as np

    rng = draw.rng
    wrong = rng.choice((0.0, 0.3))
    heads, relations = ([rng.randrange(limit) for _ in range(2)] for limit in (12, 6))
    given: list[Any] = [np.array(heads, rng.choice(("i8", "u1", "i4"))), relations]
    if rng.random() < wrong:
        given[rng.randrange(2)] = rng.choice(
            (draw.odd(), [-1, 0], [0, 12], [0.0, 1.0], [True, False], [[0], [1, 2]], [2**70, 0])
        )

    def run() -> str:
        if rng.random() < 0.3:
            scorer.split_scores(draw.key(["train", "valid", "test"], 0.8), reranked=draw.flag(0.3))
            return "answered"
        scores = scorer.score_queries(*given)
        for row, head, via in zip(scores, *given, strict=True):
            expected = reference.scores(int(head), int(via) % 3, int(via) >= 3)
            if not np.allclose(row, expected, rtol=0, atol=BATCH_GAP):
                raise Broken("score_queries gave other scores than one question at a time")
        return "answered"

    from pmd.serving.errors import PmdError

    return settled(run, PmdError)


KINDS = ((_ask_top, 60), (_ask_score, 12), (_ask_explain, 12), (_ask_find, 10), (_ask_grid, 6))


def _queries(ground: Ground) -> Tally:
    from pmd.serving import Scorer
    from tests.tiny_bundle import write_tiny_bundle
    from tests.trust.fuzz_model import Reference

    tally, rng = Tally(), ground.random
    sides = []
    for precision in ("int8", "fp32"):
        folder = write_tiny_bundle(ground.folder / precision, precision=precision)
        scorer = Scorer.load(folder, threads=1)
        reference = Reference(scorer)
        sides.append((scorer, reference, precision == "int8"))
    asked, weights = [kind for kind, _ in KINDS], [weight for _, weight in KINDS]
    for number in range(ground.count):
        scorer, reference, exact = rng.choice(sides)
        (ask,) = rng.choices(asked, weights)
        draw = Draw(random.Random(f"{ground.seed}/{number}"), reference)
        numbered(tally, partial(ask, scorer, reference, draw, exact), ground, number)
    return tally


ATTACKS = (
    Attack(
        "fuzz-queries",
        "fuzzing",
        "Questions with right and wrong arguments: a PmdError where the reference refuses, its answers otherwise",
        _queries,
        quick=8_000,
        full=150_000,
    ),
)
