"""The studies, as data: from a recipe and the encoder's depth to named variants of the recipe.

Nothing here depends on a dataset. Layers follow from the encoder's depth and mask rates from the recipe, so that a
study runs on a 6-layer and on a 12-layer encoder, whatever the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pmd.recipe import Recipe

Overrides = Mapping[str, Any]


@dataclass(frozen=True)
class Variant:
    """One row of a study: recipe keys laid over the study's recipe."""

    name: str
    overrides: Overrides
    why: str
    """What it shows, in a sentence."""


@dataclass(frozen=True)
class Study:
    """A question: variants of a recipe, each compared with the reference on the same seeds."""

    name: str
    title: str
    reference: str
    variants: Callable[[Recipe, int], list[Variant]]
    """From the study's recipe and the encoder's depth (layers)."""


def methods(recipe: Recipe, depth: int) -> list[Variant]:
    """The paper's Table 3: every method on the recipe's grades, the same epochs for all."""
    # The baseline has no pre-distilled stage: its student of full depth gets that stage's epochs.
    epochs = {**recipe.stage_epochs, f"grade-{depth}": recipe.epochs_of("pre-distilled")}
    return [
        Variant("baseline", {"method": "baseline", "stage_epochs": epochs}, "each grade alone, on the task loss"),
        Variant("lkd", {"method": "lkd"}, "scores only: alpha's term and no mask"),
        Variant("pkd", {"method": "pkd"}, "patient distillation: pooled states of chosen layers, and scores"),
        Variant("pmd-no-mgfd", {"method": "pmd-no-mgfd"}, "the ladder without the masked-feature term"),
        Variant("pmd", {"method": "pmd"}, "the method in full"),
    ]


def ablation(recipe: Recipe, depth: int) -> list[Variant]:
    """The paper's Table 4, and each decision that its text leaves open turned the other way."""
    baseline, *_, no_feature, pmd = methods(recipe, depth)
    variants = [
        pmd,
        baseline,
        no_feature,
        Variant("no-score-term", {"method": "pmd", "alpha": 0.0}, "the masked-feature term alone teaches"),
        Variant(
            "no-progression", {"method": "pmd", "taught_by": "teacher"}, "every grade straight from the teacher"
        ),
    ]
    if recipe.grades[0] == depth and len(recipe.grades) > 1:
        variants.append(
            Variant("no-pre-distillation", _without_first(recipe), "the teacher teaches the first grade")
        )
    return variants + [_turned(recipe, *choice) for choice in CHOICES]


CHOICES = (
    ("student_init", {"pretrained": "layers cut from the pretrained encoder", "teacher": "layers of the teacher"}),
    (
        "feature_term",
        {"pooled": "features pooled and normalised first", "positions": "features at masked positions"},
    ),
    ("score_form", {"logit": "scores compared with margin and temperature", "cosine": "plain cosines compared"}),
    ("score_scale", {1.0: "cosines compared as they are", 20.0: "cosines compared at the scale of the logits"}),
)
"""Recipe keys with two values, and what each value means."""


def mask_rates(recipe: Recipe, depth: int) -> list[Variant]:
    """The paper's Figure 2 (falling or fixed rates over the grades) and Figure 3 (one student, 0 to 50 %)."""
    grades = len(recipe.grades)
    steep = tuple(STEEP[round(position)] for position in np.linspace(0, len(STEEP) - 1, grades))
    variants = [
        _masked("falling", recipe.mask_rates, "rates as the recipe has them"),
        _masked("falling-steep", steep, "30, 15, 10, 0 %: a steeper fall (open question 5)"),
    ]
    variants += [_masked(f"fixed-{rate}", (rate / 100,) * grades, f"{rate} % in every grade") for rate in FIXED]
    return variants + [
        Variant(
            f"{ALONE}{rate}",
            {"method": "pmd", "grades": (depth,), "mask_rates": (rate / 100,)},
            f"the pre-distilled student alone, {rate} % masked",
        )
        for rate in range(0, 51, 10)
    ]


STEEP = (0.3, 0.15, 0.1, 0.0)
FIXED = (10, 20)
ALONE = "student-alone-"
"""Variants so named are one point each of the curve over mask rates."""


def masking(recipe: Recipe, depth: int) -> list[Variant]:
    """Open question 1: which positions are masked and how the rate moves, on the same budget."""
    return [
        Variant(
            f"{positions}-{schedule}",
            {"method": "pmd", "mask_positions": positions, "mask_schedule": schedule},
            f"{what}; {how}",
        )
        for positions, what in POSITIONS.items()
        for schedule, how in SCHEDULES.items()
    ]


POSITIONS = {"uniform": "any token", "salience": "tokens that matter to the teacher", "rarity": "rare tokens"}
SCHEDULES = {
    "fixed": "a constant rate",
    "linear": "a rate falling to 0 over a stage's epochs",
    "gap": "a rate falling with the gap between student and teacher",
}


def layers(recipe: Recipe, depth: int) -> list[Variant]:
    """Open question 5: other ladders to the same depths. Rates follow the recipe's, by depth."""
    last = recipe.grades[-1]
    ladders = {
        recipe.grades: "the recipe's grades",
        (last,): "straight to the last grade",
        tuple(range(depth, last - 1, -1)): "every depth",
        **{_fractions(depth, shares): why for shares, why in FRACTIONS.items()},
    }
    named = dict.fromkeys(ladders)  # a ladder that two rules give is one variant, under the first rule
    return [
        Variant(
            "recipe" if ladder == recipe.grades else "-".join(map(str, ladder)),
            {"method": "pmd", "grades": ladder, "mask_rates": tuple(rate_at(recipe, grade) for grade in ladder)},
            ladders[ladder] if ladder != recipe.grades else "the recipe's grades",
        )
        for ladder in named
    ]


FRACTIONS = {
    (12, 9, 6, 3): "quarters of the depth (12/9/6/3 of 12 layers)",
    (10, 8, 6, 4): "a gentler end without pre-distillation (10/8/6/4 of 12 layers)",
}
"""Twelfths of the encoder's depth."""


def rate_at(recipe: Recipe, grade: int) -> float:
    """The recipe's mask rate for a grade, between its grades by linear interpolation over layers."""
    return round(float(np.interp(grade, recipe.grades[::-1], recipe.mask_rates[::-1])), 4)


STUDIES = {
    study.name: study
    for study in (
        Study("methods", "Methods on the same grades and epochs", "pmd", methods),
        Study("ablation", "What each part of the method is worth", "pmd", ablation),
        Study("mask-rates", "Fixed and falling mask rates", "falling", mask_rates),
        Study("masking", "Where and how much to mask", "uniform-fixed", masking),
        Study("layers", "Ladders of other depths", "recipe", layers),
    )
}
"""The studies whose variants are known beforehand; the search for weights is in `search.py`."""


def _turned(recipe: Recipe, key: str, meanings: Mapping[Any, str]) -> Variant:
    """The recipe with one two-valued key set to the value it does not have."""
    other = next(value for value in meanings if value != getattr(recipe, key))
    shown = f"{other:g}" if isinstance(other, float) else other
    return Variant(f"{key.replace('_', '-')}-{shown}", {"method": "pmd", key: other}, meanings[other])


def _masked(name: str, rates: Sequence[float], why: str) -> Variant:
    return Variant(name, {"method": "pmd", "mask_rates": tuple(rates)}, why)


def _without_first(recipe: Recipe) -> dict[str, Any]:
    return {"method": "pmd", "grades": recipe.grades[1:], "mask_rates": recipe.mask_rates[1:]}


def _fractions(depth: int, twelfths: Sequence[int]) -> tuple[int, ...]:
    """Shares of the depth as whole layers, halves upwards, each depth once."""
    return tuple(dict.fromkeys(max(1, (2 * share * depth + 12) // 24) for share in twelfths))
