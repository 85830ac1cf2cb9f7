"""`pmd-study`: the paper's tables and the open questions, over seeds, on any dataset."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from pmd.serving.command import EXIT_TIME_LIMIT, HELP, Command, NumberRange, emit, show_progress
from pmd.serving.extras import require

STUDIES = ("methods", "ablation", "mask-rates", "masking", "layers", "weights")
TRIALS = 30
EXAMPLES = """\b
Examples:
  pmd-study methods                                   the paper's Table 3 on UMLS, seeds 0, 1, 2
  pmd-study methods --dry-run                         what would be trained, and what is shared
  pmd-study ablation --reuse studies/umls-methods     take over what that study has trained
  pmd-study mask-rates --data my-graph --seeds 0 --only falling --only fixed-20
  pmd-study weights --trials 40 --grade 3             search alpha and beta; ends in best.yaml
  pmd-study layers --time-limit 3600                  stop after an hour; the same command goes on
"""


def _seeds(_context: click.Context, option: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        seeds = tuple(int(part) for part in value.split(","))
    except ValueError as error:
        raise click.BadParameter(
            f"{value!r} is not a comma-separated list of whole numbers", param=option
        ) from error
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise click.BadParameter(f"{value!r} must be different numbers from 0 upwards", param=option)
    return seeds


@click.command(cls=Command, context_settings=HELP, epilog=EXAMPLES)
@click.argument("study", type=click.Choice(STUDIES))
@click.option(
    "--recipe", default="umls", show_default=True, metavar="NAME|FILE.yaml", help="A shipped recipe or a YAML file."
)
@click.option("--data", metavar="DIR", help="Dataset folder (or shipped dataset) in place of the recipe's.")
@click.option(
    "--seeds", callback=_seeds, default="0,1,2", show_default=True, help="Each variant is trained with each."
)
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="Study folder. [default: studies/DATASET-STUDY]"
)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any recipe key, for all variants.")
@click.option("--only", multiple=True, metavar="VARIANT", help="This variant alone (repeatable).")
@click.option(
    "--reuse",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIR",
    help="Another study, whose finished stages are taken over where they are the same (repeatable).",
)
@click.option("--trials", type=click.IntRange(min=1), help=f"weights: how many trials. [default: {TRIALS}]")
@click.option("--grade", type=int, help="weights: the student that is judged. [default: the last grade]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option(
    "--time-limit",
    type=NumberRange(min=0),
    metavar="SECONDS",
    help="Stop then, with all saved (exit code 75); the same command goes on.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be trained; train and write nothing.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def main(study: str, recipe: str, data: str | None, settings: tuple[str, ...], **options: Any) -> int:
    """Train the variants of a study over several seeds, and make its table, plot and JSON.

    What is finished is skipped: after a stop, the same command goes on.
    """
    require("study", "torch", "transformers", "safetensors", "pydantic", "yaml", "rich", "optuna", "matplotlib")
    if study != "weights":
        _only_for_weights(options)
    elif options["only"]:
        raise click.UsageError("--only names variants; the search for weights has none")
    from pmd.recipe import parse_setting
    from pmd.study.conduct import Conduct, Options

    started = time.monotonic()
    overrides = ({"dataset": data} if data else {}) | dict(parse_setting(setting) for setting in settings)
    progress = show_progress(options.pop("quiet"))
    dry_run = options.pop("dry_run")
    options["trials"] = options["trials"] or TRIALS
    conduct = Conduct.prepare(study, recipe, overrides, Options(**options, progress=progress))
    if dry_run:
        text, facts = conduct.describe()
        click.echo(text)
        emit({"schema": "pmd-study-plan/1", **facts})
        return 0
    facts, done = conduct.train()
    click.echo(conduct.folder.table.read_text(encoding="utf-8"))
    emit(_result(facts, conduct.folder.root, done, time.monotonic() - started))
    return 0 if done else EXIT_TIME_LIMIT


def _only_for_weights(options: dict[str, Any]) -> None:
    for key in ("trials", "grade"):
        if options[key] is not None:
            raise click.UsageError(f"--{key} belongs to the study `weights`")


def _result(study: dict[str, Any], out: Path, done: bool, seconds: float) -> dict[str, Any]:
    """The JSON object that ends stdout: where everything is, and the table's means."""
    rows = [
        {"variant": variant["name"], "grade": grade}
        | {key: facts[key]["mean"] for key in ("valid_mrr", "test_mrr", "test_hits@1", "test_hits@10", "mean_rank")}
        for variant in study["variants"]
        for grade, facts in variant["grades"].items()
    ]
    facts = {key: study[key] for key in ("schema", "study", "dataset", "seeds", "reference")}
    best = {"best": study["best"]} if "best" in study else {}
    return facts | {"out": str(out), "done": done, "seconds": round(seconds, 3), "table": rows, **best}


if __name__ == "__main__":
    main()
