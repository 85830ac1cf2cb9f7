"""From ladder.json files to figures: means and spreads over seeds, and paired differences from the reference."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pmd.run import LADDER_SCHEMA, RUN_SCHEMA, RunFolder
from pmd.stages import TEACHER
from pmd.study.folder import StudyFolder, read_run
from pmd.study.variants import Variant

FIGURES: Mapping[str, tuple[str, ...]] = {
    "valid_mrr": ("valid", "mrr"),
    "test_mrr": ("test", "mrr"),
    "test_hits@1": ("test", "hits@1"),
    "test_hits@3": ("test", "hits@3"),
    "test_hits@10": ("test", "hits@10"),
    "mean_rank": ("test", "mean_rank"),
    "test_reranked_mrr": ("test_reranked", "mrr"),
    "train_seconds": ("train_seconds",),
}
"""Names in study.json, and where a stage of ladder.json has them."""
COMPARED = ("valid_mrr", "test_mrr", "test_hits@1", "test_hits@10", "mean_rank")
Spread = dict[str, Any]


def spread(values: Mapping[str, float | None]) -> Spread:
    """mean, sample standard deviation (null below two values) and the values themselves, null where absent."""
    found = [value for value in values.values() if value is not None]
    return {
        "mean": statistics.fmean(found) if found else None,
        "std": statistics.stdev(found) if len(found) > 1 else None,
        "values": dict(values),
    }


def paired(ours: Spread, theirs: Spread) -> Spread:
    """Ours minus theirs, seed by seed: mean, spread and number of seeds that both have."""
    pairs = [(value, theirs["values"].get(seed)) for seed, value in ours["values"].items()]
    gaps = [mine - other for mine, other in pairs if mine is not None and other is not None]
    return {
        "mean": statistics.fmean(gaps) if gaps else None,
        "std": statistics.stdev(gaps) if len(gaps) > 1 else None,
        "seeds": len(gaps),
    }


def collect(
    variants: Sequence[Variant], seeds: Sequence[int], folder: StudyFolder, reference: str | None
) -> list[dict[str, Any]]:
    """A row for each variant: its figures by grade, and their paired differences from the reference's.

    Grades are keyed by their number of layers, deepest first; the teacher stands under `teacher`.
    Raises RunError if a ladder.json is damaged.
    """
    rows = [_row(variant, seeds, folder) for variant in variants]
    against: Mapping[str, Any] = next((row["grades"] for row in rows if row["name"] == reference), {})
    for row in rows:
        for grade, facts in row["grades"].items():
            other = against.get(grade)
            if other is None or row["name"] == reference or grade == TEACHER:
                facts["difference"] = None
            else:
                facts["difference"] = {key: paired(facts[key], other[key]) for key in COMPARED}
    return rows


def runs_made(variants: Sequence[Variant], seeds: Sequence[int], folder: StudyFolder) -> list[dict[str, Any]]:
    """The runs that were begun, with their finished stages and commit. Raises RunError if one is damaged."""
    found = []
    for variant in variants:
        for seed in seeds:
            root = folder.run(variant.name, seed)
            facts = read_run(root, RunFolder(root).run.name, RUN_SCHEMA)
            if facts is not None:
                stages = [stage["stage"] for stage in _stages(root)]
                found.append({"run": root.name, "variant": variant.name, "seed": seed, "stages": stages})
                found[-1] |= {key: facts.get(key) for key in ("commit", "versions", "machine")}
    return found


def in_common(runs: Iterable[Mapping[str, Any]], key: str) -> Any:
    """What all runs say of `key`, None where they differ or there is none."""
    values = [run.get(key) for run in runs]
    return values[0] if values and all(value == values[0] for value in values) else None


def _row(variant: Variant, seeds: Sequence[int], folder: StudyFolder) -> dict[str, Any]:
    by_seed = {str(seed): _by_grade(_stages(folder.run(variant.name, seed))) for seed in seeds}
    grades = sorted({grade for stages in by_seed.values() for grade in stages}, key=_deepest_first)
    return {
        "name": variant.name,
        "why": variant.why,
        "overrides": dict(variant.overrides),
        "grades": {grade: _figures(grade, by_seed) for grade in grades},
    }


def _figures(grade: str, by_seed: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """One grade's figures over the seeds, with what does not depend on the seed."""
    stages = {seed: found.get(grade) for seed, found in by_seed.items()}
    one = next(stage for stage in stages.values() if stage is not None)
    facts: dict[str, Any] = {key: one.get(key) for key in ("stage", "parameters", "mask_rate", "epochs")}
    for name, path in FIGURES.items():
        facts[name] = spread({seed: _value(stage, path) for seed, stage in stages.items()})
    return facts


def _value(stage: Mapping[str, Any] | None, path: Sequence[str]) -> float | None:
    value: Any = stage
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, int | float) else None


def _stages(run: Any) -> list[dict[str, Any]]:
    ladder = read_run(run, RunFolder(run).ladder.name, LADDER_SCHEMA)
    return list(ladder["stages"]) if ladder else []


def _by_grade(stages: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {TEACHER if stage["stage"] == TEACHER else str(stage["grade"]): stage for stage in stages}


def _deepest_first(grade: str) -> tuple[bool, int]:
    return (grade != TEACHER, 0 if grade == TEACHER else -int(grade))
