"""Recipes that come with the package: each loads, fits its encoder, and the paper's are the paper's."""

import math

import pytest
import yaml

from pmd.encoder import load_encoder, resolve_encoder
from pmd.model import even_layers
from pmd.recipe import load_recipe, shipped_recipes
from pmd.stages import plan_stages
from tests.tiny_encoder import write_encoder

DEPTHS = {"all-MiniLM-L6-v2": 6, "bert-base-uncased": 12}
MINILM = {"umls", "wn18rr-small", "kinship", "wn18rr", "fb15k237", "nell995-h100"}
PAPER = {"wn18rr-bert": (50, 5e-5, 5), "fb15k237-bert": (6, 3e-5, 2)}
"""Epochs, learning rate and hops of re-ranking (arXiv 2401.12997, 2203.02167)."""


def test_all_are_there():
    assert set(shipped_recipes()) == MINILM | set(PAPER)


@pytest.mark.parametrize("name", sorted(MINILM | set(PAPER)))
def test_the_plan_fits_the_encoder(name):
    recipe = load_recipe(name, {})
    assert recipe.dataset == name.removesuffix("-bert")
    depths = {"pretrained": DEPTHS[recipe.encoder]}
    for stage in plan_stages(recipe, depths["pretrained"]):
        assert max(stage.layers) < depths[stage.source]
        depths[stage.name] = stage.grade
    assert list(depths)[1:3] == ["teacher", "pre-distilled"]
    assert set(recipe.stage_epochs) <= set(depths)
    assert recipe.mask_rates[-1] == 0.0
    assert list(recipe.mask_rates) == sorted(recipe.mask_rates, reverse=True)


@pytest.mark.parametrize("name", sorted(MINILM | set(PAPER)))
def test_the_first_line_says_what_it_is(name):
    text = shipped_recipes()[name].read_text(encoding="utf-8")
    comment = " ".join(line[2:] for line in text.splitlines() if line.startswith("# "))
    assert text.startswith("# ")
    assert "Two CPU cores" in comment or "two CPU cores" in comment or "GPU" in comment
    assert "minutes" in comment or "hour" in comment


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_settings(name):
    recipe = load_recipe(name, {})
    epochs, lr, hops = PAPER[name]
    assert (recipe.epochs, recipe.stage_epochs, recipe.lr) == (epochs, {}, lr)
    assert recipe.rerank is not None
    assert (recipe.rerank.hops, recipe.rerank.weight) == (hops, 0.05)
    assert (recipe.grades, recipe.mask_rates) == ((12, 9, 6, 3), (0.2, 0.1, 0.05, 0.0))
    assert (recipe.batch_size, recipe.warmup_steps, recipe.weight_decay, recipe.clip_norm) == (512, 400, 1e-4, 10)
    assert (recipe.temperature, recipe.margin, recipe.max_tokens) == (0.05, 0.02, 50)
    assert (recipe.alpha, recipe.beta, recipe.method) == (0.1, 0.1, "pmd")
    assert (recipe.feature_term, recipe.score_form, recipe.taught_by) == ("positions", "cosine", "previous")
    assert (recipe.mask_positions, recipe.mask_schedule, recipe.share_towers) == ("uniform", "fixed", "none")
    assert (recipe.order, recipe.earlier_batches, recipe.candidates) == ("random", 0, "batch")
    assert recipe.self_negatives
    assert (recipe.templates.neighbours, recipe.templates.short_description_words) == (10, 20)
    assert math.isclose(recipe.score_scale, 1 / recipe.temperature)


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_layers(name):
    layers = {stage.name: (stage.source, stage.layers) for stage in plan_stages(load_recipe(name, {}), 12)}
    assert layers == {
        "teacher": ("pretrained", even_layers(12, 12)),
        "pre-distilled": ("pretrained", even_layers(12, 12)),
        "grade-9": ("pretrained", (0, 2, 3, 5, 6, 7, 9, 10, 11)),
        "grade-6": ("pretrained", (1, 3, 5, 7, 9, 11)),
        "grade-3": ("pretrained", (2, 6, 10)),
    }


def test_the_papers_ladder_is_cut_from_a_bert_of_twelve_layers(tmp_path):
    files = resolve_encoder(str(write_encoder(tmp_path / "bert", layers=12, width=16)))
    models = {"pretrained": load_encoder(files, dropout=0.1, temperature=0.05)}
    for stage in plan_stages(load_recipe("wn18rr-bert", {}), models["pretrained"].depth):
        models[stage.name] = models[stage.source].cut(stage.layers)
    assert [model.depth for model in models.values()] == [12, 12, 12, 9, 6, 3]


@pytest.mark.parametrize("name", ["wn18rr", "fb15k237", "nell995-h100", "wn18rr-small"])
def test_batches_that_follow_the_graph_get_their_negatives_back(name):
    recipe = load_recipe(name, {})
    assert (recipe.order, recipe.earlier_batches) == ("graph", "all")


def test_no_recipe_says_a_key_twice():
    """YAML lets the second one win without a word."""
    for path in shipped_recipes().values():
        lines = path.read_text(encoding="utf-8").splitlines()
        keys = [line.partition(":")[0] for line in lines if line[:1].isalpha()]
        assert keys == list(yaml.safe_load(path.read_text(encoding="utf-8"))), path
