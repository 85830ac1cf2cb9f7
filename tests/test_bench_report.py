"""The report's order, front, files and words; everything here is made from made-up rows."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree

import bench_rows
import pytest

from pmd.benchmarks import curve, labels, report, series, table
from pmd.benchmarks.errors import BenchError

ROW_KEYS = {
    *(
        "bundle",
        "method",
        "grade",
        "precision",
        "parameters",
        "bundle_bytes",
        "query_ms",
        "batch_queries_per_second",
    ),
    *("cold_start_ms", "peak_rss_bytes", "metrics", "metrics_reranked", "mrr_kept", "speedup", "error"),
}


def test_contract_keys_are_there_for_whole_and_failed_rows():
    made = bench_rows.report([*bench_rows.ladder_rows(), bench_rows.failed_row()])
    assert made["schema"] == "pmd-bench/1"
    for row in made["results"]:
        assert set(row) >= ROW_KEYS
        assert set(row["query_ms"]) == {"p50", "p95", "p99", "mean"}
        assert row["speedup"] == {"torch": None}
    json.dumps(made, allow_nan=False)


def test_teacher_first_then_grades_falling_then_precision_then_method():
    made = bench_rows.report()
    order = [(row["stage"], row["precision"], row["method"]) for row in made["results"]]
    assert order == [
        ("teacher", "fp32", "pmd"),
        ("teacher", "int8", "pmd"),
        ("grade-4", "fp32", "pmd"),
        ("grade-4", "int8", "pmd"),
        ("grade-3", "fp32", "pmd"),
        ("grade-3", "int8", "baseline"),
    ]


def test_rows_that_nothing_is_known_of_come_last():
    unknown = {**bench_rows.failed_row(), "grade": None, "stage": None, "precision": None, "method": None}
    made = bench_rows.report([unknown, bench_rows.row()])
    assert made["results"][-1]["grade"] is None
    assert report.label_of(made["results"][-1]) == "unknown"


def test_pareto_front_keeps_what_nothing_beats():
    sizes_and_mrrs = [(10, 0.5), (20, 0.7), (20, 0.6), (30, 0.7), (40, 0.9), (40, 0.9), (5, 0.1)]
    rows = [bench_rows.row(size=size, mrr=mrr) for size, mrr in sizes_and_mrrs]
    assert report.pareto_front(rows) == {0, 1, 4, 5, 6}


def test_a_failed_row_is_never_on_the_front_even_with_an_mrr():
    half = {**bench_rows.row(size=1, mrr=1.0), "error": "gave no answer"}
    made = bench_rows.report([half, bench_rows.row()])
    assert [row["on_front"] for row in made["results"] if row["error"]] == [False]
    assert series.series_of(made["results"])[0].rows == (made["results"][1],)


def test_noise_is_the_slower_median_against_the_best_lap():
    found = report.noise({"best_gflops": 50, "median_gflops": 40}, {"best_gflops": 48, "median_gflops": 45})
    assert found["matmul_gflops"] == 50
    assert found["slowest_median_percent"] == pytest.approx(20)


def test_a_report_is_written_whole_and_replaced(tmp_path):
    out = tmp_path / "reports" / "umls"
    out.mkdir(parents=True)
    (out / "report.json").write_text("{}", encoding="utf-8")
    report.write(bench_rows.report(seconds=2.0), out)
    assert sorted(path.name for path in out.iterdir()) == sorted(report.FILES)
    assert json.loads((out / "report.json").read_text(encoding="utf-8"))["seconds"] == 2.0
    assert [path.name for path in out.parent.iterdir()] == ["umls"]


def test_a_folder_with_other_files_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(BenchError, match=r"holds other files \(thesis.tex\)"):
        report.write(bench_rows.report(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(BenchError, match="is a file"):
        report.check_target(tmp_path / "thesis.tex")


def test_curve_is_deterministic_undated_svg_and_png():
    made = bench_rows.report()
    drawing = curve.svg(made)
    assert drawing == curve.svg(made)
    assert b"dc:date" not in drawing
    assert ElementTree.fromstring(drawing).tag == "{http://www.w3.org/2000/svg}svg"
    picture = curve.png(made)
    assert picture == curve.png(made)
    assert picture.startswith(b"\x89PNG")


def test_the_curve_ignores_the_readers_own_settings():
    import matplotlib

    made = bench_rows.report()
    expected = curve.svg(made)
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "svg.hashsalt": "other"}):
        assert curve.svg(made) == expected
        assert matplotlib.rcParams["font.size"] == 30


@pytest.mark.parametrize("count", [0, 1, 2])
def test_curve_of_few_rows(count):
    made = bench_rows.report([bench_rows.row(size=40 + 1e-3 * index) for index in range(count)])
    assert curve.png(made)
    assert curve.svg(made, narrow=True)


def test_colours_tell_methods_apart_or_precisions():
    by_precision = {(s.method, s.precision): s.colour for s in series.series_of(bench_rows.ladder_rows())}
    assert by_precision[("pmd", "fp32")] != by_precision[("pmd", "int8")]
    assert by_precision[("baseline", "int8")] == series.BASELINE_COLOUR
    rows = [*bench_rows.ladder_rows(), bench_rows.row(method="lkd")]
    by_method = {(s.method, s.precision): s.colour for s in series.series_of(rows)}
    assert by_method[("pmd", "fp32")] == by_method[("pmd", "int8")] != by_method[("lkd", "int8")]


def test_labels_cover_neither_points_nor_each_other():
    spots = [(0.0, 0.0), (4.0, 0.0), (100.0, 100.0), (100.0, 112.0)]
    found = labels.offsets(spots, ["6", "6", "3", "3"], 9, lines=[[(100.0, 112.0), (100.0, 160.0)]])
    assert found[2] is not None and found[2][1] < 0  # another point stands above it
    assert found[3] is not None and found[3] != (0, pytest.approx(found[3][1]))  # a line runs upward
    assert found[0] is not None


def test_a_label_without_room_is_left_out():
    crowd = [(float(x), float(y)) for x in range(-30, 31, 6) for y in range(-30, 31, 6)]
    assert labels.offsets(crowd, ["6"] * len(crowd), 9)[len(crowd) // 2] is None


def test_table_names_teacher_and_baseline_and_is_aligned():
    made = bench_rows.report([*bench_rows.ladder_rows(), bench_rows.failed_row("no such file")])
    lines = table.lines(made["results"])
    assert lines[1].startswith("teacher  pmd")
    assert any(line.startswith("grade 3  baseline  int8") for line in lines)
    assert lines[-1] == "failed: umls-pmd-grade-4-fp16: no such file"
    ends = {line.index("MB") for line in lines[1:-1]}
    assert len(ends) == 1
    assert any(
        re.search(r"^grade 3 +pmd +fp32 +3 +13.0 M +160 MB +8.00 ms +0.8450 +99.5 %", line) for line in lines
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0123, "0.012"), (4.305, "4.30"), (22.74, "22.7"), (182.4, "182"), (1e6, "1,000,000")],
)
def test_three_digits_that_count(value, text):
    assert table.three_digits(value) == text
