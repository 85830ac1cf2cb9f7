"""Every shipped recipe parses, and the plan of the default one is the method's ladder."""

import pytest

from pmd.errors import RecipeError
from pmd.ladder import plan_stages
from pmd.recipe import load_recipe, parse_setting, shipped_recipes


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
