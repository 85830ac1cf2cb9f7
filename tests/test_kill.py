"""`kill -9` in the middle of a ladder: the run resumes, and ends with the bytes it would have had."""

import os
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

from tests.tiny_encoder import write_encoder, write_graph, write_recipe

pytestmark = pytest.mark.slow
STAGES = ("teacher", "pre-distilled", "grade-2")


def command(recipe, out):
    return [sys.executable, "-m", "pmd.cli", "--recipe", str(recipe), "--out", str(out), "--resume", "--quiet"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    root = tmp_path_factory.mktemp("material")
    data, encoder = write_graph(root / "tiny"), write_encoder(root / "encoder")
    return write_recipe(root / "toy.yaml", data, encoder, epochs=12, batch_size=8, checkpoint_seconds=0.01)


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command(recipe, out), check=True, capture_output=True, env=environment)
    return out


@pytest.mark.parametrize("after_steps", [3, 40, 90])
def test_killed_and_resumed_equals_uninterrupted(recipe, whole, tmp_path, after_steps):
    out, environment = tmp_path / "run", {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        command(recipe, out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    )
    while child.poll() is None and written(out) < after_steps:
        time.sleep(0.002)
    assert child.poll() is None, "the run ended before it could be killed"
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert not all((out / stage).exists() for stage in STAGES)
    resumed = subprocess.run(command(recipe, out), capture_output=True, text=True, env=environment)
    assert resumed.returncode == 0, resumed.stderr
    for stage in STAGES:
        ours, theirs = (load_file(root / stage / "model.safetensors") for root in (out, whole))
        assert all(ours[name].equal(theirs[name]) for name in theirs), stage
    assert not [path for path in out.iterdir() if ".partial-" in path.name], "left-overs were not swept"


def written(out):
    """A rising number for how far the run is: checkpoints are replaced, so their times change."""
    seen = getattr(written, "seen", {})
    written.seen = seen
    try:
        seen.setdefault(out, set()).add((out / "checkpoint.safetensors").stat().st_mtime_ns)
    except FileNotFoundError:
        pass
    return len(seen.get(out, ()))
