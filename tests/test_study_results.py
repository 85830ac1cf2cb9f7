"""Figures of a study: means, spreads and paired differences by hand, and the files that show them."""

import json
import xml.etree.ElementTree as ElementTree

import pytest

from pmd.errors import RunError
from pmd.recipe import load_recipe
from pmd.study.folder import StudyFolder
from pmd.study.plots import draw
from pmd.study.results import collect, paired, spread
from pmd.study.table import markdown, with_spread
from pmd.study.variants import STUDIES, Variant
from tests.study_fakes import write_run
from tests.tiny_encoder import write_recipe

VARIANTS = [Variant("ours", {"alpha": 0.2}, "the one"), Variant("theirs", {"method": "baseline"}, "the other")]


@pytest.fixture
def folder(tmp_path):
    """ours: seeds 0 and 1, seed 2 without its last grade; theirs: seeds 0 and 1; nothing of seed 3."""
    source = str(write_recipe(tmp_path / "toy.yaml", tmp_path / "graph", tmp_path / "encoder"))
    scores = {
        ("ours", 0): {"teacher": 0.9, "pre-distilled": 0.8, "grade-2": 0.70},
        ("ours", 1): {"teacher": 0.9, "pre-distilled": 0.8, "grade-2": 0.74},
        ("ours", 2): {"teacher": 0.9, "pre-distilled": 0.8},
        ("theirs", 0): {"grade-4": 0.6, "grade-2": 0.60},
        ("theirs", 1): {"grade-4": 0.6, "grade-2": 0.66},
    }
    study = StudyFolder(tmp_path / "study")
    overrides = {variant.name: variant.overrides for variant in VARIANTS}
    for (name, seed), values in scores.items():
        recipe = load_recipe(source, {**overrides[name], "seed": seed})
        write_run(study.run(name, seed), recipe, values)
    return study


def study_of(rows, **changes):
    facts = {"title": "A title", "dataset": "a-graph", "seeds": [0, 1, 2, 3], "reference": "ours", "variants": rows}
    made = {"encoder": {"name": "an-encoder"}, "recipe_source": "toy", "machine": None, "commit": None}
    return facts | made | changes


def test_spread_is_the_sample_deviation_and_unknown_for_one_seed():
    assert spread({"0": 1.0, "1": 3.0, "2": None}) == {
        "mean": 2.0,
        "std": pytest.approx(2**0.5),
        "values": {"0": 1.0, "1": 3.0, "2": None},
    }
    assert spread({"0": 1.0})["std"] is None
    assert spread({"0": None}) == {"mean": None, "std": None, "values": {"0": None}}


def test_differences_are_taken_seed_by_seed():
    ours, theirs = spread({"0": 0.7, "1": 0.9, "2": 0.1}), spread({"0": 0.6, "1": 0.6, "2": None})
    gap = paired(ours, theirs)
    assert gap == {"mean": pytest.approx(0.2), "std": pytest.approx(0.02**0.5), "seeds": 2}
    assert paired(ours, spread({"0": None})) == {"mean": None, "std": None, "seeds": 0}


def test_figures_by_grade(folder):
    ours, theirs = collect(VARIANTS, [0, 1, 2, 3], folder, "ours")
    assert list(ours["grades"]) == ["teacher", "4", "2"]
    assert list(theirs["grades"]) == ["4", "2"]
    two = ours["grades"]["2"]
    assert two["valid_mrr"]["mean"] == pytest.approx(0.72)
    assert two["valid_mrr"]["values"] == {"0": 0.70, "1": 0.74, "2": None, "3": None}
    assert two["test_mrr"]["mean"] == pytest.approx(0.71)
    assert two["test_hits@10"]["values"]["0"] == pytest.approx(1.0)
    assert two["mean_rank"]["values"]["0"] == pytest.approx(1 / 0.7)
    assert two["train_seconds"]["mean"] == 1.5
    assert two["test_reranked_mrr"]["mean"] is None
    assert (two["difference"], theirs["grades"]["2"]["difference"]["valid_mrr"]["seeds"]) == (None, 2)
    assert theirs["grades"]["2"]["difference"]["valid_mrr"]["mean"] == pytest.approx(-0.09)
    assert theirs["grades"]["4"]["difference"]["valid_mrr"]["mean"] == pytest.approx(-0.2)
    json.dumps([ours, theirs], allow_nan=False)


def test_a_damaged_run_is_named_with_the_cure(folder):
    broken = folder.run("ours", 1) / "ladder.json"
    broken.write_text("{", encoding="utf-8")
    with pytest.raises(RunError, match=r"ours-seed-1.* remove"):
        collect(VARIANTS, [0, 1], folder, "ours")


def test_table_has_a_row_for_each_grade(folder):
    page = markdown(study_of(collect(VARIANTS, [0, 1, 2, 3], folder, "ours")))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    assert [row[:2] for row in rows[2:]] == [
        ["ours", "teacher"],
        ["ours", "4"],
        ["ours", "2"],
        ["theirs", "4"],
        ["theirs", "2"],
    ]
    assert rows[4][3] == "0.7200 ± 0.0283"
    assert rows[6][-3] == "-0.0900 ± 0.0141"
    assert rows[4][-1] == "2/4"
    assert len({len(row) for row in rows}) == 1
    assert with_spread(spread({"0": 0.5})) == "0.5000"
    assert with_spread(spread({"0": None})) == "–"
    assert "Nothing is trained" in markdown(study_of([]))


def trial(alpha, beta, value, state="complete"):
    return {"variant": f"{alpha}-{beta}", "alpha": alpha, "beta": beta, "value": value, "state": state, "epochs": 2}


def searched():
    trials = [
        trial(0.1, 0.1, 0.5),
        trial(0.2, 0.3, 0.6),
        trial(0.5, 0.45, 0.2, "pruned"),
        trial(0.0, 0.0, None, "pruned"),
    ]
    best = {"alpha": 0.2, "beta": 0.3, "value": 0.6, "variant": "0.2-0.3"}
    return study_of([], trials=trials, best=best, grade="2", mask_rate=0.1)


def curves(folder):
    ours, _ = collect(VARIANTS, [0, 1, 2, 3], folder, None)
    return study_of(
        [{**ours, "name": name} for name in ("falling", "fixed-10", "student-alone-0", "student-alone-50")]
    )


@pytest.mark.parametrize("kind", ["panels", "curves", "search", "empty", "many grades"])
def test_plots_are_titled_repeatable_pictures(folder, kind):
    rows = collect(VARIANTS, [0, 1, 2, 3], folder, "ours")
    many = [{**rows[0], "grades": {str(grade): rows[0]["grades"]["2"] for grade in range(6, 0, -1)}}]
    studies = {"panels": study_of(rows), "curves": curves(folder), "search": searched(), "empty": study_of([])}
    study = studies.get(kind) or study_of(many)
    first = draw(study)
    assert kind not in {"panels", "search"} or first == draw(study)
    ElementTree.fromstring(first["svg"])
    assert first["png"].startswith(b"\x89PNG")
    assert len(first["png"]) > 4000


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_can_be_drawn_whatever_its_variants_are_called(folder, name):
    """A variant called student-init-pretrained was once taken for a student at that mask rate."""
    row = collect(VARIANTS, [0, 1, 2, 3], folder, None)[0]
    recipe = load_recipe("umls", {"grades": [6, 4, 3], "mask_rates": [0.2, 0.1, 0.0]})
    for init in ("teacher", "pretrained"):
        variants = STUDIES[name].variants(recipe.model_copy(update={"student_init": init}), 6)
        rows = [{**row, "name": variant.name} for variant in variants]
        assert draw(study_of(rows, reference=STUDIES[name].reference))["png"].startswith(b"\x89PNG")


def test_search_table_is_best_first_and_marks_what_was_pruned():
    page = markdown(searched())
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")][
        2:
    ]
    assert [row[:3] for row in rows] == [
        ["0.20", "0.30", "0.6000"],
        ["0.10", "0.10", "0.5000"],
        ["0.50", "0.45", "0.2000"],
        ["0.00", "0.00", "–"],
    ]
    assert rows[2][-1] == "pruned"
    assert "α 0.20, β 0.30" in page
