"""The page of the standing set: made from the figures kept, the same every time, and refused for anything else."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from pathlib import Path

import bench_rows
import pytest
from click.testing import CliRunner, Result

from pmd.benchmarks import standing
from pmd.benchmarks.reading import read_report

ROOT = Path(__file__).parents[1]
KEPT, PAGE = ROOT / "benchmarks/results/cpu/standing.json", ROOT / "docs/benchmarks.md"
SERVING = {
    "schema": "pmd-bench-serving/1",
    "parts": {
        "answers": {
            "setting": {"bundles": ["umls-pmd-grade-3-int8"]},
            "measured_at": "2026-01-05T12:30:00+00:00",
            "noise": {"slowest_median_percent": 7.0},
        },
        "million": {
            "setting": {},
            "measured_at": "2026-01-05T12:40:00+00:00",
            "noise": {"slowest_median_percent": 8.0},
        },
    },
    "targets": [
        {"name": "answer, p50", "figure": "answers.query_ms.p50", "found": 0.4321, "unit": "ms", "bound": 1.5},
        {"name": "large table: load", "figure": "million.search.load_seconds", "found": 0.15, "unit": "s"},
        {"name": "never measured", "figure": "http.ms.p99", "found": None, "unit": "ms"},
    ],
}


def report() -> dict:
    """A report with every kind of figure that the page shows, and a bundle that failed."""
    points = [{"entities": 1000, "query_ms": 1.25}, {"entities": 1_000_000, "query_ms": 33.0}]
    fit = {"ms": 1.22, "ms_per_100k": 3.18, "worst_percent": 1.0}
    known = {
        "repeats": {"p50_half_width_percent": 1.44},
        "batches": [{"size": 1, "queries_per_second": 512.4}, {"size": 64, "queries_per_second": 2048.0}],
        "growth": {"points": points, "fit": fit, "synthetic": True},
        "against_fp32": {
            "bundle": "umls-pmd-grade-3-fp32",
            "difference": -0.0021,
            "interval": [-0.004, 0.001],
            "p_value": 0.123,
            "triples": 661,
        },
        "private_dirty_bytes": 61_000_000,
        "disturbed": True,
    }
    return bench_rows.report([bench_rows.row(**known), bench_rows.row("grade-3", "fp32"), bench_rows.failed_row()])


def run(*arguments: object) -> Result:
    return CliRunner().invoke(standing.main, [str(argument) for argument in arguments])


@pytest.fixture
def made(tmp_path, monkeypatch) -> Path:
    """A folder with both reports."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "report.json").write_text(json.dumps(report()), encoding="utf-8")
    (tmp_path / "serving.json").write_text(json.dumps(SERVING), encoding="utf-8")
    return tmp_path


def test_the_page_of_the_repository_is_what_its_figures_make():
    assert PAGE.read_text(encoding="utf-8") == standing.page(standing.read_standing(KEPT))


def test_the_figures_of_the_repository_name_machine_commit_and_date():
    kept = standing.read_standing(KEPT)
    assert kept["machine"]["cpu"] and kept["machine"]["versions"]["onnxruntime"]
    assert len(kept["machine"]["commit"]) == 40
    assert kept["started_at"].startswith("20")
    assert kept["results"] and kept["serving"]["figures"]


def test_two_reports_become_figures_and_page(made):
    done = run("--bench", made, "--serving", "serving.json", "--data", "kept.json", "--page", "page.md")
    assert done.exit_code == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert last == {"schema": "pmd-bench-standing/1", "page": "page.md", "data": "kept.json", "bundles": 3}
    text = Path("page.md").read_text(encoding="utf-8")
    assert text == standing.page(standing.condensed(read_report(made), SERVING))
    assert "**Others took the machine while 1 of 2 bundles were timed.**" in text
    for told in ("A processor, 2 cores", "2026-01-05", "umls-pmd-grade-4-fp16: the model is damaged"):
        assert told in text
    (line,) = [line for line in text.splitlines() if "± 1.4 %" in line]
    assert line.startswith("| grade 3 | pmd | int8 | 40.0 | 2.00 | ± 1.4 % |")
    assert line.endswith("| 61.0 | 0.8000 | 99.5 % | -0.0021 (p 0.123) | yes |")
    assert "| grade 3 | pmd | int8 | 512 | 2,048 |" in text
    assert "| grade 3 | pmd | int8 | 1.25 | 33.0 | 1.22 | 3.18 |" in text
    assert "## The edge runtime: umls-pmd-grade-3-int8" in text
    assert "| answer, p50 | 0.432 | ms | 7 % |" in text
    assert "| large table: load | 0.150 | s | 8 % |" in text
    assert "never measured" not in text


def test_the_page_is_made_again_from_the_figures_alone(made):
    run("--bench", made, "--serving", "serving.json", "--data", "kept.json", "--page", "page.md")
    (made / "report.json").unlink()
    assert run("--data", "kept.json", "--page", "again.md").exit_code == 0
    assert Path("again.md").read_bytes() == Path("page.md").read_bytes()


def test_what_was_not_measured_leaves_its_section_out(made):
    bare = copy.deepcopy(report())
    for row in bare["results"]:
        row |= {"batches": None, "growth": None, "disturbed": False}
    text = standing.page(standing.condensed(bare, {**SERVING, "parts": {}, "targets": []}))
    assert "Questions a second" not in text
    assert "Latency, by entities" not in text
    assert "edge runtime" not in text
    assert "Others took" not in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bench", "report.json"], "--bench and --serving belong together"),
        (["--data", "absent.json"], "absent.json does not exist; run: make bench"),
        (["--data", "serving.json"], "serving.json is not of schema pmd-bench-standing/1"),
        (
            ["--bench", "report.json", "--serving", "report.json"],
            "report.json is not of schema pmd-bench-serving/1",
        ),
        (["--bench", "report.json", "--serving", "noise.json"], "noise.json cannot be read"),
    ],
)
def test_mistakes_are_one_line(made, arguments, words):
    (made / "noise.json").write_bytes(b"\xff{")
    done = run(*arguments, "--page", "page.md")
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and words in line
    assert not Path("page.md").exists()


def test_make_bench_runs_the_set():
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").split("\nbench: ")[1].split("\n\n")[0]
    for command in ("pmd-bench --growth", "pmd.benchmarks.serving --quick", "pmd.benchmarks.standing"):
        assert command in recipe


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
def test_make_bench_says_what_comes_first(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    done = subprocess.run(["make", "bench"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == "error: no bundles/umls-*; run: make demo"
    assert [path.name for path in tmp_path.iterdir()] == ["Makefile"]  # nothing was installed for it
