"""The studies as data: on any depth and any recipe every variant is a recipe that can be planned."""

from pathlib import Path

import pytest

from pmd.errors import RecipeError
from pmd.recipe import load_recipe
from pmd.study.folder import StudyError, StudyFolder
from pmd.study.outline import Base, run_of, shared_stages
from pmd.study.points import POINTS, judged_student, own_point, variant_at
from pmd.study.variants import ALONE, STUDIES, Variant, rate_at
from tests.tiny_encoder import write_recipe

SHAPES = {
    "six": (6, {"grades": [6, 4, 3, 2], "mask_rates": [0.2, 0.1, 0.05, 0.0]}),
    "twelve": (12, {"grades": [12, 9, 6, 3], "mask_rates": [0.2, 0.1, 0.05, 0.0]}),
    "no pre-distillation": (6, {"grades": [4, 2], "mask_rates": [0.2, 0.0]}),
    "one student": (6, {"grades": [3], "mask_rates": [0.1]}),
}


@pytest.fixture
def make_base(tmp_path):
    def make(depth, **changes):
        source = write_recipe(tmp_path / "toy.yaml", tmp_path / "a-graph", tmp_path / "encoder", **changes)
        recipe = load_recipe(str(source), {})
        return Base(str(source), {}, recipe, {"name": "e", "sha256": "0"}, depth, None)

    return make


def runs_of(base, variants, seed=0):
    return {variant.name: one_run(base, variant, seed) for variant in variants}


def one_run(base, variant, seed=0):
    return run_of(base, variant, seed, StudyFolder(Path("nowhere")))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("study", STUDIES)
def test_every_variant_can_be_planned(make_base, study, shape):
    depth, ladder = SHAPES[shape]
    base = make_base(depth, **ladder)
    variants = STUDIES[study].variants(base.recipe, depth)
    names = [variant.name for variant in variants]
    assert len(set(names)) == len(names)
    assert STUDIES[study].reference in names
    runs = runs_of(base, variants, seed=3)
    assert {run.recipe.seed for run in runs.values()} == {3}
    assert len({run.recipe.model_dump_json() for run in runs.values()}) >= len(names) - 1  # twins: schedules of one


def test_methods_have_the_same_epochs_for_the_same_depth(make_base):
    base = make_base(4, grades=[4, 2], epochs=6, stage_epochs={"pre-distilled": 3, "grade-2": 5, "teacher": 8})
    runs = runs_of(base, STUDIES["methods"].variants(base.recipe, 4))
    assert list(runs) == ["baseline", "lkd", "pkd", "pmd-no-mgfd", "pmd"]
    epochs = {
        name: {s.grade: run.recipe.epochs_of(s.name) for s in run.stages if s.name != "teacher"}
        for name, run in runs.items()
    }
    assert all(value == {4: 3, 2: 5} for value in epochs.values()), epochs


def test_ablation_turns_each_choice_the_other_way(make_base):
    base = make_base(4, student_init="pretrained", feature_term="pooled")
    overrides = {v.name: v.overrides for v in STUDIES["ablation"].variants(base.recipe, 4)}
    assert overrides["student-init-teacher"]["student_init"] == "teacher"
    assert overrides["feature-term-positions"]["feature_term"] == "positions"
    assert overrides["score-form-logit"]["score_form"] == "logit"
    assert overrides["score-scale-1"]["score_scale"] == 1.0
    assert overrides["no-pre-distillation"]["grades"] == (2,)
    assert overrides["no-score-term"]["alpha"] == 0
    assert "no-pre-distillation" not in {
        v.name for v in STUDIES["ablation"].variants(make_base(4, grades=[2], mask_rates=[0.1]).recipe, 4)
    }


def test_mask_rates_repeat_both_figures(make_base):
    base = make_base(6, **SHAPES["six"][1])
    variants = {v.name: v.overrides for v in STUDIES["mask-rates"].variants(base.recipe, 6)}
    assert variants["falling-steep"]["mask_rates"] == (0.3, 0.15, 0.1, 0.0)
    assert variants["fixed-20"]["mask_rates"] == (0.2,) * 4
    alone = {name: rates["mask_rates"] for name, rates in variants.items() if name.startswith(ALONE)}
    assert list(alone.values()) == [(0.0,), (0.1,), (0.2,), (0.3,), (0.4,), (0.5,)]


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        (12, ["recipe", "3", "12-11-10-9-8-7-6-5-4-3", "10-8-6-4"]),
        (6, ["recipe", "2", "6-5-4-3-2", "6-5-3-2", "5-4-3-2"]),
    ],
)
def test_ladders_follow_the_depth_and_come_once(make_base, depth, expected):
    base = make_base(depth, **SHAPES["twelve" if depth == 12 else "six"][1])
    assert [v.name for v in STUDIES["layers"].variants(base.recipe, depth)] == expected


def test_rates_of_other_depths_lie_between_the_recipes(make_base):
    recipe = make_base(12, **SHAPES["twelve"][1]).recipe
    assert [rate_at(recipe, grade) for grade in (12, 9, 3, 1)] == [0.2, 0.1, 0.0, 0.0]
    assert rate_at(recipe, 10) == pytest.approx(0.1333)


def test_a_layer_map_goes_where_its_source_has_another_depth(make_base):
    """{2: [0, 2]} counts the layers of a 3-layer source; straight from the teacher it would mean others."""
    base = make_base(4, grades=[4, 3, 2], mask_rates=[0.2, 0.1, 0], layer_maps={3: [0, 1, 3], 2: [0, 2]})
    runs = runs_of(
        base, [*STUDIES["layers"].variants(base.recipe, 4), *STUDIES["ablation"].variants(base.recipe, 4)]
    )
    assert runs["recipe"].recipe.layer_maps == {3: (0, 1, 3), 2: (0, 2)}
    assert runs["2"].recipe.layer_maps == {}
    assert runs["no-progression"].recipe.layer_maps == {3: (0, 1, 3)}
    assert runs["no-pre-distillation"].recipe.layer_maps == {3: (0, 1, 3), 2: (0, 2)}


def test_what_is_the_same_is_planned_once(make_base):
    base = make_base(4, grades=[4, 2], mask_rates=[0.2, 0.1])
    runs = runs_of(base, STUDIES["mask-rates"].variants(base.recipe, 4))
    shared = shared_stages(runs.values())
    assert shared["student-alone-20-seed-0", "pre-distilled"] == "falling-seed-0"
    assert ("student-alone-50-seed-0", "pre-distilled") not in shared
    assert sum(stage == "teacher" for _, stage in shared) == len(runs) - 1
    other = runs_of(base, STUDIES["mask-rates"].variants(base.recipe, 4), seed=1)
    assert not any("seed-0" in owner for owner in shared_stages(other.values()).values())


def test_the_judged_student_is_one_that_is_masked(make_base):
    recipe = make_base(6, **SHAPES["six"][1]).recipe
    last, third = judged_student(recipe, None), judged_student(recipe, 3)
    assert (last.grade, last.mask_rate) == (2, 0.05)  # the recipe does not mask grade 2: beta would mean nothing
    assert (third.grade, third.mask_rate) == (3, 0.05)
    with pytest.raises(StudyError, match=r"no grade 5.*6, 4, 3, 2"):
        judged_student(recipe, 5)
    with pytest.raises(StudyError, match="every mask rate"):
        judged_student(make_base(6, grades=[3], mask_rates=[0.0]).recipe, None)


def test_the_grid_leaves_a_task_loss(make_base):
    assert len(POINTS) == 120
    base = make_base(4, alpha=0.15, beta=0.3)
    judged = judged_student(base.recipe, None)
    for point in POINTS:
        recipe = one_run(base, variant_at(judged, point)).recipe
        assert recipe.alpha + recipe.beta < 1
    assert variant_at(judged, own_point(base.recipe)).name == "alpha-0.15-beta-0.30"
    assert own_point(make_base(4, alpha=0.12).recipe) is None
    assert own_point(make_base(4, alpha=0.6).recipe) is None


def test_a_variant_that_does_not_fit_is_named(make_base):
    base = make_base(4)
    with pytest.raises(RecipeError, match=r"variant deep: .*9 layers"):
        one_run(base, Variant("deep", {"grades": (9,), "mask_rates": (0.1,)}, ""))
