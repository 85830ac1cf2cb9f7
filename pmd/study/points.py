"""The grid of a search for weights, and the one student that is trained at each of its points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, FloatDistribution

from pmd.recipe import Recipe
from pmd.study.folder import StudyError
from pmd.study.variants import Variant

STEP, STEPS = 0.05, 10
SPACE: dict[str, BaseDistribution] = {
    name: FloatDistribution(0.0, STEP * STEPS, step=STEP) for name in ("alpha", "beta")
}
Point = tuple[int, int]
"""alpha and beta, in steps."""
POINTS = [(a, b) for a in range(STEPS + 1) for b in range(STEPS + 1) if (a + b) * STEP < 1 - STEP / 2]
"""Every pair that leaves a task loss."""


@dataclass(frozen=True)
class Judged:
    """The student that every trial trains."""

    grade: int
    mask_rate: float

    @property
    def overrides(self) -> dict[str, Any]:
        """Recipe keys of the student alone."""
        return {"method": "pmd", "grades": (self.grade,), "mask_rates": (self.mask_rate,)}


def judged_student(recipe: Recipe, grade: int | None) -> Judged:
    """The grade asked for, or the recipe's last.

    At mask rate 0 there is no feature term and beta means nothing, so a grade that the recipe does not mask is
    judged at the recipe's lowest rate above 0. Raises StudyError if the recipe lacks the grade, or masks nothing.
    """
    rates = dict(zip(recipe.grades, recipe.mask_rates, strict=True))
    wanted = recipe.grades[-1] if grade is None else grade
    if wanted not in rates:
        raise StudyError(f"no grade {wanted} in the recipe; it has {', '.join(map(str, recipe.grades))}")
    masked = [rate for rate in recipe.mask_rates if rate > 0]
    if not masked:
        raise StudyError("every mask rate of the recipe is 0, so that beta means nothing; set mask_rates")
    return Judged(wanted, rates[wanted] or min(masked))


def variant_at(judged: Judged, point: Point) -> Variant:
    """The student at one pair of weights."""
    alpha, beta = (round(place * STEP, 2) for place in point)
    name = f"alpha-{alpha:.2f}-beta-{beta:.2f}"
    return Variant(name, {**judged.overrides, "alpha": alpha, "beta": beta}, f"α {alpha:g}, β {beta:g}")


def own_point(recipe: Recipe) -> Point | None:
    """The recipe's own weights as a point of the search, None where they are between or beyond its steps."""
    place = recipe.alpha / STEP, recipe.beta / STEP
    near = round(place[0]), round(place[1])
    return near if near in POINTS and np.allclose(place, near, atol=1e-6) else None


def point_of(params: dict[str, Any]) -> Point:
    """The point of a trial's parameters; (-20, -20) if it has none yet."""
    return round(params.get("alpha", -1) / STEP), round(params.get("beta", -1) / STEP)


def params_of(point: Point) -> dict[str, float]:
    """The parameters of a point."""
    return {"alpha": point[0] * STEP, "beta": point[1] * STEP}
