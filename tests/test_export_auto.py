"""A budget, what is best within it, and `pmd-export --auto`, which keeps that and nothing else."""

import contextlib
import functools
import itertools
import json
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from pmd.export import cli, jobs
from pmd.export.auto import QUESTIONS, WARM_UP, Budget, Tried, best, frontier, question_ms
from pmd.export.bundle import write_bundle
from pmd.export.cli import main
from pmd.export.errors import ExportError, TargetError
from pmd.export.jobs import Order, search
from pmd.export.loading import load_stage
from pmd.export.making import Making
from pmd.serving import Scorer
from tests.tiny_run import write_run

FAILED = "mrr_kept is 0.5, needed at least 0.995"


# ---- budgets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "measure", "bound"),
    [
        ("10MB", "size_bytes", 10e6),
        ("10 MB", "size_bytes", 10e6),
        (" 10MB ", "size_bytes", 10e6),
        ("1MiB", "size_bytes", 2**20),
        ("0.5GB", "size_bytes", 5e8),
        ("300kB", "size_bytes", 3e5),
        ("300B", "size_bytes", 300),
        ("2.5ms", "query_ms", 2.5),
        ("99%", "mrr", 0.99),
        ("99.5%", "mrr", 0.995),
    ],
)
def test_a_budget_is_a_size_a_time_or_a_share(text, measure, bound):
    budget = Budget.parse(text)
    assert (budget.measure, budget.text) == (measure, text.strip())
    assert budget.bound == pytest.approx(bound, rel=1e-12)


@pytest.mark.parametrize(
    "text",
    ["", "10", "MB", "ten MB", "-1MB", "+1MB", "99 percent", "10  MB", "10MB 2ms", "1e3MB", "1.MB", ".5MB", "2s"],
)
def test_anything_else_is_no_budget(text):
    with pytest.raises(TargetError, match=r"is no budget; say a size \(10MB\), a time \(2ms\) or a share of MRR"):
        Budget.parse(text)


def tried(size_bytes, query_ms, mrr, failure=None, *, folder="there"):
    return Tried("grade-2", Making("fp32"), Path(folder), size_bytes, query_ms, mrr, failure)


@pytest.mark.parametrize(
    ("text", "within", "beyond"),
    [
        ("2kB", tried(2000, 9, 0), tried(2001, 0, 1)),
        ("2ms", tried(9, 2.0, 0), tried(0, 2.001, 1)),
        ("50%", tried(9, 9, 0.2), tried(0, 0, 0.1999)),  # of a model with MRR 0.4
    ],
)
def test_the_bound_itself_is_within(text, within, beyond):
    budget = Budget.parse(text)
    assert budget.met_by(within, full_mrr=0.4)
    assert not budget.met_by(beyond, full_mrr=0.4)


# ---- what is best -----------------------------------------------------------------------------------------------

MIDDLE = (20, 2.0, 0.5)


@pytest.mark.parametrize(
    ("other", "better", "worse"),
    [
        (MIDDLE, False, False),
        ((19, 2.0, 0.5), True, False),
        ((20, 1.9, 0.5), True, False),
        ((20, 2.0, 0.6), True, False),
        ((19, 1.9, 0.6), True, False),
        ((21, 2.0, 0.4), False, True),
        ((19, 2.1, 0.5), False, False),
        ((19, 2.0, 0.4), False, False),
        ((20, 1.9, 0.4), False, False),
    ],
)
def test_one_dominates_another_if_nowhere_worse_and_somewhere_better(other, better, worse):
    assert tried(*other).dominates(tried(*MIDDLE)) is better
    assert tried(*MIDDLE).dominates(tried(*other)) is worse


# few values, so that ties are common
MEASURED = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(0, 4), st.sampled_from([None, None, FAILED]))
BUDGETS = st.sampled_from(["0B", "1B", "2B", "3B", "9B", "1ms", "2.5ms", "9ms", "0%", "50%", "99%", "100%", "200%"])


@st.composite
def several(draw):
    """Up to eight bundles, each in a folder of its own."""
    rows = draw(st.lists(MEASURED, max_size=8))
    return [tried(*row, folder=str(number)) for number, row in enumerate(rows)]


@given(several())
def test_the_frontier_is_what_nothing_dominates(found):
    passed, on = [one for one in found if one.failure is None], frontier(found)
    assert bool(on) == bool(passed)
    assert all(one in passed for one in on)
    assert not any(other.dominates(one) for one in on for other in passed)
    for one in passed:
        if one not in on:
            assert any(other.dominates(one) for other in on)
    assert [one.size_bytes for one in on] == sorted(one.size_bytes for one in on)


@given(several(), BUDGETS)
def test_the_best_is_on_the_frontier_and_the_best_there_is(found, text):
    budget, full = Budget.parse(text), max((one.mrr for one in found), default=1)
    fitting = [one for one in found if one.failure is None and budget.met_by(one, full)]
    kept = best(found, budget, full)
    assert (kept is None) == (not fitting)
    if kept is None:
        return
    assert kept in fitting
    assert kept in frontier(found)
    if budget.measure == "mrr":
        assert kept.size_bytes == min(one.size_bytes for one in fitting)
    else:
        assert kept.mrr == max(one.mrr for one in fitting)


def test_equals_are_told_apart_by_the_other_measures():
    slow, fast = tried(10, 2.0, 0.5), tried(10, 1.0, 0.5)
    poor = tried(10, 1.0, 0.45)
    assert best([slow, fast], Budget.parse("1kB"), 0.5) is fast
    assert best([poor, fast], Budget.parse("90%"), 0.5) is fast
    assert best([slow, tried(9, 3.0, 0.5)], Budget.parse("5ms"), 0.5).size_bytes == 9


# ---- the time of a question -------------------------------------------------------------------------------------


class Clock:
    """A clock by which each question takes the next of the times given, in seconds."""

    def __init__(self, times):
        self._times, self._now, self._running = iter(times), 0.0, False

    def __call__(self):
        if self._running:
            self._now += next(self._times)
        self._running = not self._running
        return self._now


def test_the_time_of_a_question_is_a_median_without_the_first(tiny_folder):
    times = np.random.default_rng(0).permutation(np.arange(1, QUESTIONS + 1)) / 1000
    clock = Clock([*[100.0] * WARM_UP, *times])
    assert question_ms(tiny_folder, "train", clock=clock) == pytest.approx((QUESTIONS + 1) / 2)


def test_questions_are_those_of_the_split_in_both_directions(tiny_folder, monkeypatch):
    asked, threads = set(), []
    original = Scorer.load.__func__

    def load(cls, path, **options):
        threads.append(options["threads"])
        scorer = original(cls, path, **options)
        top_tails, top_heads = scorer.top_tails, scorer.top_heads

        def tails(*question, k):
            asked.add(("tail", *question))
            return top_tails(*question, k=k)

        def heads(*question, k):
            asked.add(("head", *question))
            return top_heads(*question, k=k)

        monkeypatch.setattr(scorer, "top_tails", tails)
        monkeypatch.setattr(scorer, "top_heads", heads)
        return scorer

    monkeypatch.setattr(Scorer, "load", classmethod(load))
    assert question_ms(tiny_folder, "valid") > 0
    assert threads == [1]
    assert asked == {
        ("tail", "ibuprofen", "treats"),
        ("tail", "cold_illness", "causes"),
        ("head", "treats", "fever"),
        ("head", "causes", "pain"),
    }


# ---- a search ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def pretended(root, rows, torch_mrr):
    """Orders for bundles of these measures, each of a stage with this MRR in torch, without any model."""
    orders = [
        Order(SimpleNamespace(label=f"grade-{number}"), Making("fp32"), root / "bundles" / f"{number}")
        for number in range(len(rows))
    ]

    def readied(run, orders, data, say):
        for order, mrr in zip(orders, torch_mrr, strict=True):
            yield order, SimpleNamespace(loaded=SimpleNamespace(reference=SimpleNamespace(mrr=mrr)))

    def attempt(ready, order, folder, gate):
        size_bytes, query_ms, mrr, failure = rows[int(order.target.name)]
        if failure is None:
            folder.mkdir(parents=True)
            (folder / "manifest.json").write_text(order.stage.label)
        return Tried(order.stage.label, order.making, folder, size_bytes, query_ms, mrr, failure), {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "_readied", readied)
        patch.setattr(jobs, "_try", attempt)
        patch.setattr(tempfile, "tempdir", str(root / "scratch"))
        (root / "scratch").mkdir()
        yield orders


def searched(root, rows, torch_mrr, text):
    with pretended(root, rows, torch_mrr) as orders:
        return search(None, orders, Budget.parse(text), None, {}, False, lambda line: None)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_best_of_the_stages_sets_the_bar(tmp_path, order):
    """The smallest keeps 90 % of the 0.5 of its own stage, but not of another's 0.6."""
    stages = [((30, 1.0, 0.55, None), 0.5), ((10, 1.0, 0.46, None), 0.5), ((40, 1.0, 0.6, None), 0.6)]
    outcome = searched(tmp_path, [stages[at][0] for at in order], [stages[at][1] for at in order], "90%")
    assert outcome.kept[0].stage.label == f"grade-{order.index(0)}"


@given(st.lists(st.tuples(MEASURED, st.integers(1, 4)), max_size=6), BUDGETS)
def test_a_search_keeps_what_is_best_of_all_it_tried(tmp_path_factory, found, text):
    """Whatever the order: what is thrown away on the way must not be what is wanted in the end."""
    root = tmp_path_factory.mktemp("search")
    rows, torch_mrr = [row for row, _ in found], [mrr for _, mrr in found]
    all_tried = [tried(*row, folder=str(number)) for number, row in enumerate(rows)]
    want = best(all_tried, Budget.parse(text), max(torch_mrr, default=0))
    if want is None:
        with pytest.raises(ExportError, match=f"nothing of {len(rows)} bundles is within {text}"):
            searched(root, rows, torch_mrr, text)
        assert not (root / "bundles").exists()
    else:
        outcome = searched(root, rows, torch_mrr, text)
        order, _ = outcome.kept
        assert order.target.name == str(want.folder)
        assert [path.name for path in (root / "bundles").iterdir()] == [order.target.name]
        assert (order.target / "manifest.json").read_text() == order.stage.label
        assert len(outcome.tried) == len(rows)
    assert list((root / "scratch").iterdir()) == []


def test_what_cannot_be_kept_any_more_is_not_on_disk(tmp_path):
    rows = [(10, 1.0, 0.1, None), (30, 1.0, 0.5, None), (20, 1.0, 0.5, None), (90, 1.0, 0.9, None)]
    seen = []

    def look(line):
        seen.append(sorted(path.parent.name for path in tmp_path.glob("scratch/*/*/*")))

    with pretended(tmp_path, rows, [0.5] * 4) as orders:
        search(None, orders, Budget.parse("50B"), None, {}, False, look)
    assert seen == [["0"], ["0", "1"], ["0", "1", "2"], ["0", "2", "3"]]  # each line comes before what it ends


@pytest.mark.parametrize(
    ("text", "nearest"), [("1B", "grade-1 fp32: 0.00 MB"), ("0.1ms", "grade-2 fp32"), ("99%", "grade-0 fp32")]
)
def test_the_nearest_is_told_where_nothing_fits(tmp_path, text, nearest):
    rows = [(30, 3.0, 0.5, None), (10, 2.0, 0.4, None), (20, 1.0, 0.3, None), (0, 0.0, 0.0, FAILED)]
    with pytest.raises(ExportError, match=f"nothing of 4 bundles is within {text}; the nearest is {nearest}"):
        searched(tmp_path, rows, [0.9] * 4, text)


# ---- the command ------------------------------------------------------------------------------------------------

STAGES = {"teacher": 1, "pre-distilled": 1, "grade-2": 2}
"""The tiny run's, with smaller ones before the stage that is exported."""
FLOAT_AND_INT8 = ("--precision", "fp32", "--precision", "int8", "--whole-vocabulary")
SPEEDS = {"fp32": 2.0, "int8": 1.0}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("source"), stages=STAGES)


@pytest.fixture(scope="module")
def load_once():
    """`load_stage`, which loads the stage and traces it once for all tests."""

    stages = {}

    def load(run, stage, graph):
        if stage.label not in stages:
            loaded = load_stage(run, stage, graph)
            stages[stage.label] = SimpleNamespace(grade=loaded.grade, ready=functools.cache(loaded.ready))
        return stages[stage.label]

    return load


@pytest.fixture(scope="module")
def made_before(tmp_path_factory):
    """`write_bundle`, which makes each bundle once."""
    store = tmp_path_factory.mktemp("store")

    def write(ready, making, out, *, gate):
        if gate:
            return write_bundle(ready, making, out, gate=gate)
        made = store / making.precision / out.name
        if not made.exists():
            write_bundle(ready, making, made)
        shutil.copytree(made, out)
        return manifest(out)

    return write


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Bundles go to bundles/ below the folder the user stands in, and scratch to a folder that can be looked at."""
    (tmp_path / "scratch").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    monkeypatch.chdir(tmp_path / "here")
    yield
    assert list((tmp_path / "scratch").iterdir()) == [], "scratch was left behind"


@pytest.fixture
def quick(load_once, made_before, elsewhere, monkeypatch):
    """A model and bundles that are there already, and times that are the same everywhere."""
    monkeypatch.setattr(jobs, "load_stage", load_once)
    monkeypatch.setattr(jobs, "write_bundle", made_before)
    monkeypatch.setattr(jobs, "question_ms", lambda folder, split: SPEEDS[manifest(folder)["precision"]])


@pytest.fixture
def poor_int8(quick, made_before, monkeypatch):
    """An int8 bundle of half the MRR that it has."""

    def write(ready, making, out, *, gate):
        facts = made_before(ready, making, out, gate=gate)
        if making.precision == "int8":
            facts["parity"]["mrr_bundle"] /= 2
        return facts

    monkeypatch.setattr(jobs, "write_bundle", write)


def manifest(folder):
    return json.loads((Path(folder) / "manifest.json").read_text())


def export(run, *options):
    result = CliRunner().invoke(main, [str(option) for option in ("--grade", 2, "--run", run, *options)])
    return result.exit_code, result.stdout, result.stderr


def found(run, *options):
    """The table and the JSON object of a command that must succeed."""
    code, stdout, stderr = export(run, *options)
    assert (code, stderr) == (0, "")
    *table, last = stdout.splitlines()
    return table, json.loads(last)


def refused(run, *options, code):
    """The one error line of a command that must fail without a trace or a result."""
    exit_code, stdout, stderr = export(run, *options)
    assert (exit_code, stdout) == (code, ""), stderr
    lines = [line for line in stderr.splitlines() if line]  # click ends the line that ^C stands on
    assert len(lines) == 1, stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def in_bundles():
    return sorted(path.name for path in Path("bundles").iterdir()) if Path("bundles").exists() else []


def test_a_search_from_beginning_to_end(run, load_once, elsewhere, monkeypatch):
    """With fresh bundles and the real clock."""
    monkeypatch.setattr(jobs, "load_stage", load_once)
    table, result = found(run, *FLOAT_AND_INT8, "--auto", "99%")
    assert list(result) == ["schema", "bundles", "tried", "seconds"]
    assert result["schema"] == "pmd-export/1"
    assert result["seconds"] > 0
    assert [set(one) for one in result["tried"]] == [
        {"stage", "name", "bytes", "query_ms", "mrr", "failure", "frontier"}
    ] * 2
    assert [(one["stage"], one["name"]) for one in result["tried"]] == [("grade-2", "fp32"), ("grade-2", "int8")]
    assert all(one["query_ms"] > 0 for one in result["tried"])
    (kept,) = result["bundles"]
    assert kept["path"] == "bundles/tiny-pmd-grade-2-int8"
    assert in_bundles() == ["tiny-pmd-grade-2-int8"]
    facts, smallest = manifest(kept["path"]), result["tried"][1]
    assert smallest["mrr"] == facts["parity"]["mrr_bundle"]
    assert (smallest["failure"], smallest["frontier"]) == (None, True)
    on_disk = sum(path.stat().st_size for path in Path(kept["path"]).rglob("*") if path.is_file())
    assert smallest["bytes"] == kept["bytes"] == on_disk
    assert smallest["bytes"] < result["tried"][0]["bytes"]
    Scorer.load(kept["path"], threads=1, verify=True)
    assert "# tiny-pmd-grade-2-int8" in Path(kept["path"], "README.md").read_text().splitlines()
    assert len(table) == 5  # two heads, two that were tried, one that was kept
    assert "grade-2 int8" in table[2]
    assert table[2].startswith("* ")


@pytest.mark.parametrize(("budget", "kept"), [("99%", "fp32"), ("51%", "fp32"), ("40%", "int8")])
def test_a_share_of_the_mrr_keeps_the_smallest_that_keeps_it(run, poor_int8, budget, kept):
    _, result = found(run, *FLOAT_AND_INT8, "--auto", budget)
    assert [bundle["path"] for bundle in result["bundles"]] == [f"bundles/tiny-pmd-grade-2-{kept}"]
    assert in_bundles() == [f"tiny-pmd-grade-2-{kept}"]
    large, small = result["tried"]
    assert small["bytes"] < large["bytes"]


def test_a_size_keeps_the_highest_mrr_that_fits(run, poor_int8):
    _, result = found(run, *FLOAT_AND_INT8, "--auto", "1GB")
    assert in_bundles() == ["tiny-pmd-grade-2-fp32"]
    large, small = result["tried"]
    assert (large["frontier"], small["frontier"]) == (True, True)
    _, result = found(run, *FLOAT_AND_INT8, "--auto", f"{large['bytes'] - 1}B", "--force")
    assert [bundle["bytes"] for bundle in result["bundles"]] == [small["bytes"]]
    assert in_bundles() == ["tiny-pmd-grade-2-fp32", "tiny-pmd-grade-2-int8"]


def test_a_time_keeps_the_highest_mrr_that_is_fast_enough(run, quick):
    _, result = found(run, *FLOAT_AND_INT8, "--auto", "1.5ms")
    assert [one["query_ms"] for one in result["tried"]] == [2.0, 1.0]
    assert in_bundles() == ["tiny-pmd-grade-2-int8"]


@pytest.mark.parametrize("budget", ["1kB", "0.5ms", "300%"])
def test_nothing_is_left_where_nothing_fits(run, quick, budget):
    line = refused(run, *FLOAT_AND_INT8, "--auto", budget, code=1)
    assert f"nothing of 2 bundles is within {budget}; the nearest is grade-2 " in line
    assert list(Path().iterdir()) == []


def test_a_way_that_misses_its_gate_is_told_and_not_kept(run, quick):
    """Half an int8 bundle's scores are off by more than 1e-4, few of a float32 bundle's."""
    table, result = found(run, *FLOAT_AND_INT8, "--gate", "max_score_gap=0.0001", "--auto", "50%")
    assert in_bundles() == ["tiny-pmd-grade-2-fp32"]
    missed = result["tried"][1]
    assert missed["failure"].startswith("tiny-pmd-grade-2-int8 differs from torch: max_score_gap is ")
    assert missed["failure"].endswith("needed at most 0.0001")  # no report, which is gone
    assert (missed["bytes"], missed["query_ms"], missed["mrr"]) == (None, None, None)
    assert missed["frontier"] is False
    assert missed["failure"] in table[2]
    assert table[2].startswith("  ")


def test_all_may_miss_their_gates(run, quick):
    line = refused(run, *FLOAT_AND_INT8, "--gate", "mrr_kept=5", "--auto", "1%", code=1)
    assert line == "error: nothing of 2 bundles is within 1%; none passed its gate"
    assert list(Path().iterdir()) == []


def test_a_way_that_cannot_be_made_does_not_end_the_search(run, quick, made_before, monkeypatch):
    def write(ready, making, out, *, gate):
        if making.precision == "int8":
            raise ExportError("8 products kept float weights")
        return made_before(ready, making, out, gate=gate)

    monkeypatch.setattr(jobs, "write_bundle", write)
    _, result = found(run, *FLOAT_AND_INT8, "--auto", "99%")
    assert [one["failure"] for one in result["tried"]] == [None, "8 products kept float weights"]
    assert in_bundles() == ["tiny-pmd-grade-2-fp32"]


def test_out_names_the_bundle_that_is_kept(run, quick):
    _, result = found(run, *FLOAT_AND_INT8, "--auto", "99%", "--out", "mine")
    assert [bundle["path"] for bundle in result["bundles"]] == ["mine"]
    assert [path.name for path in Path().iterdir()] == ["mine"]
    assert manifest("mine")["precision"] == "int8"
    assert "Scorer.load('mine')" in Path("mine/README.md").read_text()


def test_a_bundle_in_the_way_is_replaced_only_with_force(run, quick, monkeypatch):
    options = (*FLOAT_AND_INT8, "--auto", "99%")
    found(run, *options)
    (Path("bundles") / "tiny-pmd-grade-2-int8" / "stray").write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "load_stage", lambda *_: pytest.fail("work was done before the target was looked at"))
        line = refused(run, *options, code=2)
    assert "bundles/tiny-pmd-grade-2-int8 exists already; replace it with --force" in line
    found(run, *options, "--force")
    assert in_bundles() == ["tiny-pmd-grade-2-int8"]
    assert not (Path("bundles") / "tiny-pmd-grade-2-int8" / "stray").exists()


def test_a_failed_search_leaves_the_bundle_that_was_there(run, quick):
    found(run, *FLOAT_AND_INT8, "--auto", "99%", "--out", "mine")
    before = Path("mine/manifest.json").read_bytes()
    refused(run, *FLOAT_AND_INT8, "--auto", "1kB", "--out", "mine", "--force", code=1)
    assert Path("mine/manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (("--whole-vocabulary",), ["fp32", "fp16", "int8", "int8-static", "int4"]),
        (("--whole-vocabulary", "--precision", "int4", "--precision", "fp16"), ["int4", "fp16"]),
        (("--whole-vocabulary", "--ort"), ["fp32", "int8", "int8-static"]),  # the others have no .ort file
        (("--trim-vocabulary", "--precision", "fp32"), ["fp32-trimmed"]),
        (("--precision", "fp32"), ["fp32", "fp32-trimmed"]),
        (
            ("--precision", "fp32", "--width", 8, "--width", 16, "--vectors", "int8", "--trim-vocabulary"),
            ["fp32-trimmed-width-8-int8-vectors", "fp32-trimmed-width-16-int8-vectors"],
        ),
    ],
)
def test_all_is_tried_that_the_options_leave_open(run, quick, monkeypatch, options, names):
    asked = []

    def write(ready, making, out, *, gate):
        asked.append((making.suffix, ready.trim_vocabulary, ready.narrow_to))
        raise ExportError("not now")

    monkeypatch.setattr(jobs, "write_bundle", write)
    refused(run, *options, "--auto", "1GB", code=1)
    assert [name for name, *_ in asked] == names
    for name, trimmed, width in asked:
        assert trimmed == ("trimmed" in name)
        assert (f"width-{width}" in name) == (width is not None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--width", 16, "--width", 8), "several --width need --auto, which chooses among them"),
        (("--auto", "ten MB"), "--auto 'ten MB' is no budget"),
        (("--auto", ""), "--auto '' is no budget"),
        (("--auto", "1MB", "--width", 33), "--width 33 does not fit an encoder of width 32"),
        (("--auto", "1MB", "--ort", "--precision", "fp16"), "--ort does not go with fp16"),
    ],
)
def test_mistakes(run, quick, options, message):
    assert message in refused(run, *options, code=2)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("when", [1, 2])
def test_an_interrupt_leaves_nothing(run, quick, made_before, monkeypatch, when):
    """At the first bundle, and at the second, when the first lies in the scratch folder."""
    calls = []

    def interrupt(ready, making, out, *, gate):
        calls.append(making)
        if len(calls) == when:
            raise KeyboardInterrupt
        return made_before(ready, making, out, gate=gate)

    monkeypatch.setattr(jobs, "write_bundle", interrupt)
    assert refused(run, *FLOAT_AND_INT8, "--auto", "99%", code=130) == "error: interrupted"
    assert list(Path().iterdir()) == []


def test_an_interrupt_at_the_last_copy_leaves_nothing(run, quick, monkeypatch):
    def interrupt(source, target, **options):
        shutil.copytree(source, target, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "shutil", SimpleNamespace(rmtree=shutil.rmtree, copytree=interrupt))
    assert refused(run, *FLOAT_AND_INT8, "--auto", "99%", code=130) == "error: interrupted"
    assert in_bundles() == []


def test_progress_says_what_each_way_came_to(run, quick, monkeypatch):
    monkeypatch.setattr(cli, "show_progress", lambda quiet: not quiet)
    code, _, stderr = export(run, *FLOAT_AND_INT8, "--gate", "max_score_gap=0.0001", "--auto", "50%")
    assert code == 0
    lines = [line for line in stderr.splitlines() if "MRR" in line or "differs" in line]
    assert len(lines) == 2
    assert lines[0].startswith("grade-2: fp32: 0.")
    assert " MB, 2.00 ms a question, MRR 0." in lines[0]
    assert lines[1].startswith("grade-2: int8: tiny-pmd-grade-2-int8 differs from torch")
