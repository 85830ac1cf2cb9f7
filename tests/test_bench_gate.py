"""Conditions: what parses, what a mistake is told, and that nothing unknown ever passes."""

from __future__ import annotations

import json
import string
from pathlib import Path

import bench_rows
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from tiny_bundle import write_tiny_bundle

from pmd.benchmarks import gate
from pmd.benchmarks.cli import main
from pmd.benchmarks.errors import BenchError


def why(text: str, **changes: object) -> list[str]:
    return gate.reasons(bench_rows.row(**changes), [gate.parse(text)])


@pytest.mark.parametrize(
    ("text", "key", "operator", "limit", "is_change"),
    [
        ("mrr_kept<0.995", "mrr_kept", "<", 0.995, False),
        ("query_ms.p50>2", "query_ms.p50", ">", 2.0, False),
        (" bundle_bytes  >=  40e6 ", "bundle_bytes", ">=", 40e6, False),
        ("metrics.hits@10<=.9", "metrics.hits@10", "<=", 0.9, False),
        ("grade==3", "grade", "==", 3.0, False),
        ("seed!=-1.5E-3", "seed", "!=", -0.0015, False),
        ("query_ms.p50>+10%", "query_ms.p50", ">", 10.0, True),
        ("metrics.mrr < -0.5 %", "metrics.mrr", "<", -0.5, True),
        ("analysis.by_relation.is a/b.mrr<0.3", "analysis.by_relation.is a/b.mrr", "<", 0.3, False),
    ],
)
def test_conditions_that_parse(text, key, operator, limit, is_change):
    found = gate.parse(text, changes=True)
    assert (found.key, found.operator, found.limit, found.is_change) == (key, operator, limit, is_change)
    assert found.text == text.strip()


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "mrr_kept", "<0.5", "mrr_kept<", "mrr_kept=0.5", "mrr_kept=<0.5", "mrr_kept<0.5<1"),
        *("mrr_kept<nan", "mrr_kept<inf", "mrr_kept<0x10", "mrr_kept<1_0", "mrr_kept<--1", "mrr_kept<1e"),
        *("mrr_kept<.", "0.5>mrr_kept", "mrr_kept<٣", "mrr_kept<1;bundle_bytes>2", "mrr_kept<1%%"),
        *("mrr_kept<__import__('os')", "mrr_kept<1e999"),
    ],
)
def test_what_is_no_condition_is_one_line(text):
    with pytest.raises(BenchError, match="--fail-if") as caught:
        gate.parse(text, changes=True)
    assert "\n" not in str(caught.value)


@given(st.text(alphabet=string.ascii_letters + string.digits + "<>=!.%+- @_e\n\t", max_size=20))
def test_any_text_parses_or_is_a_mistake(text):
    try:
        found = gate.parse(text, changes=True)
    except BenchError:
        return
    assert found.operator in text


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("mrr", "metrics.mrr"),
        ("p50", "query_ms.p50"),
        ("mrr_kpt", "mrr_kept"),
        ("Query_ms.P50", "query_ms.p50"),
        ("rss", "peak_rss_bytes"),
        ("size_bytes", "bundle_bytes"),
        ("hits@10", "metrics.hits@10"),
        ("qqqq", "query_ms.p50"),
    ],
)
def test_an_unknown_key_names_the_nearest(key, near):
    with pytest.raises(BenchError) as caught:
        gate.parse(f"{key}<1")
    told = str(caught.value)
    assert f"{key!r} is no figure of a report; near it: " in told
    assert near in told.partition("near it: ")[2].split(", ")


def test_a_name_or_a_list_is_no_figure():
    for key in ("bundle", "precision", "metrics", "query_ms", "cold_start_runs_ms", "speedup."):
        with pytest.raises(BenchError, match="is no figure"):
            gate.parse(f"{key}<1")


def test_a_change_needs_two_reports_and_a_sign():
    with pytest.raises(BenchError, match="takes two reports: pmd-bench compare"):
        gate.parse("query_ms.p50>+10%")
    with pytest.raises(BenchError, match="write a change with its sign"):
        gate.parse("mrr_kept<99.5%", changes=True)


@pytest.mark.parametrize(
    ("operator", "fails_below", "fails_at", "fails_above"),
    [
        ("<", True, False, False),
        ("<=", True, True, False),
        (">", False, False, True),
        (">=", False, True, True),
        ("==", False, True, False),
        ("!=", True, False, True),
    ],
)
def test_operators(operator, fails_below, fails_at, fails_above):
    found = [bool(why(f"mrr_kept{operator}0.9", mrr_kept=value)) for value in (0.8, 0.9, 1.0)]
    assert found == [fails_below, fails_at, fails_above]


def test_reasons_tell_the_figure_with_the_digits_that_decide():
    assert why("mrr_kept<0.995", mrr_kept=0.99499999) == ["mrr_kept<0.995: it is 0.99499999"]
    assert why("metrics.mrr<0.9") == ["metrics.mrr<0.9: it is 0.8"]
    assert why("mrr_kept<0.995", mrr_kept=0.995) == []


@pytest.mark.parametrize("operator", gate.OPERATORS)
def test_null_never_passes(operator):
    told = [f"metrics_reranked.mrr{operator}0.5: unknown, so it counts as failed"]
    assert why(f"metrics_reranked.mrr{operator}0.5", metrics_reranked=None) == told
    assert why(f"speedup.onnx{operator}1") == [f"speedup.onnx{operator}1: unknown, so it counts as failed"]


def test_a_bundle_that_failed_fails_every_gate_once():
    conditions = [gate.parse("mrr_kept<0.995"), gate.parse("bundle_bytes>1e12")]
    assert gate.reasons(bench_rows.failed_row("damaged"), conditions) == ["could not be measured: damaged"]


def test_two_bundles_of_one_name_do_not_hide_each_other():
    conditions = [gate.parse("mrr_kept<0.995")]
    rows = [bench_rows.row(mrr_kept=0.5), bench_rows.row(mrr_kept=1.0)]
    found = gate.verdict(conditions, [(row["bundle"], gate.reasons(row, conditions)) for row in rows])
    assert found["bundles"] == 2
    assert [failed["why"] for failed in found["failed"]] == [["mrr_kept<0.995: it is 0.5"]]
    assert gate.lines(found) == ["gate: umls-pmd-grade-3-int8: mrr_kept<0.995: it is 0.5"]
    assert gate.lines(None) == []


# ---- the bench itself --------------------------------------------------------------------------------------


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_bench_fails_after_its_report_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tiny_bundle(Path("pick"))
    gates = ["--fail-if", "metrics.mrr>0", "--fail-if", "bundle_bytes>1e12", "--fail-if", "speedup.torch<1"]
    done = bench("./pick", "--quick", *gates)
    assert done.exit_code == 1
    *_, gate_line, report_line, last = done.stdout.strip().splitlines()
    mrr = json.loads(Path("reports/tiny/report.json").read_text(encoding="utf-8"))["results"][0]["metrics"]["mrr"]
    assert gate_line == (
        f"gate: pick: metrics.mrr>0: it is {mrr:.10g}; speedup.torch<1: unknown, so it counts as failed"
    )
    assert report_line.startswith("report: ")
    found = json.loads(last)
    assert found["errors"] == 0
    assert found["gate"]["conditions"] == gates[1::2]
    assert [failed["bundle"] for failed in found["gate"]["failed"]] == ["pick"]

    passed = bench("./pick", "--quick", "--fail-if", "bundle_bytes>1e12")
    assert passed.exit_code == 0
    assert json.loads(passed.stdout.splitlines()[-1])["gate"] == {
        "conditions": ["bundle_bytes>1e12"],
        "bundles": 1,
        "failed": [],
    }


def test_a_mistyped_condition_stops_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tiny_bundle(Path("tiny"))
    done = bench("tiny", "--fail-if", "mrr<0.5")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(
        "error: --fail-if 'mrr<0.5': 'mrr' is no figure of a report; near it: metrics.mrr"
    )
    assert not Path("reports").exists()
