"""The search finds what scoring every entity exactly finds, to the last bit, however it goes about it."""

from __future__ import annotations

import numpy as np
import pytest
from scan_graphs import FOLDER, scan_graphs

from pmd.serving import scan as scan_module
from pmd.serving import search as search_module
from pmd.serving.ranking import RankingError
from pmd.serving.scan import Float32Scan, Int8Scan, make_scan
from pmd.serving.search import EXACT, Fresh, Search, Wish
from pmd.serving.vectors import VectorTable, on_grid, top_k

E, D, Q = 3000, 24, 9
NONE = np.zeros(0, np.int64)


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    vectors = rng.standard_normal(shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def crowded(rng: np.random.Generator) -> np.ndarray:
    """Vectors with many ties and near ties: a few centres, some rows equal to them, others just beside."""
    centres = unit(rng, 12, D)
    vectors = centres[rng.integers(12, size=E)] + rng.choice([0.0, 1e-7, 1e-4, 0.02], (E, 1)) * unit(rng, E, D)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module", params=["float32", "int8"])
def table(request) -> VectorTable:
    vectors = crowded(np.random.default_rng(0))
    return VectorTable(vectors) if request.param == "float32" else VectorTable.quantised(vectors)


@pytest.fixture(scope="module")
def queries(table) -> np.ndarray:
    rng = np.random.default_rng(1)
    return np.concatenate([unit(rng, Q - 3, D), table.vectors()[[5, 77]], np.zeros((1, D), np.float32)])


@pytest.fixture(params=["scan", "numpy"])
def search(request, table, monkeypatch) -> Search:
    monkeypatch.setattr(search_module, "_is_faster", lambda *_: request.param == "scan")
    made = Search(table, threads=1)
    assert (made.about == EXACT) == (request.param == "numpy")
    return made


def slow(scores: np.ndarray, wish: Wish) -> tuple[np.ndarray, np.ndarray]:
    """The obvious way, from exact scores (E,)."""
    scores = scores.copy()
    if wish.nearer is not None:
        scores[wish.nearer] += np.float32(wish.weight)
    allowed = np.zeros(len(scores), bool)
    allowed[np.arange(len(scores)) if wish.allowed is None else wish.allowed] = True
    if wish.excluded is not None:
        allowed[wish.excluded] = False
    scores[~allowed] = -np.inf
    order = np.lexsort((np.arange(len(scores)), -scores))
    best = order[np.isfinite(scores[order])][: wish.k]
    return best, scores[best]


def assert_same(found, expected):
    for (index, scores), (wanted_index, wanted) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(index, wanted_index)
        np.testing.assert_array_equal(scores, wanted)
        assert scores.dtype == np.float32


WISHES = {
    "ten": Wish(10),
    "one": Wish(1),
    "most": Wish(E - 1),
    "more than there are": Wish(E + 5),
    "excluded": Wish(10, excluded=np.arange(0, E, 3)),
    "all but a few excluded": Wish(10, excluded=np.arange(4, E)),
    "few allowed": Wish(10, allowed=np.array([3, 5, 700, 2999])),
    "none allowed": Wish(10, allowed=NONE),
    "many allowed": Wish(10, allowed=np.arange(1, E, 1)),
    "allowed and excluded": Wish(5, allowed=np.arange(0, 60), excluded=np.arange(30, 90)),
    "nearer": Wish(10, nearer=np.arange(0, E, 7), weight=0.05),
    "further": Wish(10, nearer=np.arange(0, E, 7), weight=-0.2, excluded=np.array([1, 7])),
}


@pytest.mark.parametrize("name", WISHES)
def test_the_best_are_those_of_exact_scores(search, table, queries, name):
    wishes = [WISHES[name]] * len(queries)
    exact = table.scores(queries)
    assert_same(search.best(queries, wishes), [slow(row, wish) for row, wish in zip(exact, wishes, strict=True)])


def test_a_batch_is_its_questions_one_by_one(search, queries, monkeypatch):
    wishes = list(WISHES.values())[: len(queries)]
    whole = search.best(queries, wishes)
    assert_same([search.best(queries[i : i + 1], wishes[i : i + 1])[0] for i in range(len(queries))], whole)
    monkeypatch.setattr(search_module, "QUERIES_AT_ONCE", 2)
    assert_same(search.best(queries, wishes), whole)
    assert search.best(queries[:0], []) == []


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_no_bit(table, queries, threads):
    wishes = [Wish(20)] * len(queries)
    expected = [slow(row, Wish(20)) for row in table.scores(queries)]
    assert_same(Search(table, threads=threads).best(queries, wishes), expected)


@pytest.mark.parametrize(
    "name", ["ten", "excluded", "few allowed", "many allowed", "nearer", "more than there are"]
)
def test_fresh_vectors_stand_in_for_the_table(search, table, queries, name):
    rng = np.random.default_rng(3)
    slots = np.array([4, 77, 1500, E, E + 1, E + 2])
    new = unit(rng, len(slots), D)
    new[4] = queries[2]  # one that must win
    kind = VectorTable if table.scales is None else VectorTable.quantised
    gone = np.array([5, 9, E + 1])
    fresh = Fresh(slots, kind(new), gone, E + 3)
    vectors = table.joined(fresh.vectors)
    place = np.arange(E + 3)
    place[slots] = E + np.arange(len(slots))
    exact = vectors.take(place).scores(queries)
    exact[:, gone] = -np.inf
    wish = WISHES[name]
    expected = []
    for row in exact:
        index, scores = slow(row, wish)
        expected.append((index, scores))
    assert_same(search.best(queries, [wish] * len(queries), fresh), expected)
    pairs = np.array([4, 5, 77, E, 0, E + 2, 1500, 2, 3])
    pair_scores = search.pair_scores(queries, pairs, fresh)
    np.testing.assert_array_equal(pair_scores, vectors.take(place).scores(queries)[np.arange(Q), pairs])


# ---- the pass over the table --------------------------------------------------------------------------------


def test_the_graphs_are_those_that_onnx_makes():
    assert {path.name: path.read_bytes() for path in FOLDER.iterdir()} == scan_graphs()


@pytest.mark.parametrize("bits", [8, 7])
def test_an_int8_pass_is_within_its_bound_and_the_bound_is_tight(bits):
    rng = np.random.default_rng(5)
    table = VectorTable.quantised(unit(rng, E, D))
    scan = Int8Scan(table, scan_module._session("int8", 1), bits)
    queries = np.concatenate([unit(rng, 200, D), np.eye(D, dtype=np.float32)]).astype(np.float64)
    scores, slack = scan(queries)
    gaps = np.abs(scores - table.scores(queries)).max(axis=1)
    assert (gaps <= slack).all()
    assert np.median(slack[:200]) < (0.01 if bits == 8 else 0.02)
    assert np.median(gaps[:200] / slack[:200]) > 0.3  # a bound that is hardly used would let in too many candidates
    assert slack[200:].max() < 2e-6  # nothing is lost on queries that 8 bits hold


def test_a_float32_pass_is_within_its_bound():
    rng = np.random.default_rng(6)
    table = VectorTable(unit(rng, E, D))
    scan = make_scan(table, 1)
    assert isinstance(scan, Float32Scan)
    queries = unit(rng, 200, D).astype(np.float64)
    scores, slack = scan(queries)
    assert (np.abs(scores - table.scores(queries)).max(axis=1) <= slack).all()
    assert slack.max() < 1e-5


class Saturating:
    """A session whose kernels add two products in 16 bits and cut off, as AVX2 without VNNI does."""

    def __init__(self, session) -> None:
        self._session = session

    def run(self, outputs, inputs):
        queries, levels = inputs["queries"], inputs["levels"]
        steps = np.abs(queries).max(axis=1, keepdims=True) / levels
        whole = np.rint(queries / steps)
        products = (whole + levels + 1).astype(np.int64)[:, :, None] * inputs["entities"].astype(np.int64)[None]
        pairs = products[:, ::2].copy()
        pairs[:, : products.shape[1] // 2] += products[:, 1::2]
        sums = pairs.clip(-(2**15), 2**15 - 1).sum(axis=1).astype(np.int32)
        made = {
            "products": sums,
            "scores": ((sums - inputs["shift"]) * inputs["scales"] * steps).astype(np.float32),
            "rest": np.linalg.norm(queries - whole * steps, axis=1),
            "lengths": np.linalg.norm(queries, axis=1),
        }
        return [made[name] for name in outputs]


def test_where_8_bits_overflow_7_are_taken_and_the_answers_stay(monkeypatch):
    rng = np.random.default_rng(7)
    table = VectorTable.quantised(unit(rng, 300, D))
    session = scan_module._session
    monkeypatch.setattr(scan_module, "_session", lambda kind, threads: Saturating(session(kind, threads)))
    monkeypatch.setattr(search_module, "_is_faster", lambda *_: True)
    search = Search(table, threads=1)
    assert search.about == "onnxruntime, int8, queries of 7 bits"
    queries = unit(rng, 20, D)
    expected = [slow(row, Wish(10)) for row in table.scores(queries)]
    assert_same(search.best(queries, [Wish(10)] * 20), expected)
    table_bound = Int8Scan(table, Saturating(session("int8", 1)), 8)
    scores, slack = table_bound(np.sign(queries) / np.sqrt(D))  # what the trial is there for
    wrong = np.abs(scores - table.scores(np.sign(queries) / np.sqrt(D))).max(axis=1) > slack
    assert wrong.any()


def test_where_sums_are_wrong_anyway_nothing_is_scanned(monkeypatch):
    class Wrong(Saturating):
        def run(self, outputs, inputs):
            return [part + 1 for part in super().run(outputs, inputs)]

    session = scan_module._session
    monkeypatch.setattr(scan_module, "_session", lambda kind, threads: Wrong(session(kind, threads)))
    table = VectorTable.quantised(unit(np.random.default_rng(8), 50, D))
    search = Search(table, threads=1)
    assert search.about == EXACT
    query = table.vectors()[:1]
    assert_same(search.best(query, [Wish(3)]), [slow(table.scores(query)[0], Wish(3))])


def test_this_processor_adds_8_bit_products_exactly_in_one_of_the_ways():
    table = VectorTable.quantised(unit(np.random.default_rng(9), 50, D))
    assert make_scan(table, 1) is not None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_damaged_table_or_query_is_refused(bad, monkeypatch):
    monkeypatch.setattr(search_module, "_is_faster", lambda *_: True)
    vectors = unit(np.random.default_rng(10), 50, D)
    query = vectors[:1].copy()
    vectors[7, 3] = bad
    with pytest.raises(RankingError, match="damaged"):
        Search(VectorTable(vectors), threads=1).best(query, [Wish(3)])
    query[0, 0] = bad
    with pytest.raises(RankingError, match="NaN or infinity"):
        Search(VectorTable.quantised(np.eye(D)), threads=1).best(query, [Wish(3)])


def test_few_are_scored_again(table, queries, monkeypatch):
    """The pass is worth it only if it leaves few; this crowded table has hundreds of ties."""
    monkeypatch.setattr(search_module, "_is_faster", lambda *_: True)
    spread = VectorTable.quantised(unit(np.random.default_rng(11), 20_000, 384))
    search, counts = Search(spread, threads=1), []
    exact = VectorTable.some_scores
    monkeypatch.setattr(VectorTable, "some_scores", lambda s, g, e: counts.append(len(e)) or exact(s, g, e))
    wanted = unit(np.random.default_rng(12), 20, 384)
    found = search.best(wanted, [Wish(10)] * 20)
    assert len(counts) == 20
    assert max(counts) < 400
    for (index, _), row in zip(found, spread.scores(wanted), strict=True):
        np.testing.assert_array_equal(index, top_k(row, 10))
    assert on_grid(wanted).shape == wanted.shape
