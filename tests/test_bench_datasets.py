"""The loading benchmark: it runs, and the large graph stays within its limits (slow)."""

import json

import pytest
from click.testing import CliRunner

from pmd.benchmarks.datasets import main


def run(*args):
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    return result.exit_code, result.stdout, result.stderr


def test_a_small_graph():
    pytest.importorskip("pyarrow")
    code, stdout, stderr = run("--entities", 1000, "--triples", 10_000, "--part", 2)
    assert code == 0, stderr
    report = json.loads(stdout.splitlines()[-1])
    assert report["schema"] == "pmd-bench-data/1"
    assert (report["whole"]["triples"], report["naive"]["triples"]) == (9800, 4900)
    assert report["ratio"] > 0


def test_a_measurement_that_takes_too_long_is_told():
    code, _, stderr = run("--entities", 1000, "--triples", 10_000, "--timeout", 0.01)
    assert code == 1
    assert "took more than 0 s" in stderr


@pytest.mark.slow
def test_a_million_entities_and_ten_million_triples():
    pytest.importorskip("pyarrow")
    code, stdout, stderr = run()
    assert code == 0, stderr
    report = json.loads(stdout.splitlines()[-1])
    assert report["whole"]["seconds"] <= 60
    assert report["whole"]["peak_rss_bytes"] <= 4 << 30
    assert report["ratio"] >= 2
