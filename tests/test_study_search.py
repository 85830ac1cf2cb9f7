"""The search for weights with a fake trainer: seeded, pruned, and the same after a kill."""

import json

import pytest

from pmd.recipe import load_recipe
from pmd.study import conduct, points, report, search
from pmd.study.conduct import Conduct, Options
from pmd.study.folder import StudyError, StudyFolder
from tests.study_fakes import FakeTrainer, Killed
from tests.tiny_encoder import tiny_graph, write_encoder, write_graph, write_recipe

TRIALS = 9


def hill(recipe, grade):
    """Best at alpha 0.3, beta 0.2."""
    return 0.8 - (recipe.alpha - 0.3) ** 2 - (recipe.beta - 0.2) ** 2 + 0.001 * recipe.seed


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("search")
    material = write_graph(root / "tiny"), write_encoder(root / "encoder")
    write_recipe(root / "toy.yaml", *material, mask_rates=[0.2, 0.1], epochs=3)
    return root


def search_with(patch, root, trainer, *, settings=None, **options):
    patch.setattr(conduct, "ladder_trainer", lambda *_args, **_options: trainer)
    patch.setattr(report, "draw", lambda _study: {"png": b"\x89PNG"})
    options = {"seeds": (0,), "trials": TRIALS} | options
    return Conduct.prepare("weights", str(root / "toy.yaml"), settings or {}, Options(**options))


@pytest.fixture
def weights(root, tmp_path, monkeypatch):
    def start(trainer=None, **options):
        trainer = trainer or FakeTrainer(hill)
        return search_with(monkeypatch, root, trainer, **{"out": tmp_path / "out"} | options), trainer

    return start


def outcome(facts):
    return [(trial["alpha"], trial["beta"], trial["state"], trial["value"]) for trial in facts["trials"]]


@pytest.fixture(scope="module")
def whole(root):
    """A search that nothing interrupts."""
    trainer = FakeTrainer(hill)
    with pytest.MonkeyPatch.context() as patch:
        made = search_with(patch, root, trainer, out=root / "whole")
        facts, done = made.train()
    assert done
    return made, trainer, facts


def test_a_search_prunes_and_ends_in_a_recipe(whole):
    made, trainer, facts = whole
    assert len(facts["trials"]) == TRIALS == len({trial["variant"] for trial in facts["trials"]})
    assert facts["trials"][0]["variant"] == "alpha-0.10-beta-0.10" == facts["reference"]  # the recipe's own
    states = [trial["state"] for trial in facts["trials"]]
    assert set(states[:5]) == {"complete"}
    assert "pruned" in states
    pruned = next(trial for trial in facts["trials"] if trial["state"] == "pruned")
    assert pruned["epochs"] == 2  # the first epoch is not judged, and after the last nothing is saved
    assert not made.folder.run(pruned["variant"], 0).exists()
    best = max((t for t in facts["trials"] if t["state"] == "complete"), key=lambda t: t["value"])
    assert facts["best"] == {key: best[key] for key in ("alpha", "beta", "value", "variant")}
    recipe = load_recipe(str(made.folder.best), {})
    assert (recipe.alpha, recipe.beta) == (best["alpha"], best["beta"])
    assert recipe.model_copy(update={"alpha": 0.1, "beta": 0.1}) == made.header.base.recipe
    assert trainer.reused[trainer.calls[-1]][0] == "alpha-0.10-beta-0.10-seed-0"  # whose teacher serves all


@pytest.mark.parametrize("call", [1, 7])
def test_killed_and_gone_on_with_is_the_same_search(weights, whole, call):
    made, trainer = weights(FakeTrainer(hill, die_at=call))
    with pytest.raises(Killed):
        made.train()
    assert len(trainer.calls) == call
    made, again = weights()
    facts, done = made.train()
    assert done
    assert again.calls[0] == trainer.calls[-1]  # the trial left running is retried first
    assert outcome(facts) == outcome(whole[2])


def test_time_limit_leaves_a_trial_to_be_retried(weights, whole):
    made, trainer = weights(FakeTrainer(hill, stop_at=3))
    assert made.train()[1] is False
    made, again = weights()
    facts, _ = made.train()
    assert again.calls[0] == trainer.calls[-1]
    assert outcome(facts) == outcome(whole[2])
    made, more = weights()
    made.train()
    assert more.calls == []
    assert len(weights(trials=TRIALS + 1)[0].train()[0]["trials"]) == TRIALS + 1


def test_a_retried_trial_keeps_the_epochs_it_had_reported(weights):
    made, _ = weights(FakeTrainer(hill, die_at=2), trials=2)
    with pytest.raises(Killed):
        made.train()
    before = search.open_search(made.folder, made.header.base.recipe)
    trial = search.next_trial(before, 0)
    search._recall(before, trial)
    assert list(before.trials[-1].intermediate_values) == [1]


def test_half_a_line_is_dropped(weights):
    made, _ = weights(trials=2)
    facts, _ = made.train()
    with made.folder.journal.open("ab") as file:
        file.write(b'{"op_code": 4, "wor')
    again, trainer = weights(trials=2)
    assert outcome(again.train()[0]) == outcome(facts)
    assert trainer.calls == []


def test_a_value_is_the_mean_over_seeds_and_only_the_first_is_pruned(weights):
    made, trainer = weights(seeds=(0, 4), trials=2)
    facts, _ = made.train()
    assert trainer.calls[:2] == ["alpha-0.10-beta-0.10-seed-0", "alpha-0.10-beta-0.10-seed-4"]
    first = facts["trials"][0]
    assert first["value"] == pytest.approx(0.8 - 0.04 - 0.01 + 0.002)
    assert {name for name, _ in trainer.epochs_seen if name.endswith("seed-4")} == set()
    row = facts["variants"][0]["grades"]["2"]
    assert set(row["valid_mrr"]["values"]) == {"0", "4"}


def test_every_point_tried_ends_the_search(weights, monkeypatch):
    few = [(2, 2), (0, 1), (3, 3)]
    for module in (points, search):
        monkeypatch.setattr(module, "POINTS", few)
    monkeypatch.setattr(search, "RESAMPLES", 2)
    made, _ = weights(trials=50)
    facts, done = made.train()
    assert done
    assert sorted((t["alpha"], t["beta"]) for t in facts["trials"]) == [(0.0, 0.05), (0.1, 0.1), (0.15, 0.15)]


def test_mistakes(weights, tmp_path):
    with pytest.raises(StudyError, match="no grade 7"):
        weights(grade=7)
    graph = tiny_graph()
    blind = write_graph(tmp_path / "blind", type(graph)(**{**vars(graph), "valid": graph.valid[:0]}))
    with pytest.raises(StudyError, match=r"no validation triples.*valid\.tsv"):
        weights(settings={"dataset": str(blind)})
    weights(trials=1)[0].train()
    with pytest.raises(StudyError, match="another seeds"):
        weights(seeds=(0, 1))
    with pytest.raises(StudyError, match="another grade"):
        weights(grade=4)
    StudyFolder(tmp_path / "out").journal.write_text("[]\n")
    with pytest.raises(StudyError, match=r"search\.journal is damaged"):
        weights()[0].train()
    assert json.loads((tmp_path / "out" / "study.json").read_text())["trials"]
