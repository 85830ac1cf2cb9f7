"""`pmd-train` from end to end on a toy graph, and every mistake a user can make with it."""

import json

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file

from pmd.batches import tokenise
from pmd.cli import main
from pmd.datasets import load_graph
from pmd.evaluation import evaluate_model
from pmd.grade import load_grade
from tests.tiny_encoder import write_encoder, write_graph, write_recipe

METRIC_KEYS = {"mrr", "mean_rank", "hits@1", "hits@3", "hits@10", "queries"}


def run(*args):
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    root = tmp_path_factory.mktemp("material")
    return write_graph(root / "tiny"), write_encoder(root / "encoder")


@pytest.fixture
def recipe(material, tmp_path):
    return write_recipe(tmp_path / "toy.yaml", *material, rerank={"hops": 1})


@pytest.fixture(scope="module")
def finished(material, tmp_path_factory):
    root = tmp_path_factory.mktemp("finished")
    recipe = write_recipe(root / "toy.yaml", *material, rerank={"hops": 1})
    code, stdout, stderr = run("--recipe", recipe, "--out", root / "run", "--quiet")
    assert code == 0, stderr
    return root / "run", stdout


def test_run_folder(finished):
    folder, stdout = finished
    last = json.loads(stdout.splitlines()[-1])
    assert (last["schema"], last["done"]) == ("pmd-train/1", True)
    ladder = json.loads((folder / "ladder.json").read_text())
    assert [stage["stage"] for stage in ladder["stages"]] == ["teacher", "pre-distilled", "grade-2"]
    assert {key: ladder[key] for key in ("schema", "dataset", "method", "seed")} == {
        "schema": "pmd-ladder/1", "dataset": "tiny", "method": "pmd", "seed": 0,
    }  # fmt: skip
    for stage in ladder["stages"]:
        files = {path.name for path in (folder / stage["stage"]).iterdir()}
        assert files == {"model.safetensors", "config.json", "tokenizer.json", "metrics.json"}
        for split in ("valid", "test", "test_reranked"):
            assert set(stage[split]) == METRIC_KEYS | {"head", "tail"}
            assert stage[split]["queries"] == 12
        assert stage["train_seconds"] > 0
        assert stage["triples_per_second"] > 0
    assert [stage["mask_rate"] for stage in ladder["stages"]] == [0.0, 0.3, 0.0]
    assert [stage["parameters"] for stage in ladder["stages"]] == sorted(
        (stage["parameters"] for stage in ladder["stages"]), reverse=True
    )
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert {event["event"] for event in events} == {"stage", "step", "epoch"}
    facts = json.loads((folder / "run.json").read_text())
    assert facts["schema"] == "pmd-run/1"
    assert {"recipe", "versions", "machine", "seed", "commit"} <= set(facts)
    assert not (folder / "checkpoint.safetensors").exists()


def test_the_metrics_are_those_of_the_saved_weights(finished, material):
    grade = load_grade(finished[0] / "grade-2")
    graph = load_graph(str(material[0]))
    texts = tokenise(graph, grade.tokenizer, grade.info.templates)
    measured, _ = evaluate_model(grade.model, texts, "test", graph.known())
    stored = json.loads((finished[0] / "grade-2" / "metrics.json").read_text())["test"]
    assert measured == stored


def test_same_seed_same_bytes_and_resume_after_a_time_limit(recipe, finished, tmp_path):
    code, stdout, _ = run("--recipe", recipe, "--out", tmp_path / "run", "--time-limit", "0", "--quiet")
    assert code == 75
    assert json.loads(stdout.splitlines()[-1])["done"] is False
    code, _, stderr = run("--recipe", recipe, "--out", tmp_path / "run", "--quiet")
    assert code == 2
    assert "--resume" in stderr
    code, _, stderr = run("--recipe", recipe, "--out", tmp_path / "run", "--resume", "--quiet")
    assert code == 0, stderr
    for stage in ("teacher", "pre-distilled", "grade-2"):
        first, second = ((root / stage / "model.safetensors") for root in (finished[0], tmp_path / "run"))
        for name, tensor in load_file(first).items():
            assert load_file(second)[name].equal(tensor), (stage, name)


def test_another_seed_gives_other_weights(recipe, finished, tmp_path):
    code, _, _ = run("--recipe", recipe, "--out", tmp_path / "run", "--seed", "1", "--quiet")
    assert code == 0
    name = "query.encoder.layer.0.output.dense.weight"
    first, second = (
        load_file(root / "grade-2" / "model.safetensors")[name] for root in (finished[0], tmp_path / "run")
    )
    assert not first.equal(second)


@pytest.mark.parametrize(
    ("method", "stages"),
    [
        ("baseline", ["grade-4", "grade-2"]),
        ("lkd", ["teacher", "pre-distilled", "grade-2"]),
        ("pmd-no-mgfd", ["teacher", "pre-distilled", "grade-2"]),
    ],
)
def test_other_methods(recipe, tmp_path, method, stages):
    code, _, stderr = run(
        "--recipe", recipe, "--out", tmp_path / "run", "--method", method, "--epochs", 1, "--quiet"
    )
    assert code == 0, stderr
    ladder = json.loads((tmp_path / "run" / "ladder.json").read_text())
    assert [stage["stage"] for stage in ladder["stages"]] == stages
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert all(event["feature"] == 0 for event in events if event["event"] == "step")


def test_resume_refuses_another_recipe(recipe, finished):
    code, _, stderr = run("--recipe", recipe, "--out", finished[0], "--resume", "--lr", "0.1", "--quiet")
    assert code == 2
    assert "another recipe lr" in stderr


def test_dry_run_trains_nothing(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, stdout, stderr = run("--recipe", recipe, "--dry-run")
    assert code == 0, stderr
    plan = json.loads(stdout.splitlines()[-1])
    assert plan["schema"] == "pmd-plan/1"
    assert [stage["layers"] for stage in plan["stages"]] == [[0, 1, 2, 3], [0, 1, 2, 3], [1, 3]]
    assert "query text:" in stdout
    assert not (tmp_path / "runs").exists()


MISTAKES = {
    "unknown recipe": (["--recipe", "nothing"], "no recipe 'nothing'"),
    "recipe file missing": (["--recipe", "nothing.yaml"], "no recipe file"),
    "missing folder": (["--data", "no/such/folder"], "no dataset folder no/such/folder"),
    "unknown encoder": (["--encoder", "no/such-encoder"], "encoder 'no/such-encoder' not found"),
    "unknown method": (["--method", "magic"], "method"),
    "unknown key": (["--set", "speed=9"], "unknown recipe key 'speed'"),
    "not a setting": (["--set", "speed"], "is not KEY=VALUE"),
    "too deep": (["--grades", "9,2", "--mask-rates", "0,0"], "9 layers cannot be cut from 4"),
    "rates and grades": (["--grades", "4,2", "--mask-rates", "0"], "1 mask_rates for 2 grades"),
    "rising grades": (["--grades", "2,4", "--mask-rates", "0,0"], "must fall"),
    "weights": (["--alpha", "0.6", "--beta", "0.6"], "alpha + beta"),
    "not a number": (["--grades", "four"], "comma-separated"),
    "no such option": (["--speed", "9"], "No such option"),
    "bad template": (["--set", "templates={entity: '{title}'}"], "unknown field 'title'"),
    "bad template key": (["--set", "templates={head: x}"], "unknown template 'head'"),
    "no cuda": (["--device", "cuda"], "no CUDA device"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_end_in_one_line_and_code_2(recipe, tmp_path, monkeypatch, mistake):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    args, message = MISTAKES[mistake]
    first = [] if args[0] == "--recipe" else ["--recipe", recipe]
    code, _, stderr = run(*first, "--out", tmp_path / "run", "--quiet", *args)
    assert code == 2, stderr
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert message in stderr
    assert not (tmp_path / "run").exists()


def test_ctrl_c_leaves_no_half_written_stage(recipe, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pmd.ladder.save_grade", interrupt)
    code, _, stderr = run("--recipe", recipe, "--out", tmp_path / "run", "--quiet")
    assert code == 130
    assert "interrupted" in stderr
    assert not [path for path in (tmp_path / "run").iterdir() if path.is_dir()]
    monkeypatch.undo()
    code, _, stderr = run("--recipe", recipe, "--out", tmp_path / "run", "--resume", "--quiet")
    assert code == 0, stderr


def test_stages_of_another_run_are_taken_over(finished, material, tmp_path):
    """What differs only in its students takes the teacher, and trains the rest as if it had trained it itself."""
    recipe = write_recipe(tmp_path / "toy.yaml", *material, rerank={"hops": 1}, alpha=0.3)
    for name, more in (("alone", ()), ("reusing", ("--reuse", finished[0]))):
        code, _, stderr = run("--recipe", recipe, "--out", tmp_path / name, "--quiet", *more)
        assert code == 0, stderr
    events = (tmp_path / "reusing" / "events.jsonl").read_text()
    assert '"stage": "pre-distilled"' in events
    assert '"stage": "teacher"' not in events, "the teacher was trained again"
    for stage in ("teacher", "pre-distilled", "grade-2"):
        weights = [(tmp_path / name / stage / "model.safetensors").read_bytes() for name in ("alone", "reusing")]
        assert weights[0] == weights[1], stage


def slow(changes):
    return pytest.param(changes, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "pkd"},
        slow({"method": "lkd"}),
        slow({"method": "pmd-no-mgfd"}),
        slow(
            {"feature_term": "pooled", "score_form": "logit", "taught_by": "teacher", "student_init": "pretrained"}
        ),
        {"candidates": "batch", "order": "graph", "earlier_batches": "all", "mask_positions": "rarity"},
        slow({"share_towers": "embeddings", "chunk_tokens": 100, "mask_schedule": "linear"}),
    ],
    ids=lambda changes: "-".join(str(value) for value in changes.values()),
)
def test_every_choice_trains_a_ladder(material, tmp_path, changes):
    recipe = write_recipe(tmp_path / "toy.yaml", *material, epochs=1, **changes)
    code, stdout, stderr = run("--recipe", recipe, "--out", tmp_path / "run", "--quiet")
    assert code == 0, stderr
    assert [stage["stage"] for stage in json.loads(stdout.splitlines()[-1])["stages"]][-1] == "grade-2"


def test_a_recipe_for_no_known_choice_is_one_line(material, tmp_path):
    recipe = write_recipe(tmp_path / "toy.yaml", *material, mask_positions="best")
    code, _, stderr = run("--recipe", recipe, "--out", tmp_path / "run")
    assert code == 2
    assert "mask_positions: Input should be 'uniform', 'salience' or 'rarity'" in stderr
    assert not (tmp_path / "run").exists()
