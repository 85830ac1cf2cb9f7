"""What the page shows beside its tables, made from rows; and that what a report lacks is left out."""

from __future__ import annotations

import bench_rows
import pytest

from pmd.benchmarks import curve, growth_plot, labels, page, panels, series
from pmd.benchmarks.report import METHODS
from pmd.benchmarks.series import LATENCY, SIZE

GROWTH = {
    "points": [{"entities": 100_000, "query_ms": 1.5}, {"entities": 1000, "query_ms": 0.51}],
    "fit": {"ms": 0.5, "ms_per_100k": 1.0},
    "synthetic": True,
}


def part(mrr: float, queries: int) -> dict[str, float]:
    return {"mrr": mrr, "mean_rank": 2.0, "hits@1": mrr / 2, "hits@3": mrr, "hits@10": 1.0, "queries": queries}


def analysed(precision: str, mrr: float, **changes):
    relations = {"isa": part(mrr, 30), "inverse isa": part(mrr / 2, 10), "inverse <part_of>": part(0.25, 4)}
    analysis = {"by_relation": relations, "by_category": {"1-N": part(0.5, 44)}}
    return bench_rows.row("grade-3", precision, mrr, analysis=analysis, **changes)


def test_the_front_of_size_is_the_reports_and_the_front_of_latency_is_its_own():
    rows = bench_rows.ladder_rows()
    rows[0]["query_ms"]["p50"] = 0.1
    report = bench_rows.report(rows)
    assert series.front(report["results"], SIZE) == sorted(
        (row for row in report["results"] if row["on_front"]), key=lambda row: row["bundle_bytes"]
    )
    best = series.front(report["results"], LATENCY)
    assert [series.name_of(row) for row in best] == ["grade 3 fp32", "grade 4 int8", "teacher int8", "teacher fp32"]
    assert [row["query_ms"]["p50"] for row in best] == sorted(row["query_ms"]["p50"] for row in best)


def test_equal_bundles_are_on_the_front_once():
    rows = bench_rows.report([bench_rows.row(), bench_rows.row(method="lkd")])["results"]
    assert [row["method"] for row in series.front(rows, SIZE)] == ["pmd"]


def test_filters_leave_out_what_all_bundles_share():
    rows = [bench_rows.row("grade-3", "int8"), bench_rows.row("grade-4", "fp32"), bench_rows.failed_row()]
    assert panels.filters(rows) == [
        {"title": "Model", "key": "model", "values": ["grade 3", "grade 4"]},
        {"title": "Precision", "key": "precision", "values": ["fp32", "fp16", "int8"]},
    ]
    assert panels.filters([bench_rows.row()]) == []


@pytest.mark.parametrize(
    ("value", "above"), [(0.97, 1), (1.0, 1), (1.01, 1.2), (14.8, 16), (99, 100), (0.031, 0.04)]
)
def test_a_scale_ends_at_the_next_round_number(value, above):
    assert panels.round_above(value) == pytest.approx(above)


def test_boxes_share_one_scale_and_leave_out_what_failed():
    slow = bench_rows.row("grade-4", size=200, intervals={"query_ms.p50": [9.5, 10.5]})
    found = panels.boxes([bench_rows.row("grade-3", size=20), slow, bench_rows.failed_row()])
    assert found["top"] == 20
    fast, other = found["rows"]
    assert (fast["p50"], fast["p99"], other["p50"], other["p99"]) == (5.0, 10.0, 50.0, 100.0)
    assert fast["interval"] == ""
    assert other["interval"] == "9.50 to 10.5"
    assert other["words"] == "grade 4 int8: p50 10.0 ms, p95 13.3 ms, p99 20.0 ms"
    assert panels.boxes([bench_rows.failed_row()])["rows"] == []


def test_both_directions_of_a_relation_are_one_line_weighted_by_questions():
    isa, partly = panels.relations_of(analysed("int8", 0.8))
    assert (isa.name, isa.queries, isa.tails, isa.heads) == ("isa", 40, 0.8, 0.4)
    assert isa.mrr == pytest.approx((30 * 0.8 + 10 * 0.4) / 40)
    assert isa.first == pytest.approx(isa.mrr / 2)
    assert (partly.name, partly.tails, partly.heads, partly.change) == ("<part_of>", None, 0.25, None)


def test_a_relation_is_compared_with_the_same_model_in_fp32():
    rows = [analysed("fp32", 0.9), analysed("int8", 0.8), analysed("int8", 0.7, method="lkd")]
    own, int8, other = panels.drilldown(rows)
    assert (own["compared"], int8["compared"], other["compared"]) == (False, True, False)
    assert int8["relations"][0].change == pytest.approx(-0.0875)
    assert int8["hardest"].name == "isa"  # the other has too few questions to say so


def test_the_drill_down_stands_on_the_page_escaped():
    text = page.render(bench_rows.report([analysed("fp32", 0.9), analysed("int8", 0.8)]))
    assert text.count("<details") == 2
    assert text.count("<table") == text.count("<caption")
    assert "&lt;part_of&gt;" in text
    assert "<part_of>" not in text
    assert "-0.0875" in text


def test_growth_is_sorted_and_told():
    (found,) = panels.growths([bench_rows.row(growth=GROWTH), bench_rows.row("grade-4")])
    assert found.points == ((1000, 0.51), (100_000, 1.5))
    assert found.line(100_000) == 1.5
    assert found.told() == (
        "grade 3 int8: 1,000 entities 0.510 ms; 100,000 entities 1.50 ms; "
        "fitted line 0.500 ms and 1.00 ms for every 100,000 entities."
    )


def test_growth_without_a_fit_has_no_line():
    (bare,) = panels.growths([bench_rows.row(growth={**GROWTH, "fit": None})])
    assert not bare.fitted
    assert bare.told().endswith("100,000 entities 1.50 ms.")
    assert growth_plot.svg([bare]) != growth_plot.svg(panels.growths([bench_rows.row(growth=GROWTH)]))


@pytest.mark.parametrize("growth", [None, {}, {"points": None}, {**GROWTH, "points": GROWTH["points"][:1]}])
def test_a_report_without_growth_has_no_plot_of_it(growth):
    rows = [bench_rows.row(growth=growth)]
    assert panels.growths(rows) == []
    assert 'id="growth"' not in page.render(bench_rows.report(rows))


def test_growth_stands_on_the_page_drawn_and_as_a_table():
    more = {**GROWTH, "points": [*GROWTH["points"], {"entities": 10**6, "query_ms": 9.87}]}
    rows = [bench_rows.row(growth=GROWTH), bench_rows.row("grade-4", growth=more)]
    table = panels.growth_table(panels.growths(rows))
    assert table["sizes"] == [1000, 100_000, 1_000_000]
    assert [one["times"] for one in table["rows"]] == [[0.51, 1.5, None], [0.51, 1.5, 9.87]]
    text = page.render(bench_rows.report(rows))
    assert 'id="growth-title"' in text
    assert 'href="#growth"' in text
    assert "random vectors" in text
    assert '<td data-value="9.87">9.87</td>' in text


def test_throughput_by_batch_size_has_every_size_and_unknown_where_one_is_missing():
    small = bench_rows.row(batches=[{"size": 1, "queries_per_second": 500.0}])
    both = bench_rows.row("grade-4", batches=[{"size": s, "queries_per_second": 100.0 * s} for s in (8, 1)])
    found = panels.throughput([small, bench_rows.row("grade-2"), both])
    assert found["sizes"] == [1, 8]
    assert [one["rates"] for one in found["rows"]] == [[500.0, None], [100.0, 800.0]]
    assert 'id="batches"' in page.render(bench_rows.report([small]))
    assert 'id="batches"' not in page.render(bench_rows.report())


def test_a_disturbed_bundle_is_named():
    rows = [bench_rows.row(disturbed=True), bench_rows.row("grade-4", disturbed=False), bench_rows.row("grade-2")]
    assert panels.disturbed(rows) == "grade 3 int8"
    assert panels.disturbed([{**row, "disturbed": True} for row in rows]) == "every bundle"
    assert panels.disturbed(rows[1:]) == ""
    assert "Disturbed" in page.render(bench_rows.report(rows))
    assert "Disturbed" not in page.render(bench_rows.report())


def test_paired_tests_name_the_other_bundle():
    test = {"difference": -0.0123, "interval": [-0.02, -0.00001], "p_value": 0.0312, "triples": 1661}
    rows = [bench_rows.row("grade-3", "fp32"), bench_rows.row("grade-3", "int8")]
    rows[1] |= {"against_fp32": {"bundle": rows[0]["bundle"], **test}, "against_teacher": {"bundle": "x", **test}}
    assert [(one["name"], one["beside"]) for one in panels.pairs(rows)] == [
        ("grade 3 int8", "grade 3 fp32"),
        ("grade 3 int8", "x"),
    ]
    text = page.render(bench_rows.report(rows))
    for shown in ("-0.0123", "-0.0200 to +0.0000", "0.031", "1,661"):
        assert f">{shown}</td>" in text
    assert 'id="pairs"' not in page.render(bench_rows.report(rows[:1]))


def test_methods_differ_in_more_than_colour():
    """Methods share the marker of a precision, so their lines and fillings must differ."""
    assert len({str(curve.DASHES.get(method, "-")) for method in METHODS}) == len(METHODS)
    distilled = [method for method in METHODS if method != series.BASELINE]
    assert len({curve.FILLS.get(method, "full") for method in distilled}) == len(distilled)


def test_a_pointer_over_a_point_reads_which_bundle_it_is():
    rows = [bench_rows.row("grade-3", method=method, size=40 + n) for n, method in enumerate(("pmd", "lkd"))]
    text = page.render(bench_rows.report(rows))
    for shape in ("wide", "narrow"):
        for index, told in enumerate(("grade 3 int8: 40.0 MB", "grade 3 int8, lkd: 41.0 MB")):
            assert f'<g id="size-{shape}-spot-{index}" class="spot"><title>{told}, MRR 0.800</title>' in text
    assert 'id="latency-wide-spot-1" class="spot"><title>grade 3 int8, lkd: 2.05 ms' in text


def test_round_numbers_lie_within_and_are_few():
    for low, high in ((0.8, 6.0), (30, 200), (1.0, 1.1), (1, 1e6)):
        found = labels.round_numbers(low, high)
        assert 3 <= len(found) <= 8
        assert all(low <= number <= high for number in found)
