"""`pmd-bench` from the command line to the files, with real bundles in real processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import bench_rows
import pytest
from click.testing import CliRunner, Result
from tiny_bundle import TEST_TRIPLES, write_tiny_bundle

from pmd.benchmarks.cli import main
from pmd.serving import extras
from pmd.serving.archive import pack
from pmd.serving.bundle import MANIFEST, seal


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_whole_command_with_a_folder_a_zip_and_a_corrupt_bundle(here):
    write_tiny_bundle(Path("bundles/tiny-fp32"))
    pack(write_tiny_bundle(here / "int8", precision="int8"), here / "tiny-int8.zip")
    corrupt = write_tiny_bundle(Path("bundles/corrupt"))
    (corrupt / "query" / "onnx" / "model.onnx").write_bytes(b"not a model")
    done = bench("bundles/tiny-fp32", "tiny-int8.zip", "bundles/corrupt", "--quick")
    assert done.exit_code == 1
    lines = done.stdout.strip().splitlines()
    last = json.loads(lines[-1])
    assert set(last) == {"schema", "report", "html", "results", "errors", "gate", "seconds"}
    assert (last["schema"], last["results"], last["errors"]) == ("pmd-bench-run/1", 3, 1)
    assert last["gate"] is None
    assert lines[-2] == f"report: {last['html']}"
    assert lines[0].split()[:3] == ["model", "method", "precision"]
    assert any(line.startswith("failed: corrupt: ") for line in lines)
    assert done.stderr == ""  # not a terminal: no progress

    report = json.loads(Path(last["report"]).read_text(encoding="utf-8"))
    assert last["report"] == str(Path("reports", "tiny", "report.json"))
    assert report["dataset"] == "tiny"
    assert report["command"].startswith("pmd-bench bundles/tiny-fp32 tiny-int8.zip bundles/corrupt")
    assert report["machine"]["matmul_gflops"] > 0
    whole = [row for row in report["results"] if row["error"] is None]
    assert [row["bundle"] for row in whole] == ["tiny-fp32", "tiny-int8.zip"]
    for row in whole:
        assert row["queries_timed"] == 200 * row["repeats"]["passes"]
        assert 0 < row["query_ms"]["p50"] <= row["query_ms"]["p95"] <= row["query_ms"]["p99"]
        assert row["cold_start_ms"] > 0
        assert row["peak_rss_bytes"] > 10_000_000
        assert row["metrics"]["queries"] == 2 * len(TEST_TRIPLES)
        assert row["cold_start_runs_ms"] == [row["cold_start_ms"]]
    assert sorted(path.name for path in Path("reports/tiny").iterdir()) == [
        "curve.png",
        "curve.svg",
        "report.csv",
        "report.html",
        "report.json",
        "report.md",
    ]


def mistake(result: Result) -> str:
    """The one error line of a user's mistake."""
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def test_mistakes_are_one_line_and_exit_2_before_anything_is_measured(here):
    assert "no run in runs/" in mistake(bench())
    assert "does not exist" in mistake(bench("absent"))
    bundle = write_tiny_bundle(Path("bundles/tiny"))
    (here / "notes.txt").write_text("keep me", encoding="utf-8")
    assert "holds other files" in mistake(bench(bundle, "--out", here))
    assert "--threads" in mistake(bench(bundle, "--threads", 0))
    assert "--split" in mistake(bench(bundle, "--split", "train"))
    assert "'tensorflow' is not one of 'torch', " in mistake(bench(bundle, "--against", "tensorflow"))
    assert "is not a run: it has no ladder.json" in mistake(bench(bundle, "--against", "torch", "--run", here))
    other = write_tiny_bundle(Path("bundles/other"))
    facts = json.loads((other / MANIFEST).read_text(encoding="utf-8"))
    facts.pop("files")
    seal(other, {**facts, "dataset": "huge"})
    assert "different datasets (huge, tiny)" in mistake(bench(bundle, other))


def test_a_missing_extra_names_the_pip_command(here, monkeypatch):
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None if name == "psutil" else name)
    bundle = write_tiny_bundle(Path("bundles/tiny"))
    assert mistake(bench(bundle)) == "error: psutil not installed; run: pip install 'pmd-kgc[bench]'"


def test_reading_reports_needs_no_extra(here, monkeypatch):
    report = bench_rows.report()
    (here / "report.json").write_text(json.dumps(report), encoding="utf-8")
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    assert bench("pick", here).exit_code == 0
    assert bench("compare", here, here).exit_code == 0


def test_a_bundle_called_like_a_command_is_named_with_its_folder(here):
    for name in ("compare", "pick"):
        write_tiny_bundle(Path(name))
        assert "Missing argument" in mistake(bench(name))
    assert "different" not in mistake(bench("./pick", "./compare", "--fail-if", "x"))
    assert "--threads" in mistake(bench("./pick", "--threads", 0))


def test_help_has_examples():
    done = bench("--help")
    assert done.exit_code == 0
    assert "Examples:" in done.stdout
    assert "sentence-transformers-openvino" in done.stdout


def test_importing_loads_nothing_heavy():
    modules = "pmd.benchmarks, pmd.benchmarks.cli, pmd.benchmarks.commands"
    code = f"import sys, {modules}; print(*{{name.split('.')[0] for name in sys.modules}})"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "onnx", "onnxruntime", "matplotlib", "jinja2", "psutil"}
    assert not heavy & set(child.stdout.split())
