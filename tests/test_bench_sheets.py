"""Markdown, CSV, and the published figures: in words, in tables, on the curve, and never on the front."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import bench_rows
import pytest

from pmd.benchmarks import curve, page, reference, report, series, sheets

SHARED = Path(__file__).resolve().parents[2] / "shared" / "paper" / "results.json"
EVIL = "=cmd|'/c calc'!A1 | <script>alert(1)</script>\n`*_"


def made(dataset: str = "umls", **facts: object) -> dict:
    return bench_rows.report([*bench_rows.ladder_rows(), bench_rows.failed_row()], dataset=dataset, **facts)


def csv_rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


# ---- CSV ---------------------------------------------------------------------------------------------------


def test_csv_holds_the_figures_of_the_report_to_the_last_digit():
    whole = made()
    rows = csv_rows(sheets.to_csv(whole))
    assert [row["bundle"] for row in rows] == [row["bundle"] for row in whole["results"]]
    for row, read in zip(whole["results"], rows, strict=True):
        assert read["query_ms.p50"] == ("" if row["query_ms"]["p50"] is None else repr(row["query_ms"]["p50"]))
        assert read["metrics.head.mrr"] == ("" if row["metrics"] is None else repr(row["metrics"]["head"]["mrr"]))
        assert read["on_front"] == str(row["on_front"]).lower()
        assert read["error"] == (row["error"] or "")
        assert read["speedup.torch"] == ""


def test_csv_columns_are_keys_of_the_schema():
    from pmd.benchmarks.schema import report_schema, resolved

    for column in sheets.CSV_COLUMNS:
        part = report_schema()["$defs"]["row"]
        for name in column.split("."):
            part = resolved(resolved(part).get("anyOf", [part])[0])["properties"][name]


def test_a_name_is_no_formula_to_a_spreadsheet():
    rows = [bench_rows.row(bundle=EVIL, method="-1+2", seed=-5)]
    (read,) = csv_rows(sheets.to_csv(bench_rows.report(rows)))
    assert read["bundle"] == f"'{EVIL}"
    assert read["method"] == "'-1+2"
    assert read["seed"] == "-5"  # a number is no text


# ---- Markdown ----------------------------------------------------------------------------------------------


def cells(line: str) -> list[str]:
    return re.split(r"(?<!\\)\|", line)[1:-1]


def test_markdown_tells_everything_once():
    text = sheets.to_markdown(made())
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 7
    assert {len(cells(line)) for line in table} == {len(sheets.COLUMNS)}
    assert [cell.strip() for cell in cells(table[2])][:9] == [
        *("**teacher**", "pmd", "fp32", "6", "16.0", "182", "9.10", "12.1", "18.2"),
    ]
    assert text.startswith("# umls: bundles measured\n\ntest split; A processor, 1 thread; 2026-01-05")
    assert "noise 5.00 %" in text
    assert "- umls-pmd-grade-4-fp16: the model is damaged" in text
    assert text.endswith("```\npmd-bench bundles/x\n```\n")
    assert "Published" not in text


def test_markdown_means_what_names_say():
    evil = {**bench_rows.failed_row(EVIL), "stage": None, "grade": None, "bundle": EVIL}
    rows = [evil, bench_rows.row(method=EVIL)]
    text = sheets.to_markdown(bench_rows.report(rows, dataset=EVIL, command="x ```` y"))
    assert "<script" not in text
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert {len(cells(line)) for line in table} == {len(sheets.COLUMNS)}
    assert text.endswith("`````\nx ```` y\n`````\n")


@pytest.mark.parametrize("rows", [[], [bench_rows.failed_row()]])
def test_markdown_and_csv_of_few_rows(rows):
    whole = bench_rows.report(rows, dataset=None)
    assert sheets.to_markdown(whole).startswith("# Unknown data")
    assert len(csv_rows(sheets.to_csv(whole))) == len(rows)


def test_both_are_written_beside_the_report(tmp_path):
    report.write(made(), tmp_path / "out")
    assert (tmp_path / "out" / "report.md").read_text(encoding="utf-8") == sheets.to_markdown(made())
    assert (tmp_path / "out" / "report.csv").read_bytes().decode() == sheets.to_csv(made())


# ---- published figures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dataset", "count"), [("wn18rr", 21), ("WN18RR", 21), ("fb15k237", 5), ("FB15k-237", 5)])
def test_published_figures_belong_to_their_dataset(dataset, count):
    rows = reference.of_report(made(dataset))
    assert len(rows) == count
    assert {row.dataset for row in rows} == {reference.plain_name(dataset)}
    assert len(reference.drawn(made(dataset))) == 4


@pytest.mark.parametrize("dataset", ["umls", "wn18rr-small", "wn18", "fb15k", "", None])
def test_other_datasets_have_none(dataset):
    assert reference.of_report(made(dataset)) == []


def test_other_splits_have_none():
    assert reference.of_report({**made("wn18rr"), "split": "valid"}) == []


def test_known_published_figures():
    by_name = {(row.dataset, row.model, row.layers): row for row in map(_row, reference.facts()["rows"])}
    assert len(by_name) == len(reference.facts()["rows"]) == 26
    largest, smallest = by_name["wn18rr", "PMD", 12], by_name["fb15k237", "PMD", 3]
    assert (largest.metrics["mrr"], largest.metrics["hits@10"], largest.parameters) == (0.678, 0.832, 210_000_000)
    assert (smallest.metrics["mrr"], smallest.tables) == (0.323, (2,))
    assert by_name["wn18rr", "PKD", 6].metrics == {
        "mrr": 0.654,
        "mean_rank": None,
        "hits@1": 0.564,
        "hits@3": None,
        "hits@10": 0.814,
    }
    assert (largest.metrics["mean_rank"], largest.tables) == (110.3, (2, 4))
    assert by_name["wn18rr", "SimKGC", 12].float32_bytes is None
    for row in by_name.values():
        shares = [row.metrics[name] for name in ("hits@1", "mrr", "hits@3", "hits@10")]
        known = [share for share in shares if share is not None]
        assert known == sorted(known)
        assert all(0 < share < 1 for share in known)


def _row(facts: dict) -> reference.Reference:
    return reference.Reference(**facts | {"tables": tuple(facts["tables"])})


@pytest.mark.skipif(not SHARED.is_file(), reason="needs the paper's figures beside the checkout")
def test_published_figures_are_those_of_the_source():
    source = json.loads(SHARED.read_text(encoding="utf-8"))
    assert reference.facts()["source"]["arxiv"] in source["source"]
    found = {(row["dataset"], row["model"], row["layers"]): row for row in reference.facts()["rows"]}
    for dataset, models in source["table2"].items():
        for name, figures in models.items():
            model, layers = name.split("-")
            row = found[dataset, {"pmd": "PMD", "simkgc": "SimKGC"}[model], int(layers)]
            assert row["parameters"] == (figures["params_m"] * 10**6 if "params_m" in figures else None)
            for key in ("mrr", "hits@1", "hits@3", "hits@10"):
                assert 100 * row["metrics"][key] == pytest.approx(figures[key])
    table3 = source["table3_wn18rr_methods"]
    for model, name in (("baseline", "baseline"), ("lkd", "LKD"), ("pkd", "PKD")):
        for layers, figures in table3[model].items():
            for key, value in zip(table3["columns"], figures, strict=True):
                assert 100 * found["wn18rr", name, int(layers)]["metrics"][key] == pytest.approx(value)
    names = {"baseline": "baseline", "pmd-without-mgfd": "PMD without MGFD", "pmd": "PMD"}
    for model, figures in source["table4_wn18rr_ablation"].items():
        for layers, rank in figures["mr"].items():
            metrics = found["wn18rr", names[model], int(layers)]["metrics"]
            assert metrics["mean_rank"] == rank
            if "mrr" in figures:
                assert 100 * metrics["mrr"] == pytest.approx(figures["mrr"][layers])


def test_published_figures_leave_rows_and_front_alone():
    plain, with_them = made("umls"), made("wn18rr")
    assert with_them["results"] == plain["results"]
    assert len(csv_rows(sheets.to_csv(with_them))) == len(plain["results"])
    fronts = [_paths(curve.svg(whole), curve.FRONT) for whole in (plain, with_them)]
    assert [len(paths) for paths in fronts] == [2, 2]  # the staircase and its sample in the legend
    # Of the staircase's corners only the ends move, to the wider axis: no published size becomes one.
    assert [path.count("L") for path in fronts[0]] == [path.count("L") for path in fronts[1]]


def _paths(drawing: bytes, colour: str) -> list[str]:
    return re.findall(rf'<path d="([^"]*)"[^>]*stroke: {colour}', drawing.decode())


def test_the_curve_draws_them_on_their_datasets_alone():
    def crosses(whole: dict, **options: bool) -> int:
        return curve.svg(whole, **options).count(b"stroke-dasharray")

    # A dotted line and its sample in the legend; the baseline's dashes are in both.
    assert crosses(made("wn18rr")) == crosses(made("umls")) + 2
    assert crosses(made("wn18rr"), narrow=True) == crosses(made("umls"), narrow=True) + 2
    assert curve.svg(made("wn18rr")) == curve.svg(made("wn18rr"))
    assert curve.svg(bench_rows.report([], dataset="wn18rr"))


def test_they_are_labelled_with_their_protocol_everywhere():
    whole = made("wn18rr")
    told = series.description(whole)
    assert "Crosses, paper, re-ranked, at 4 bytes a parameter: PMD 12 layers: 840 MB, MRR 0.678" in told
    assert "Crosses" not in series.description(made("umls"))
    protocol = "test split, filtered, mean of head and tail, re-ranked (+0.05 within 5 hops)"
    text = sheets.to_markdown(whole)
    assert "## Published, re-ranked" in text
    assert f"arXiv 2401.12997. Protocol: {protocol}. Not measured here." in text
    assert "| PMD | 12 | 210 | 0.678 | 0.588 | 0.737 | 0.832 | 110.3 | 2, 4 |" in text
    rendered = page.render(whole)
    assert '<th scope="row" class="name">PMD without MGFD</th>' in rendered
    assert protocol in rendered
    assert "re-ranked (+0.05 within 2 hops)" in page.render(made("fb15k237"))
    assert "Published" not in page.render(made("umls"))


def test_a_disturbed_bundle_is_said_in_both():
    report = bench_rows.report([bench_rows.row(disturbed=True), bench_rows.row("grade-4", disturbed=False)])
    assert "Others took the machine while these were timed: umls-pmd-grade-3-int8." in sheets.to_markdown(report)
    lines = list(csv.DictReader(io.StringIO(sheets.to_csv(report))))
    assert [line["disturbed"] for line in lines] == ["false", "true"]
    report["results"][1]["disturbed"] = None
    assert "Others took" not in sheets.to_markdown(report)


def test_tests_by_pairs_are_in_the_csv():
    found = {"bundle": "b", "difference": -0.002, "interval": [-0.004, 0.0], "p_value": 0.04, "triples": 661}
    (line,) = csv.DictReader(io.StringIO(sheets.to_csv(bench_rows.report([bench_rows.row(against_fp32=found)]))))
    assert (line["against_fp32.difference"], line["against_fp32.p_value"]) == ("-0.002", "0.04")
    assert line["against_teacher.difference"] == ""
