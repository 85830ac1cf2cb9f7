"""Two reports side by side: what counts as moved, on which machine, and how the command ends."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import bench_rows
import pytest
from click.testing import CliRunner, Result

from pmd.benchmarks import compare_table, gate
from pmd.benchmarks.cli import main
from pmd.benchmarks.compare import FIGURES, change_percent, compare
from pmd.benchmarks.errors import BenchError
from pmd.benchmarks.reading import read_report

NAME = "umls-pmd-grade-3-int8"
KEYS = [figure.key for figure in FIGURES]


def changed(report: dict, **figures: object) -> dict:
    """A copy whose only row has other figures; a dotted key is written with two underscores."""
    made = copy.deepcopy(report)
    for key, value in figures.items():
        *outer, name = key.split("__")
        inner = made["results"][0]
        for step in outer:
            inner = inner[step]
        inner[name] = value
    return made


def on_machine(report: dict, **facts: object) -> dict:
    made = copy.deepcopy(report)
    made["machine"] |= facts
    return made


def noisy(report: dict, percent: float | None, gflops: float = 60.0) -> dict:
    calibration = {**report["machine"]["calibration"], "slowest_median_percent": percent, "matmul_gflops": gflops}
    return on_machine(report, calibration=calibration)


def with_interval(report: dict, key: str, low: float | None, high: float | None) -> dict:
    return changed(report, intervals={key: [low, high]})


@pytest.fixture
def one() -> dict:
    """A bundle with p50 2 ms on a machine with 10 % noise."""
    row = bench_rows.row(query_ms={"p50": 2.0, "p95": 3.0, "p99": 4.0, "mean": 2.2}, cores_busy=1.0)
    return noisy(bench_rows.report([row]), 10.0)


def verdicts(a: dict, b: dict) -> dict[str, str]:
    (bundle,) = compare(a, b)["bundles"]
    return {key: figure["verdict"] for key, figure in bundle["figures"].items()}


def test_a_report_against_itself_is_the_same(one):
    found = compare(one, one)
    assert found["better"] == found["worse"] == 0
    assert list(found["bundles"][0]["figures"]) == KEYS
    assert set(verdicts(one, one).values()) == {"same"}
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("p50", "verdict"),
    [
        (2.0, "same"),
        (1.81, "within noise"),
        (1.79, "better"),
        (2.22, "within noise"),  # 2 / 2.22 = 0.901: the slower one is 9.9 % slower
        (2.23, "worse"),
        (None, "unknown"),
    ],
)
def test_times_move_beyond_the_noise(one, p50, verdict):
    found = verdicts(one, changed(one, query_ms__p50=p50))
    assert found["query_ms.p50"] == verdict
    assert {found[key] for key in KEYS if key != "query_ms.p50"} == {"same"}


@pytest.mark.parametrize(
    ("key", "value", "verdict"),
    [
        ("batch_queries_per_second", 1000.0, "better"),  # from 500
        ("batch_queries_per_second", 300.0, "worse"),
        ("cold_start_ms", 600.0, "worse"),  # from 440
        ("peak_rss_bytes", 82_000_000, "within noise"),  # from 80 MB
        ("peak_rss_bytes", 90_000_000, "worse"),
        ("bundle_bytes", 40_000_001, "worse"),  # a size repeats to the byte
        ("bundle_bytes", 39_999_999, "better"),
        ("metrics__mrr", 0.79999, "worse"),  # without an interval an MRR repeats as well
        ("metrics__mrr", 0.81, "better"),
    ],
)
def test_each_figure_has_its_own_tolerance_and_direction(one, key, value, verdict):
    assert verdicts(one, changed(one, **{key: value}))[key.replace("__", ".")] == verdict


def test_the_larger_noise_of_both_counts(one):
    slower = changed(one, query_ms__p50=2.5)  # 20 % slower
    assert verdicts(one, slower)["query_ms.p50"] == "worse"
    for a, b in ((noisy(one, 25.0), slower), (one, noisy(slower, 25.0))):
        assert compare(a, b)["noise_percent"] == 25.0
        assert verdicts(a, b)["query_ms.p50"] == "within noise"
    throttled = noisy(slower, 10.0, gflops=45.0)  # the same loop was a quarter slower
    assert compare(one, throttled)["noise_percent"] == pytest.approx(25.0)
    assert verdicts(one, throttled)["query_ms.p50"] == "within noise"


def test_a_process_without_its_core_is_noisier_than_the_calibration(one):
    slower = changed(one, query_ms__p50=3.0, cores_busy=0.6)
    assert verdicts(one, slower)["query_ms.p50"] == "within noise"
    assert verdicts(one, changed(slower, query_ms__p50=3.6))["query_ms.p50"] == "worse"
    two_threads = [on_machine(report, cores_used=2) for report in (one, slower)]
    assert verdicts(*two_threads)["query_ms.p50"] == "worse"  # there, waiting is no sign of a disturbance
    told = compare_table.lines(compare(one, slower), "A processor", 1)
    assert told[1] == f"{NAME} was slowed by something else while it was timed; noise 40.0 %"


def test_what_the_work_between_the_questions_says_of_a_disturbed_bundle_is_its_noise(one):
    spread = {"beats": 100, "spread_percent": 60.0, "cores_busy": 1.0}
    slower = changed(one, query_ms__p50=3.1, disturbance=spread, disturbed=True)
    assert verdicts(one, slower)["query_ms.p50"] == "within noise"  # 2 ms are within 37.5 % of 3.1 ms
    assert verdicts(one, changed(slower, query_ms__p50=3.3))["query_ms.p50"] == "worse"
    assert verdicts(one, changed(slower, disturbed=False))["query_ms.p50"] == "worse"
    assert verdicts(one, changed(slower, disturbance=None))["query_ms.p50"] == "worse"


def test_noise_that_the_user_knows_of_is_the_least(one):
    slower = changed(one, query_ms__p50=2.5)
    for percent, verdict in ((5.0, "worse"), (25.0, "within noise")):
        (bundle,) = compare(one, slower, noise_percent=percent)["bundles"]
        assert bundle["figures"]["query_ms.p50"]["verdict"] == verdict
        assert bundle["noise_percent"] == max(percent, 10.0)
    unknown = noisy(one, None)
    assert compare(unknown, slower, noise_percent=25.0)["times_judged"]
    assert not compare(unknown, slower)["times_judged"]


def test_overlapping_intervals_are_no_move(one):
    key = "query_ms.p50"
    a = with_interval(one, key, 1.9, 2.6)
    slower = changed(one, query_ms__p50=2.8)
    assert verdicts(a, with_interval(slower, key, 2.5, 3.0))[key] == "within noise"
    assert verdicts(a, with_interval(slower, key, 2.7, 3.0))[key] == "worse"
    assert verdicts(a, slower)[key] == "worse"  # one side alone says nothing
    assert verdicts(with_interval(one, key, 1.9, None), with_interval(slower, key, 2.7, 3.0))[key] == "within noise"


def test_mrr_within_the_bootstrap_interval_has_not_moved(one):
    a = changed(one, analysis={"interval": {"mrr": [0.78, 0.82]}})
    near = changed(one, metrics__mrr=0.785, analysis={"interval": {"mrr": [0.765, 0.805]}})
    far = changed(one, metrics__mrr=0.70, analysis={"interval": {"mrr": [0.68, 0.72]}})
    assert verdicts(a, near)["metrics.mrr"] == "within noise"
    assert verdicts(a, far)["metrics.mrr"] == "worse"
    assert verdicts(far, a)["metrics.mrr"] == "better"


def test_cold_starts_whose_runs_overlap_have_not_moved(one):
    a = changed(one, cold_start_ms=440.0, cold_start_runs_ms=[400.0, 440.0, 700.0])
    b = changed(one, cold_start_ms=650.0, cold_start_runs_ms=[600.0, 650.0, 700.0])
    assert verdicts(a, b)["cold_start_ms"] == "within noise"
    steady = changed(a, cold_start_runs_ms=[430.0, 440.0, 450.0])
    assert verdicts(steady, b)["cold_start_ms"] == "worse"


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"cpu": "Another"}, "cpu: A processor in the first, Another in the second"),
        ({"cpu": None}, "cpu is unknown"),
        ({"flags": ["avx512f"]}, "flags: only in the first avx2, only in the second avx512f"),
        ({"cores_physical": 8}, "cores_physical: 2 in the first, 8 in the second"),
        ({"ram_bytes": 16_000_000_000}, "memory: 8.0 GB in the first, 16.0 GB in the second"),
        (
            {"container_limits": {"cpus": 0.5, "memory_bytes": None}},
            "container_limits: unknown in the first, cpus 0.5",
        ),
    ],
)
def test_different_machines_are_said_first_and_times_are_not_judged(one, facts, words):
    other = on_machine(changed(one, query_ms__p50=20.0, bundle_bytes=50_000_000), **facts)
    found = compare(one, other)
    assert found["same_machine"] is found["times_judged"] is False
    first = compare_table.lines(found, "A processor", 1)[0]
    assert first.startswith("different machines, so times are not judged (")
    assert words in first
    told = verdicts(one, other)
    assert {told[key] for key in KEYS[:5]} == {"not judged"}
    assert told["bundle_bytes"] == "worse"


def test_one_machine_with_other_threads_or_unknown_noise_is_not_judged(one):
    slower = changed(one, query_ms__p50=20.0)
    for other, words in (
        (on_machine(slower, cores_used=2), "threads: 1 in the first, 2 in the second"),
        (noisy(slower, None), "does not say how noisy"),
    ):
        found = compare(one, other)
        assert (found["same_machine"], found["times_judged"]) == (True, False)
        assert words in compare_table.lines(found, "A processor", 1)[0]
        assert verdicts(one, other)["query_ms.p50"] == "not judged"
    assert compare(one, on_machine(one, ram_bytes=8_010_000_000))["same_machine"]


def test_versions_and_haste_are_noted_and_splits_keep_mrrs_apart(one):
    newer = on_machine(one, versions={"python": "3.11", "onnxruntime": "9.9"})
    newer = changed({**newer, "quick": True, "split": "valid"}, metrics__mrr=0.1)
    found = compare(one, newer)
    assert "onnxruntime: unknown in the first, 9.9 in the second" in found["notes"]
    assert "split: test in the first, valid in the second" in found["notes"]
    assert any("--quick" in note for note in found["notes"])
    assert verdicts(one, newer)["metrics.mrr"] == "not judged"
    assert found["times_judged"]


def test_reports_of_different_datasets_are_refused(one):
    with pytest.raises(BenchError, match=r"different datasets \(umls, nations\)"):
        compare(one, {**one, "dataset": "nations"})


def test_bundles_are_matched_by_name_whatever_their_order():
    a = bench_rows.report(bench_rows.ladder_rows())
    b = bench_rows.report([bench_rows.failed_row(), *bench_rows.ladder_rows()[:3], bench_rows.row(method="lkd")])
    b["results"].reverse()
    found = compare(a, b)
    by_name = {bundle["bundle"]: bundle for bundle in found["bundles"]}
    assert len(by_name) == 8
    both = [bundle for bundle in by_name.values() if bundle["in_a"] and bundle["in_b"]]
    assert len(both) == 3
    assert {figure["verdict"] for bundle in both for figure in bundle["figures"].values()} == {"same"}
    told = compare_table.lines(found, "A processor", 1)
    assert "only in the second: umls-lkd-grade-3-int8" in told
    assert "only in the first: umls-pmd-teacher-int8" in told
    assert "failed in the second: umls-pmd-grade-4-fp16: the model is damaged" in told
    assert all(not bundle["figures"] for bundle in by_name.values() if not (bundle["in_a"] and bundle["in_b"]))


def test_a_bundle_that_failed_is_unknown_even_where_figures_are_left(one):
    broken = changed(one, error="died", query_ms__p50=20.0)
    assert set(verdicts(one, broken).values()) == {"unknown"}


def test_the_table_shows_what_moved_and_counts_the_rest(one):
    slower = changed(one, query_ms__p50=4.0, bundle_bytes=30_000_000, peak_rss_bytes=None)
    short = compare_table.lines(compare(one, slower), "A processor", 1)
    assert short[0] == "one machine (A processor, 1 thread); noise 10.0 %"
    assert short[3].split("  ")[0] == NAME
    assert [line.split()[1:] for line in short[3:6]] == [
        ["query", "p50", "2.00", "ms", "4.00", "ms", "+100.0", "%", "worse"],
        ["peak", "memory", "80.0", "MB", "–", "–", "unknown"],
        ["size", "40.0", "MB", "30.0", "MB", "-25.0", "%", "better"],
    ]
    assert short[-1] == "2 of 8 figures moved beyond noise (1 better, 1 worse); 5 same, 1 unknown"
    full = compare_table.lines(compare(one, slower), "A processor", 1, everything=True)
    assert len(full) == len(short) + 5


@pytest.mark.parametrize(
    ("a", "b", "change"), [(2, 3, 50.0), (2, 1, -50.0), (0, 0, 0.0), (0, 1, None), (None, 1, None)]
)
def test_change_in_percent_of_the_first(a, b, change):
    assert change_percent(a, b) == change


# ---- gates on a comparison ---------------------------------------------------------------------------------


def failures(a: dict, b: dict, *conditions: str) -> dict[str, list[str]]:
    found = compare(a, b, [gate.parse(text, changes=True) for text in conditions])
    return {failed["bundle"]: failed["why"] for failed in found["gate"]["failed"]}


def test_changes_and_figures_of_the_second_report_are_gated(one):
    slower = changed(one, query_ms__p50=2.5, mrr_kept=0.99)
    assert failures(one, slower, "query_ms.p50>+30%", "query_ms.p50>3") == {}
    assert failures(one, slower, "query_ms.p50>+10%", "mrr_kept<0.995") == {
        NAME: ["query_ms.p50>+10%: it is +25 %", "mrr_kept<0.995: it is 0.99"]
    }
    assert failures(slower, one, "query_ms.p50<-10%") == {NAME: ["query_ms.p50<-10%: it is -20 %"]}
    told = failures(one, changed(one, query_ms__p50=2.1), "query_ms.p50>+3%")
    assert told == {NAME: ["query_ms.p50>+3%: it is +5 %, within the noise of 10.0 %"]}


def test_a_change_that_is_not_known_fails(one):
    condition = "query_ms.p50>+10%"
    other = on_machine(one, cpu="Another")
    assert "its change is not judged (cpu: A processor in the first" in failures(one, other, condition)[NAME][0]
    assert failures(one, other, "query_ms.p50>3") == {}
    nothing = changed(one, query_ms__p50=None)
    for a, b in ((nothing, one), (one, nothing)):
        assert failures(a, b, condition) == {NAME: [f"{condition}: its change is unknown, so it counts as failed"]}
    empty = {**one, "results": []}
    assert failures(empty, one, condition) == {
        NAME: [f"{condition}: not in the first report, so it counts as failed"]
    }
    assert failures(empty, one, "query_ms.p50>3") == {}
    assert failures(one, empty, "query_ms.p50>3") == {
        NAME: ["is not in the second report, so nothing is known of it"]
    }
    broken = changed(one, error="died")
    assert failures(broken, one, condition) == {
        NAME: [f"{condition}: failed in the first report, so it counts as failed"]
    }
    assert failures(one, broken, condition) == {NAME: ["could not be measured: died"]}


# ---- the command -------------------------------------------------------------------------------------------


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["compare", *(str(argument) for argument in arguments)])


@pytest.fixture
def folders(one, tmp_path) -> tuple[Path, Path]:
    for name, report in (("before", one), ("after", changed(one, query_ms__p50=4.0))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(report), encoding="utf-8")
    return tmp_path / "before", tmp_path / "after"


def test_the_command_prints_a_table_and_ends_in_json(folders):
    before, after = folders
    done = run(before, after / "report.json")
    assert (done.exit_code, done.stderr) == (0, "")
    lines = done.stdout.strip().splitlines()
    assert lines[0] == "one machine (A processor, 1 thread); noise 10.0 %"
    found = json.loads(lines[-1])
    assert found["schema"] == "pmd-bench-compare/1"
    assert (found["a"], found["b"]) == (str(before), str(after / "report.json"))
    assert (found["better"], found["worse"], found["gate"]) == (0, 1, None)
    assert found["bundles"][0]["figures"]["query_ms.p50"] == {
        "a": 2.0,
        "b": 4.0,
        "change_percent": 100.0,
        "interval_a": None,
        "interval_b": None,
        "verdict": "worse",
    }
    assert len(run(before, after, "--all").stdout.splitlines()) > len(lines)
    expected = json.loads(json.dumps(compare(read_report(before), read_report(after))))
    assert {key: found[key] for key in expected} == expected


def test_a_failing_gate_is_exit_1_with_a_line_for_the_bundle(folders):
    done = run(*folders, "--fail-if", "query_ms.p50>+10%", "--fail-if", "metrics.mrr<-0.5%")
    assert done.exit_code == 1
    assert done.stdout.splitlines()[-2] == f"gate: {NAME}: query_ms.p50>+10%: it is +100 %"
    assert run(*folders, "--fail-if", "metrics.mrr<-0.5%").exit_code == 0
    assert json.loads(run(*folders, "--noise", "60").stdout.splitlines()[-1])["worse"] == 0


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ([], "Missing argument 'SECOND'"),
        (["absent"], "'absent' does not exist"),
        (["."], "report.json does not exist"),
        (["before", "--fail-if", "mrr>+10%"], "near it: metrics.mrr"),
        (["before", "--noise", "100"], "--noise"),
        (["before", "--noise", "nan"], "--noise"),
    ],
)
def test_mistakes_are_one_line(folders, monkeypatch, extra, words):
    monkeypatch.chdir(folders[0].parent)
    done = run("before", *extra)
    assert (done.exit_code, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert words in line


def test_help_names_the_whole_command():
    done = run("--help")
    assert done.exit_code == 0
    assert done.stdout.startswith("Usage: ")
    assert "compare [OPTIONS] FIRST SECOND" in done.stdout
    assert "Examples:" in done.stdout
