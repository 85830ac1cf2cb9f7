"""A study as a Markdown table: a row for each variant and grade, means with their spread over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

COLUMNS = {
    "valid MRR": "valid_mrr",
    "test MRR": "test_mrr",
    "Hits@1": "test_hits@1",
    "Hits@10": "test_hits@10",
    "mean rank": "mean_rank",
}
DIGITS = {"mean_rank": 2, "train_seconds": 0}
UNKNOWN = "–"


def markdown(study: Mapping[str, Any]) -> str:
    """The study's page: title, what it was made with, the table, and how to read it."""
    body = _trials(study) if "trials" in study else _grades(study)
    return "\n".join([f"# {study['title']}: {study['dataset']}", "", _made_with(study), "", *body]) + "\n"


def with_spread(value: Mapping[str, Any], digits: int = 4, *, signed: bool = False) -> str:
    """`0.8236 ± 0.0041`, without the second part for one seed; a dash for nothing."""
    mean, std = value["mean"], value["std"]
    if mean is None:
        return UNKNOWN
    text = f"{mean:{'+' if signed else ''}.{digits}f}"
    return text if std is None else f"{text} ± {std:.{digits}f}"


def _made_with(study: Mapping[str, Any]) -> str:
    seeds = ", ".join(str(seed) for seed in study["seeds"])
    machine = study["machine"] or {}
    where = machine.get("gpu") or machine.get("processor") or "several machines or none yet"
    commit = (study["commit"] or "unknown")[:12]
    encoder = study["encoder"]["name"]
    return f"Recipe {study['recipe_source']}, encoder {encoder}, seeds {seeds}; {where}; commit {commit}."


def _grades(study: Mapping[str, Any]) -> list[str]:
    difference = f"test MRR less {study['reference']}'s"
    head = ["variant", "grade", "mask", *COLUMNS, difference, "seconds", "seeds"]
    rows = [
        _grade_row(variant, grade, facts, len(study["seeds"]))
        for variant in study["variants"]
        for grade, facts in variant["grades"].items()
    ]
    if not rows:
        return ["Nothing is trained yet."]
    return [*_lines(head, rows), "", *_meanings(study["variants"]), "", *READING]


READING = (
    "Figures are filtered, realistic ranks over all entities, both sides; ± is the sample standard deviation over",
    "seeds. The difference is taken seed by seed. Seconds are the training time of the stage alone.",
)


def _grade_row(variant: Mapping[str, Any], grade: str, facts: Mapping[str, Any], seeds: int) -> list[str]:
    figures = [with_spread(facts[key], DIGITS.get(key, 4)) for key in COLUMNS.values()]
    difference = facts["difference"]
    values = facts["valid_mrr"]["values"], facts["test_mrr"]["values"], facts["train_seconds"]["values"]
    made = sum(any(part[seed] is not None for part in values) for seed in values[0])
    return [
        variant["name"],
        grade,
        UNKNOWN if facts["mask_rate"] is None else f"{facts['mask_rate']:.0%}",
        *figures,
        with_spread(difference["test_mrr"], signed=True) if difference else UNKNOWN,
        with_spread(facts["train_seconds"], 0),
        f"{made}/{seeds}",
    ]


def _trials(study: Mapping[str, Any]) -> list[str]:
    head = ["α (score)", "β (feature)", "valid MRR", "test MRR", "epochs", "state"]
    grades = {variant["name"]: variant["grades"].get(study["grade"]) for variant in study["variants"]}
    ordered = sorted(study["trials"], key=lambda trial: -(trial["value"] if trial["value"] is not None else -1.0))
    rows = [_trial_row(trial, grades.get(trial["variant"])) for trial in ordered]
    if not rows:
        return ["No trial has ended yet."]
    return [*_lines(head, rows), "", _best(study), "", *SEARCH_READING]


SEARCH_READING = (
    "A pruned trial was stopped because its valid MRR after an epoch was below the median of the others; its value",
    "is the best that it had reached. The search sees the validation split alone; test figures are for the record.",
)


def _trial_row(trial: Mapping[str, Any], facts: Mapping[str, Any] | None) -> list[str]:
    value = UNKNOWN if trial["value"] is None else f"{trial['value']:.4f}"
    valid, test = (with_spread(facts[key]) for key in ("valid_mrr", "test_mrr")) if facts else (value, UNKNOWN)
    return [f"{trial['alpha']:.2f}", f"{trial['beta']:.2f}", valid, test, str(trial["epochs"]), trial["state"]]


def _best(study: Mapping[str, Any]) -> str:
    best = study["best"]
    if best is None:
        return "No trial is complete yet."
    return (
        f"Best for the student of {study['grade']} layers, mask {study['mask_rate']:.0%}: "
        f"α {best['alpha']:.2f}, β {best['beta']:.2f}, valid MRR {best['value']:.4f}; best.yaml is the recipe."
    )


def _meanings(variants: Iterable[Mapping[str, Any]]) -> list[str]:
    return [f"- **{variant['name']}**: {variant['why']}" for variant in variants if variant["grades"]]


def _lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table whose columns also line up in a terminal."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return [line(head), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *(line(row) for row in rows)]
