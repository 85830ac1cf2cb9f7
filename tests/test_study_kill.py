"""`kill -9` in the middle of a search: the same command goes on, and ends with the trials it would have had."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.tiny_encoder import write_encoder, write_graph, write_recipe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    root = tmp_path_factory.mktemp("material")
    data, encoder = write_graph(root / "tiny"), write_encoder(root / "encoder")
    return write_recipe(root / "toy.yaml", data, encoder, mask_rates=[0.3, 0.1], epochs=4, checkpoint_seconds=0.01)


def search(recipe, out):
    command = [sys.executable, "-m", "pmd.study.cli", "weights", "--recipe", str(recipe), "--out", str(out)]
    command += ["--seeds", "0", "--trials", "8", "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)


def finish(process):
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr


def trials(out):
    facts = json.loads((out / "study.json").read_text())
    return [{key: value for key, value in trial.items() if key != "number"} for trial in facts["trials"]]


def test_killed_and_gone_on_with_equals_uninterrupted(recipe, tmp_path):
    finish(search(recipe, tmp_path / "whole"))
    child = search(recipe, tmp_path / "out")
    while child.poll() is None and len(list((tmp_path / "out").glob("alpha-*"))) < 3:
        time.sleep(0.005)
    assert child.poll() is None, "the search ended before it could be killed"
    child.send_signal(signal.SIGKILL)
    child.communicate()
    finish(search(recipe, tmp_path / "out"))
    assert trials(tmp_path / "out") == trials(tmp_path / "whole")
    best = [(tmp_path / name / "best.yaml").read_text() for name in ("out", "whole")]
    assert best[0] == best[1]
    assert not [path for path in (tmp_path / "out").rglob("*") if ".partial-" in path.name]
