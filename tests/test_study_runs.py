"""Training a study's runs with a fake trainer: checked first, shared, skipped when done, resumed."""

import json

import pytest

from pmd.errors import EncoderError, RecipeError, RunError
from pmd.study import conduct, report
from pmd.study.conduct import Conduct, Options
from pmd.study.folder import StudyError
from tests.study_fakes import FakeTrainer, Killed
from tests.tiny_encoder import write_encoder, write_graph, write_recipe


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    root = tmp_path_factory.mktemp("material")
    return write_graph(root / "tiny"), write_encoder(root / "encoder")


@pytest.fixture
def recipe(material, tmp_path):
    return write_recipe(tmp_path / "toy.yaml", *material, mask_rates=[0.2, 0.1])


@pytest.fixture
def study(recipe, tmp_path, monkeypatch):
    def start(trainer=None, name="methods", settings=None, **options):
        trainer = trainer or FakeTrainer()
        monkeypatch.setattr(conduct, "ladder_trainer", lambda *_args, **_options: trainer)
        monkeypatch.setattr(report, "draw", lambda _study: {"svg": b"<svg/>", "png": b"\x89PNG"})
        options = {"seeds": (0, 1), "out": tmp_path / "out"} | options
        return Conduct.prepare(name, str(recipe), settings or {}, Options(**options)), trainer

    return start


def test_seed_by_seed_with_stages_of_the_same_seed_to_take_over(study):
    made, trainer = study(only=("lkd", "pmd"))
    facts, done = made.train()
    assert done
    assert trainer.calls == ["lkd-seed-0", "pmd-seed-0", "lkd-seed-1", "pmd-seed-1"]
    assert trainer.reused["pmd-seed-1"] == ["lkd-seed-1"]
    assert trainer.reused["lkd-seed-0"] == []
    assert [row["name"] for row in facts["variants"] if row["grades"]] == ["lkd", "pmd"]
    assert facts == json.loads(made.folder.facts.read_text())


def test_what_the_files_hold(study):
    made, _ = study(only=("baseline", "pmd"))
    facts, _ = made.train()
    assert facts["schema"] == "pmd-study/1"
    assert (facts["study"], facts["dataset"], facts["seeds"], facts["reference"]) == (
        "methods",
        "tiny",
        [0, 1],
        "pmd",
    )
    assert (facts["commit"], facts["machine"]["processor"]) == ("c0ffee", "a small one")
    assert set(facts["encoder"]) == {"name", "sha256"}
    assert facts["recipe"]["dataset"].endswith("tiny")
    assert facts["runs"][0]["run"] == "baseline-seed-0"
    files = {path.name for path in made.folder.root.iterdir() if path.is_file()}
    assert files == {"study.json", "table.md", "plot.svg", "plot.png"}


def test_finished_runs_are_skipped_and_later_ones_added(study):
    study(only=("pmd",), seeds=(0,))[0].train()
    made, trainer = study(only=("pmd", "lkd"), seeds=(1,))
    facts, _ = made.train()
    assert trainer.calls == ["lkd-seed-1", "pmd-seed-1"]
    assert facts["seeds"] == [0, 1]
    pmd = next(row for row in facts["variants"] if row["name"] == "pmd")
    assert set(pmd["grades"]["2"]["valid_mrr"]["values"]) == {"0", "1"}
    made, trainer = study(only=("pmd",))
    assert made.train()[1]
    assert trainer.calls == []


def test_killed_and_started_again(study):
    def score(recipe, grade):
        return 0.4 + grade / 100

    whole, _ = study(FakeTrainer(score), out=None, only=("lkd", "pmd"))
    assert whole.folder.root.name == "tiny-methods"
    made, trainer = study(only=("lkd", "pmd"))
    trainer.die_at = 2
    with pytest.raises(Killed):
        made.train()
    facts = json.loads(made.folder.facts.read_text())
    assert [row["name"] for row in facts["variants"] if row["grades"]] == ["lkd"]
    made, trainer = study(only=("lkd", "pmd"))
    assert made.train()[1]
    assert trainer.calls == ["pmd-seed-0", "lkd-seed-1", "pmd-seed-1"]


def test_time_limit_stops_between_runs_and_within_one(study):
    made, trainer = study(FakeTrainer(stop_at=2))
    assert made.train()[1] is False
    assert len(trainer.calls) == 2
    made, trainer = study(time_limit=0)
    assert made.train()[1] is False
    assert trainer.calls == []


def test_other_studies_lend_their_stages(study, tmp_path):
    study(only=("pmd",), seeds=(0,))[0].train()
    made, trainer = study(
        name="ablation", out=tmp_path / "other", reuse=(tmp_path / "out",), only=("pmd",), seeds=(0,)
    )
    made.train()
    assert trainer.reused["pmd-seed-0"] == ["pmd-seed-0"]


def test_dry_run_says_what_is_shared_and_writes_nothing(study):
    made, trainer = study()
    text, facts = made.describe()
    assert "10 runs, 28 stages, of which 6 are shared: 22 to train" in text
    shared = {
        (run["run"], stage["stage"]): stage["shared_with"] for run in facts["runs"] for stage in run["stages"]
    }
    assert shared["pmd-seed-1", "teacher"] == "lkd-seed-1"
    assert shared["pmd-seed-1", "grade-2"] is None
    assert not made.folder.root.exists()
    assert trainer.calls == []


@pytest.mark.parametrize(
    ("mistake", "error", "message"),
    [
        ({"only": ("pmd", "magic")}, StudyError, r"no variant 'magic'.*baseline, lkd"),
        ({"settings": {"speed": 9}}, RecipeError, "unknown recipe key 'speed'"),
        ({"settings": {"grades": [9, 2]}}, RecipeError, "9 layers"),
        ({"settings": {"encoder": "no/such"}}, EncoderError, "not found"),
        ({"name": "ablation", "settings": {"alpha": 0, "beta": 0.99}, "only": ("x",)}, StudyError, "no variant"),
    ],
)
def test_mistakes_are_found_before_anything_trains(study, monkeypatch, tmp_path, mistake, error, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(error, match=message):
        study(**mistake)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_study_or_recipe_is_refused(study, tmp_path):
    study(only=("pmd",), seeds=(0,))[0].train()
    with pytest.raises(StudyError, match=r"another study \('methods'"):
        study(name="masking")
    with pytest.raises(StudyError, match="another recipe epochs"):
        study(settings={"epochs": 7})
    run = tmp_path / "out" / "pmd-seed-0" / "run.json"
    facts = json.loads(run.read_text())
    facts["recipe"]["lr"] = 0.5
    run.write_text(json.dumps(facts))
    with pytest.raises(RunError, match="pmd-seed-0 was made with another recipe lr"):
        study()
    with pytest.raises(StudyError, match="is not a study"):
        study(out=tmp_path)
