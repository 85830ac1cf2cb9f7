"""Every shipped recipe parses, and the plan of the default one is the method's ladder."""

import pytest

from pmd.errors import RecipeError
from pmd.recipe import load_recipe, parse_setting, shipped_recipes
from pmd.stages import objective_of, plan_stages, stage_identities


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_parse(name):
    assert load_recipe(name, {}).grades


def test_the_default_ladder():
    stages = plan_stages(load_recipe("umls", {}), depth=6)
    rows = [(s.name, s.grade, s.mask_rate, s.layers, s.teacher, s.source) for s in stages]
    assert rows == [
        ("teacher", 6, 0.0, (0, 1, 2, 3, 4, 5), None, "pretrained"),
        ("pre-distilled", 6, 0.2, (0, 1, 2, 3, 4, 5), "teacher", "teacher"),
        ("grade-4", 4, 0.1, (0, 2, 3, 5), "pre-distilled", "pre-distilled"),
        ("grade-3", 3, 0.05, (0, 1, 3), "grade-4", "grade-4"),
        ("grade-2", 2, 0.0, (0, 2), "grade-3", "grade-3"),
    ]


def test_layers_from_the_pretrained_encoder():
    stages = plan_stages(load_recipe("umls", {"student_init": "pretrained"}), depth=6)
    assert [(s.source, s.layers) for s in stages[2:4]] == [("pretrained", (0, 2, 3, 5)), ("pretrained", (1, 3, 5))]


def test_the_baseline_is_taught_by_nobody_and_masks_nothing():
    recipe = load_recipe("umls", {"method": "baseline", "grades": (3,), "mask_rates": (0.2,)})
    (stage,) = plan_stages(recipe, depth=6)
    assert (stage.name, stage.teacher, stage.source, stage.mask_rate) == ("grade-3", None, "pretrained", 0.0)
    assert stage.layers == (1, 3, 5)


def test_a_layer_map_of_the_recipe_is_used_and_checked():
    recipe = load_recipe("umls", {"layer_maps": {3: [0, 1, 2]}})
    assert plan_stages(recipe, depth=6)[3].layers == (0, 1, 2)
    for layers in ([0, 1], [0, 1, 4], [2, 1, 0], [-1, 0, 1]):
        with pytest.raises(RecipeError, match=r"grade 3 does not fit a source of 4 layers; use 3 rising numbers"):
            plan_stages(load_recipe("umls", {"layer_maps": {3: layers}}), depth=6)


def test_students_straight_from_the_first_teacher():
    stages = plan_stages(load_recipe("umls", {"taught_by": "teacher"}), depth=6)
    assert {(s.teacher, s.source) for s in stages[1:]} == {("teacher", "teacher")}
    assert [s.layers for s in stages[2:4]] == [(0, 2, 3, 5), (1, 3, 5)]


def test_patient_distillation_compares_inner_layers_with_those_they_came_from():
    stages = {s.name: s for s in plan_stages(load_recipe("umls", {"method": "pkd"}), depth=6)}
    assert {s.mask_rate for s in stages.values()} == {0.0}
    assert (stages["grade-4"].inner, stages["grade-4"].taught_inner) == ((0, 1, 2), (0, 2, 3))
    fresh = {
        s.name: s for s in plan_stages(load_recipe("umls", {"method": "pkd", "student_init": "pretrained"}), 6)
    }
    assert (fresh["grade-3"].inner, fresh["grade-3"].taught_inner) == ((0, 1), (0, 1)), "of the four of grade 4"


def test_students_of_another_encoder_start_from_its_layers():
    recipe = load_recipe("umls", {"student_encoder": "small", "grades": (4, 3), "mask_rates": (0.1, 0.0)})
    stages = plan_stages(recipe, depth=12, student_depth=6)
    assert [(s.name, s.source, s.layers) for s in stages[1:]] == [
        ("grade-4", "pretrained", (0, 2, 3, 5)),
        ("grade-3", "grade-4", (0, 1, 3)),
    ]
    with pytest.raises(RecipeError, match="8 layers cannot be cut from 6"):
        plan_stages(load_recipe("umls", {"grades": (8,), "mask_rates": (0,)}), depth=12, student_depth=6)


@pytest.mark.parametrize(
    ("method", "feature", "beta"),
    [("pmd", "positions", 0.1), ("pmd-no-mgfd", "none", 0.0), ("lkd", "none", 0.0), ("pkd", "patient", 0.1)],
)
def test_what_each_method_compares(method, feature, beta):
    recipe = load_recipe("umls", {"method": method})
    stage = plan_stages(recipe, depth=6)[2]
    objective = objective_of(recipe, stage)
    assert (objective.feature, objective.beta, objective.alpha) == (feature, beta, 0.1)
    assert (stage.mask_rate > 0) == method.startswith("pmd")


def test_identities_tell_what_decides_the_weights():
    def identities(**changes):
        recipe = load_recipe("umls", changes)
        return stage_identities(recipe, plan_stages(recipe, depth=6), {"data": "x"})

    base = identities()
    assert len(set(base.values())) == 5
    students = identities(alpha=0.3)
    assert students["teacher"] == base["teacher"], "the teacher does not depend on how it teaches"
    assert students["pre-distilled"] != base["pre-distilled"]
    other = identities(seed=1)
    assert not set(other.values()) & set(base.values())
    last = identities(mask_rates=(0.2, 0.1, 0.05, 0.3))
    assert [name for name in base if last[name] != base[name]] == ["grade-2"]
    longer = identities(stage_epochs={"teacher": 8, "pre-distilled": 3, "grade-4": 5})
    assert [name for name in base if longer[name] != base[name]] == ["grade-4", "grade-3", "grade-2"]
    assert identities(mask_positions="rarity")["grade-2"] != base["grade-2"], "its teachers are others"


def test_files_and_settings(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("dataset: umls\ngrades: [2]\nmask_rates: [0]\nepochs: 1\nbatch_size: 4\nlr: 0.1\n")
    recipe = load_recipe(str(path), {"lr": 0.2})
    assert (recipe.lr, recipe.batch_size) == (0.2, 4)
    assert parse_setting("grades=[4, 2]") == ("grades", [4, 2])
    path.write_text("- a list")
    with pytest.raises(RecipeError, match="not a mapping"):
        load_recipe(str(path), {})
    path.write_text("a: [")
    with pytest.raises(RecipeError, match="not YAML"):
        load_recipe(str(path), {})


@pytest.mark.parametrize(
    "key", ["lr", "temperature", "weight_decay", "margin", "score_scale", "alpha", "clip_norm"]
)
@pytest.mark.parametrize("text", [".nan", ".inf", "1.0e+39", "-1.0e-40"])
def test_numbers_that_float32_cannot_hold_are_refused(key, text):
    with pytest.raises(RecipeError, match=key):
        load_recipe("umls", dict([parse_setting(f"{key}={text}")]))


def test_a_denormal_learning_rate_is_refused_in_words():
    with pytest.raises(RecipeError, match=r"lr: float32 cannot hold 1e-40; use 1.2e-38 to 3.4e\+38"):
        load_recipe("umls", {"lr": 1e-40})
