"""The ranking benchmark runs, and its naive version agrees with the ranks."""

import json

import pytest
from click.testing import CliRunner

from pmd.benchmarks.ranking import main
from tests.tiny_encoder import write_graph


@pytest.mark.slow  # whole child processes
def test_a_small_graph(tmp_path):
    result = CliRunner().invoke(main, [str(write_graph(tmp_path / "tiny")), "--part", "1"])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert (found["schema"], found["triples"], found["naive_part"]) == ("pmd-bench-ranking/1", 12, 12)
    assert found["largest_difference"] == 0
    assert found["ratio"] > 0


def test_a_missing_dataset_is_told():
    result = CliRunner().invoke(main, ["no/such/folder"])
    assert result.exit_code == 1
    assert "a measurement failed" in result.stderr
