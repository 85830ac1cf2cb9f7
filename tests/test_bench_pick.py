"""The bundle to ship: limits, ties within the interval, and what is said where nothing fits."""

from __future__ import annotations

import json

import bench_rows
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from pmd.benchmarks.cli import main
from pmd.benchmarks.pick import LIMITS, lines, pick

BY_OPTION = {limit.option: limit for limit in LIMITS}


def bounds(**given: float) -> dict:
    return {BY_OPTION[name.replace("_", "-")]: bound for name, bound in given.items()}


def row(name: str, mrr: float | None = 0.8, size: float = 40, p50: float | None = 2.0, **changes: object) -> dict:
    """A row by name; `size` in MB."""
    made = bench_rows.row(mrr=mrr or 0.0, size=size, bundle=name, **changes)
    return {**made, "query_ms": {**made["query_ms"], "p50": p50}, **({} if mrr else {"metrics": None})}


def chosen(rows: list[dict], **given: float) -> dict:
    return pick({"results": rows}, bounds(**given))


def with_interval(made: dict, low: float, high: float) -> dict:
    return {**made, "analysis": {"interval": {"mrr": [low, high]}}}


def test_the_most_accurate_that_fits():
    rows = [row("large", 0.87, 180), row("middle", 0.86, 45), row("small", 0.80, 9)]
    assert chosen(rows)["bundle"] == "large"
    found = chosen(rows, max_mb=50)
    assert (found["bundle"], found["why"]) == ("middle", "the best MRR, 0.8600, of 2 that fit")
    assert found["fits"] == ["middle", "small"]
    assert found["ruled_out"] == {"large": ["size 180 MB is over 50.0 MB"]}
    assert found["passed_over"] == {"small": "MRR 0.8000 is below what counts as equal to 0.8600"}
    assert found["limits"] == {"max_mb": 50}
    assert chosen(rows, max_mb=10)["why"] == "it alone fits; MRR 0.8000"


def test_ties_within_the_interval_go_to_the_smaller_then_the_faster():
    best = with_interval(row("best", 0.87, 180, 8.0), 0.85, 0.89)
    near = [row("near", 0.851, 45, 2.0), row("near and fast", 0.850, 45, 1.9), row("below", 0.8499, 9)]
    found = chosen([best, *near])
    assert found["bundle"] == "near and fast"
    assert found["why"] == (
        "MRR 0.8500 is as good as the best, 0.8700 of best, whose 95 % interval begins at 0.8500; "
        "it is smaller: 45.0 MB, not 180 MB"
    )
    assert found["passed_over"] == {
        "best": "equal MRR (0.8700), but larger: 180 MB",
        "near": "equal MRR (0.8510) and size, but not faster: 2.00 ms",
        "below": "MRR 0.8499 is below what counts as equal to 0.8700",
    }
    # The interval is that of the best among those that fit: without `best`, nothing but an equal MRR ties.
    assert chosen([best, *near], max_mb=100)["bundle"] == "near"


def test_equal_mrrs_tie_without_an_interval():
    assert chosen([row("large", size=41), row("small", size=40)])["bundle"] == "small"
    slow, fast, unknown = row("slow", p50=2.0), row("fast", p50=1.9), row("unknown", p50=None)
    found = chosen([slow, unknown, fast])
    assert found["bundle"] == "fast"
    slow["bundle_bytes"] = None
    assert chosen([slow, unknown])["bundle"] == "unknown"


@pytest.mark.parametrize(
    ("option", "inside", "outside", "reason"),
    [
        ("max_mb", 40.0, 39.9, "size 40.0 MB is over 39.9 MB"),
        ("max_p50_ms", 2.0, 1.9, "query p50 2.00 ms is over 1.90 ms"),
        ("max_p95_ms", 2.7, 2.6, "query p95 2.67 ms is over 2.60 ms"),
        ("max_rss_mb", 80.0, 79.0, "peak memory 80.0 MB is over 79.0 MB"),
        ("max_cold_start_ms", 440.0, 439.0, "cold start 440 ms is over 439 ms"),
        ("min_mrr", 0.8, 0.81, "MRR 0.8000 is under 0.8100"),
        ("min_mrr_kept", 0.995, 0.996, "kept MRR 99.5 % is under 99.6 %"),
    ],
)
def test_every_limit_includes_its_bound(option, inside, outside, reason):
    assert chosen([row("a")], **{option: inside})["bundle"] == "a"
    found = chosen([row("a")], **{option: outside})
    assert found["bundle"] is None
    assert found["ruled_out"] == {"a": [reason]}


def test_figures_that_look_alike_are_told_to_the_last_digit():
    close = row("close")
    close["bundle_bytes"] = 40_000_100
    assert chosen([close], max_mb=40)["ruled_out"] == {"close": ["size 40.0001 is over 40"]}


def test_what_is_unknown_never_fits():
    nothing = {**row("a"), "mrr_kept": None, "peak_rss_bytes": None}
    found = chosen([nothing], max_rss_mb=1e6, min_mrr_kept=0.0)
    assert found["ruled_out"] == {"a": ["peak memory is unknown", "kept MRR is unknown"]}
    assert found["nearest"] == {"bundle": "a", "misses": found["ruled_out"]["a"], "times_the_limit": None}
    assert chosen([row("b", mrr=None)])["ruled_out"] == {"b": ["MRR is unknown"]}
    broken = bench_rows.failed_row("damaged")
    assert chosen([broken])["ruled_out"] == {broken["bundle"]: ["could not be measured: damaged"]}
    assert chosen([broken])["nearest"] is None
    assert lines(chosen([]))[0] == "ship: nothing was measured"


def test_the_nearest_is_the_one_whose_worst_excess_is_smallest():
    rows = [row("tiny but slow", 0.7, 11, 9.0), row("nearly", 0.8, 12, 2.2), row("accurate", 0.9, 90, 2.0)]
    found = chosen(rows, max_mb=10, max_p50_ms=2)
    assert found["nearest"] == {
        "bundle": "nearly",
        "misses": ["size 12.0 MB is over 10.0 MB", "query p50 2.20 ms is over 2.00 ms"],
        "times_the_limit": pytest.approx(1.2),
    }
    assert lines(found)[:2] == [
        "ship: nothing fits",
        "nearest: nearly: size 12.0 MB is over 10.0 MB; query p50 2.20 ms is over 2.00 ms",
    ]
    assert chosen([row("a", 0.4), row("b", 0.5)], min_mrr=1.0)["nearest"]["times_the_limit"] == pytest.approx(2.0)
    assert chosen([row("a")], max_mb=0)["nearest"]["times_the_limit"] is None


ROWS = st.lists(
    st.tuples(st.sampled_from([0.5, 0.6, 0.7]), st.sampled_from([10, 20, 30]), st.sampled_from([1.0, 2.0, None])),
    min_size=1,
    max_size=6,
)


@given(ROWS, st.sampled_from([5, 15, 25, 35]), st.sampled_from([0.0, 0.15]))
def test_nothing_that_fits_is_better(figures, limit, reach):
    """Against the definition: no other fitting row is as accurate as counts and preferable."""
    rows = [
        with_interval(row(str(index), mrr, size, p50), mrr - reach, mrr + reach)
        for index, (mrr, size, p50) in enumerate(figures)
    ]
    found = chosen(rows, max_mb=limit)
    fitting = [figure for figure in figures if figure[1] <= limit]
    if not fitting:
        assert found["bundle"] is None
        return
    best = max(mrr for mrr, _, _ in fitting)
    equal = [(size, p50 or float("inf"), -mrr) for mrr, size, p50 in fitting if mrr >= best - reach]
    mrr, size, p50 = figures[int(found["bundle"])]
    assert (size, p50 or float("inf"), -mrr) == min(equal)
    assert {found["bundle"], *found["passed_over"]} == set(found["fits"])


# ---- the command -------------------------------------------------------------------------------------------


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["pick", *(str(argument) for argument in arguments)])


@pytest.fixture
def folder(tmp_path):
    made = bench_rows.report([*bench_rows.ladder_rows(), bench_rows.failed_row()])
    (tmp_path / "report.json").write_text(json.dumps(made), encoding="utf-8")
    return tmp_path


def test_the_command_names_the_bundle_and_why(folder):
    done = run(folder, "--max-mb", 100, "--min-mrr-kept", 0.99, "--max-p50-ms", 2.2)
    assert (done.exit_code, done.stderr) == (0, "")
    *told, last = done.stdout.strip().splitlines()
    assert told[:2] == [
        "ship: umls-baseline-grade-3-int8",
        "why: it alone fits; MRR 0.8410",
    ]
    assert "ruled out: umls-pmd-teacher-int8: query p50 2.46 ms is over 2.20 ms" in told
    assert "ruled out: umls-pmd-grade-4-fp16: could not be measured: the model is damaged" in told
    found = json.loads(last)
    assert (found["schema"], found["bundle"]) == ("pmd-bench-pick/1", "umls-baseline-grade-3-int8")
    assert found["report"] == str(folder)
    assert found["limits"] == {"max_mb": 100, "max_p50_ms": 2.2, "min_mrr_kept": 0.99}


def test_nothing_fits_is_exit_1(folder):
    done = run(folder / "report.json", "--max-mb", 10)
    assert done.exit_code == 1
    assert done.stdout.splitlines()[1] == "nearest: umls-baseline-grade-3-int8: size 43.0 MB is over 10.0 MB"
    assert json.loads(done.stdout.splitlines()[-1])["bundle"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Missing argument 'REPORT'"),
        ([".", "--max-mb", "nan"], "'nan' is no finite number"),
        ([".", "--max-mb", "inf"], "'inf' is no finite number"),
        ([".", "--max-mb", "-1"], "--max-mb"),
        ([".", "--max-mb", "small"], "--max-mb"),
        ([".", "--max-size", "1"], "No such option"),
    ],
)
def test_mistakes_are_one_line(folder, monkeypatch, arguments, words):
    monkeypatch.chdir(folder)
    done = run(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert words in line


def test_every_limit_is_an_option_with_help():
    told = run("--help").stdout
    assert all(f"--{limit.option}" in told for limit in LIMITS)
