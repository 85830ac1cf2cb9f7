"""The stages of a ladder, planned before anything trains: which layers of what, taught by whom, by which losses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pmd.errors import RecipeError
from pmd.learner import FeatureTerm, Objective
from pmd.model import even_layers
from pmd.recipe import Recipe

TEACHER, PRE_DISTILLED, PRETRAINED = "teacher", "pre-distilled", "pretrained"
MASKS = ("pmd", "pmd-no-mgfd")  # the methods that mask their texts
LOOP_KEYS = (  # of a recipe: they decide every stage's weights
    *("batch_size", "candidates", "self_negatives", "answers_per_query", "order", "earlier_batches"),
    *("lr", "weight_decay", "clip_norm", "warmup_steps", "temperature", "margin", "dropout", "seed"),
    *("share_towers", "chunk_tokens", "precision", "compile"),
)
TEACHING_KEYS = ("mask_positions", "mask_schedule")


@dataclass(frozen=True)
class Stage:
    """One rung: what is trained, from which layers of what, taught by whom."""

    number: int
    name: str
    grade: int
    mask_rate: float
    layers: tuple[int, ...]
    """Layers kept of the source model."""
    teacher: str | None
    """The stage that teaches this one; None trains on the task loss alone."""
    source: str
    """The stage the layers come from, or `pretrained`."""
    inner: tuple[int, ...] = ()
    """The student's inner layers that are compared with the teacher's (method pkd) …"""
    taught_inner: tuple[int, ...] = ()
    """… and the teacher's layers that they are compared with."""


def plan_stages(recipe: Recipe, depth: int, student_depth: int | None = None) -> list[Stage]:
    """The stages of a recipe for an encoder of `depth` layers, students being cut from one of `student_depth`.

    student_depth: None where students are cut from the teacher's encoder. Raises RecipeError if a grade or a layer
    map does not fit.
    """
    alone = recipe.method == "baseline"
    stages = [] if alone else [Stage(0, TEACHER, depth, 0.0, tuple(range(depth)), None, PRETRAINED)]
    for position, (grade, rate) in enumerate(zip(recipe.grades, recipe.mask_rates, strict=True)):
        teacher = None if alone else stages[0 if recipe.taught_by == "teacher" else -1]
        source = teacher if recipe.student_init == "teacher" else None
        if student_depth is not None and teacher is not None and teacher.name == TEACHER:
            source = None  # the first teacher's layers are of another width
        source_depth = source.grade if source else (student_depth or depth)
        layers = _layer_map(recipe, grade, source_depth)
        inner, taught_inner = _inner_layers(recipe, layers, teacher, source)
        stages.append(
            Stage(
                number=1 + position,
                name=PRE_DISTILLED if grade == depth and not alone and student_depth is None else f"grade-{grade}",
                grade=grade,
                mask_rate=rate if recipe.method in MASKS else 0.0,
                layers=layers,
                teacher=teacher.name if teacher else None,
                source=source.name if source else PRETRAINED,
                inner=inner,
                taught_inner=taught_inner,
            )
        )
    return stages


def _layer_map(recipe: Recipe, grade: int, source_depth: int) -> tuple[int, ...]:
    """The layers a grade keeps: the recipe's map, checked against the source's depth, or evenly spaced ones."""
    given = recipe.layer_maps.get(grade)
    if given is None:
        return even_layers(source_depth, grade)
    if len(given) != grade or list(given) != sorted(set(given)) or not 0 <= given[0] <= given[-1] < source_depth:
        raise RecipeError(
            f"layer map {list(given)} of grade {grade} does not fit a source of {source_depth} layers; "
            f"use {grade} rising numbers from 0 to {source_depth - 1}"
        )
    return given


def _inner_layers(
    recipe: Recipe, layers: tuple[int, ...], teacher: Stage | None, source: Stage | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Which layers patient distillation compares: each but the last, with the teacher's layer that it came from.

    A student whose layers come from elsewhere is compared with evenly spaced ones (arXiv 1908.09355, "PKD-skip").
    """
    if recipe.method != "pkd" or teacher is None:
        return (), ()
    inner = tuple(range(len(layers) - 1))
    if source is teacher:
        return inner, layers[:-1]
    depth = max(teacher.grade, len(layers))
    return inner, tuple(min(layer, teacher.grade - 1) for layer in even_layers(depth, len(layers))[:-1])


def pretrained_layers(stages: Sequence[Stage]) -> dict[str, tuple[int, ...]]:
    """Which layers of its pretrained encoder each stage starts from, by stage name, whatever was cut in between."""
    kept: dict[str, tuple[int, ...]] = {}
    for stage in stages:
        source = kept.get(stage.source)
        kept[stage.name] = tuple(source[layer] for layer in stage.layers) if source else stage.layers
    return kept


def objective_of(recipe: Recipe, stage: Stage) -> Objective:
    """The losses of a stage."""
    features: Mapping[str, FeatureTerm] = {"pmd": recipe.feature_term, "pkd": "patient"}
    feature = features.get(recipe.method, "none")
    if feature == "patient" and not stage.inner:
        feature = "none"  # one layer has no inner ones
    return Objective(
        alpha=recipe.alpha,
        beta=recipe.beta if feature != "none" else 0.0,
        margin=recipe.margin,
        score_form=recipe.score_form,
        score_scale=recipe.score_scale,
        feature=feature,
        inner=stage.inner,
    )


def stage_identities(recipe: Recipe, stages: Sequence[Stage], origin: Mapping[str, Any]) -> dict[str, str]:
    """Hex sha256 of everything that decides each stage's weights, by stage name.

    origin: what is the same for all stages: hashes of the data and of the encoders, the device. Two stages with the
    same identity end with the same weights, so that one need not be trained twice.
    """
    settings = recipe.model_dump(mode="json")
    identities: dict[str, str] = {}
    for stage in stages:
        facts = {
            "origin": dict(origin),
            "loop": {key: settings[key] for key in LOOP_KEYS},
            "stage": asdict(stage) | {"epochs": recipe.epochs_of(stage.name)},
            "source": identities.get(stage.source, stage.source),
        }
        if stage.teacher:
            facts["teacher"] = identities[stage.teacher]
            facts["objective"] = asdict(objective_of(recipe, stage))
            facts["teaching"] = {key: settings[key] for key in TEACHING_KEYS} if stage.mask_rate else {}
        identities[stage.name] = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return identities
