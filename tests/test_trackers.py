"""Experiment trackers: what reaches them, read back from their own files; and what a run does without them."""

import importlib.util
import json
import os
import sqlite3
import sys

import pytest
from click.testing import CliRunner

from pmd import trackers as module
from pmd.cli import main
from pmd.serving.errors import MissingExtra
from pmd.trackers import TrackerError, Trackers, require_trackers, tracking
from tests.tiny_encoder import write_encoder, write_graph, write_recipe

CONFIG = {"lr": 0.1, "grades": [4, 2], "rerank": None, "method": "pmd"}


def needs(name):
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")


def run(*args):
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    root = tmp_path_factory.mktemp("trackers")
    data, encoder = write_graph(root / "tiny"), write_encoder(root / "encoder", layers=2)
    return write_recipe(root / "toy.yaml", data, encoder, grades=[2, 1], epochs=2, rerank={"hops": 1})


def curves(folder):
    """Points (step, value) by name, of all sittings."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    points = {}
    for path in sorted(folder.glob("events*")):
        events = EventAccumulator(str(path))
        events.Reload()
        for name in events.Tags()["scalars"]:
            points.setdefault(name, []).extend((event.step, event.value) for event in events.Scalars(name))
    return points


@pytest.fixture(scope="module")
def tracked(recipe, tmp_path_factory):
    """A run that stopped after its first step and went on."""
    out = tmp_path_factory.mktemp("tracked") / "run"
    line = ["--recipe", recipe, "--out", out, "--tracker", "tensorboard"]
    before = dict(os.environ)
    stopped, finished = run(*line, "--time-limit", 0), run(*line, "--resume")
    assert (stopped[0], finished[0]) == (75, 0), finished[2]
    assert dict(os.environ) == before, "a tracker's settings are taken back"
    return out, finished


@needs("tensorboard")
def test_curves_go_on_over_stages_and_a_resume(tracked):
    out, _ = tracked
    points = curves(out / "tensorboard")
    ladder = json.loads((out / "ladder.json").read_text(encoding="utf-8"))
    before = 0
    for stage in ladder["stages"]:
        name, epochs = stage["stage"], stage["history"]
        shown = points[f"{name}/valid_mrr"]
        assert shown == [(before + e["step"], pytest.approx(e["valid_mrr"], rel=1e-6)) for e in epochs]
        assert [step for step, _ in points[f"{name}/mask_rate"]] == [step for step, _ in shown]
        before += epochs[-1]["step"]
        for part in ("total", "task", "score", "feature", "lr", "triples_per_second"):
            assert points[f"{name}/{part}"][-1][0] == before, "the last step is always reported"
        assert points[f"{name}/test/mrr"] == [(before, pytest.approx(stage["test"]["mrr"], rel=1e-6))]
        assert points[f"{name}/test_reranked/hits_at_1"][0][0] == before
        assert points[f"{name}/valid/mean_rank"][0][1] == pytest.approx(stage["valid"]["mean_rank"])


@needs("tensorboard")
def test_the_recipe_is_stored_once(tracked):
    import yaml

    out, (_, stdout, _) = tracked
    (stored,) = (out / "tensorboard").glob("*/hparams.yml")
    kept = yaml.safe_load(stored.read_text(encoding="utf-8"))
    assert (kept["method"], json.loads(kept["grades"]), json.loads(kept["rerank"])["hops"]) == ("pmd", [2, 1], 1)
    assert json.loads(stdout.splitlines()[-1])["done"] is True, "the last line stays the run's"


@needs("tensorboard")
def test_no_global_state_is_left(tracked):
    from accelerate import PartialState

    assert PartialState._shared_state == {}


@pytest.mark.slow
@needs("mlflow")
def test_mlflow_writes_into_the_run_folder(tmp_path):
    for sitting in (0, 1):
        with tracking(("mlflow",), tmp_path, CONFIG) as started:
            started.log("grade-2", {"hits@1": 0.5, "rerank": None}, sitting)
    database = sqlite3.connect(tmp_path / "mlflow" / "mlflow.db")
    rows = database.execute("select key, step, value from metrics order by step").fetchall()
    assert rows == [("grade-2/hits_at_1", 0, 0.5), ("grade-2/hits_at_1", 1, 0.5)]
    assert len(database.execute("select * from runs").fetchall()) == 1, "a resumed run goes on"
    assert dict(database.execute("select key, value from params").fetchall())["grades"] == "[4, 2]"
    database.close()


@pytest.mark.slow
@needs("wandb")
def test_wandb_stays_offline_in_the_run_folder(tmp_path):
    for sitting in (0, 1):
        with tracking(("wandb",), tmp_path, CONFIG) as started:
            started.log("grade-2", {"task": 0.5}, sitting)
    kept = json.loads((tmp_path / "trackers.json").read_text(encoding="utf-8"))["wandb"]
    assert len(list(tmp_path.glob(f"wandb/offline-run-*-{kept}"))) == 2


def test_defaults_keep_everything_here_and_the_user_s_win(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with module._environment(module._defaults(tmp_path)):
        assert os.environ["WANDB_MODE"] == "online"
        assert os.environ["MLFLOW_TRACKING_URI"].startswith(f"sqlite:///{tmp_path.resolve()}")
        assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
        assert os.environ["WANDB_ERROR_REPORTING"] == "false"
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert os.environ["WANDB_MODE"] == "online"


@pytest.fixture
def absent(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in module.TRACKERS else find(name, *rest)
    )


def test_a_missing_package_stops_before_anything(absent, recipe, tmp_path):
    code, _, stderr = run("--recipe", recipe, "--out", tmp_path / "run", "--tracker", "mlflow")
    assert code == 2
    assert stderr == "error: mlflow not installed; run: pip install mlflow\n"
    assert not (tmp_path / "run").exists()
    with pytest.raises(MissingExtra, match="mlflow and wandb not installed; run: pip install mlflow wandb"):
        require_trackers(("mlflow", "wandb", "mlflow"))


def test_an_unknown_name_is_answered_with_the_list(recipe):
    code, _, stderr = run("--recipe", recipe, "--tracker", "neptune")
    assert code == 2
    assert all(name in stderr for name in ("neptune", *module.TRACKERS))
    assert len(stderr.splitlines()) == 1
    with pytest.raises(TrackerError, match="no tracker 'neptune'; there are tensorboard, mlflow, wandb"):
        require_trackers(("neptune",))


class Fake:
    name = "fake"

    def __init__(self, breaks=False):
        self.breaks, self.points, self.config = breaks, [], {}

    def log(self, points, step):
        if self.breaks:
            raise OSError("disk full\nand more")
        self.points.append((step, points))

    def store_init_configuration(self, values):
        self.config = values

    def finish(self):
        self.points.append("finished")


def test_a_tracker_gets_finite_numbers_under_names_that_all_accept():
    fake = Fake()
    trackers = Trackers([fake])
    trackers.configure(CONFIG)
    facts = {"hits@1": 0.5, "mrr": float("nan"), "rank": float("inf"), "valid": None, "epochs": 3, "head": {}}
    trackers.log("grade-2", facts, 7)
    trackers.finish()
    assert fake.points == [(7, {"grade-2/hits_at_1": 0.5, "grade-2/epochs": 3}), "finished"]
    assert fake.config == {"lr": 0.1, "grades": "[4, 2]", "rerank": "null", "method": "pmd"}


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(capsys):
    broken, fine = Fake(breaks=True), Fake()
    trackers = Trackers([broken, fine])
    for step in (1, 2):
        trackers.log("teacher", {"task": 1.0}, step)
    assert capsys.readouterr().err == "warning: fake failed and is left out from here: disk full\n"
    assert [step for step, _ in fine.points] == [1, 2]


def test_a_tracker_that_cannot_start_is_the_user_s_to_repair(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "require_trackers", lambda names: None)
    monkeypatch.setattr(module, "_wandb", lambda folder: (_ for _ in ()).throw(ValueError("no such mode")))
    with pytest.raises(TrackerError, match="wandb cannot start: no such mode"), tracking(("wandb",), tmp_path, {}):
        pass


def test_without_trackers_nothing_is_loaded(tmp_path):
    with tracking((), tmp_path, CONFIG) as none:
        none.log("teacher", {"task": 1.0}, 1)
    assert list(tmp_path.iterdir()) == []
    assert not {"mlflow", "wandb"} & set(sys.modules)
