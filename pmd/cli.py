"""`pmd-train`: train a ladder from a recipe."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pmd.deadline import Deadline
from pmd.serving.command import (
    EXIT_MISTAKE,
    EXIT_TIME_LIMIT,
    HELP,
    Command,
    NumberRange,
    emit,
    show_progress,
)
from pmd.serving.errors import PmdError
from pmd.serving.exhausted import OutOfMemory, memory_advice
from pmd.serving.extras import require
from pmd.trackers import TRACKERS, require_trackers

if TYPE_CHECKING:
    import torch

    from pmd.graph import KnowledgeGraph
    from pmd.recipe import Recipe

EXAMPLES = """\b
Examples:
  pmd-train                                   the UMLS ladder that comes with the package
  pmd-train --data my-graph --epochs 10       your own graph, by the default recipe
  pmd-train --recipe umls --method baseline --grades 3 --out runs/umls-baseline
  pmd-train --set batch_size=64 --set lr=3e-4 --dry-run
  pmd-train --resume                          go on after a stop
  pmd-train --tracker tensorboard             curves in the run folder; see them with tensorboard --logdir runs
  torchrun --nproc_per_node 2 -m pmd.cli      two processes, on two GPUs where they are
"""


class _TrainCommand(Command):
    """As Command; of several processes only the first speaks of a mistake that all of them make."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """As click's, quiet in the other processes."""
        try:
            return super().make_context(*args, **extra)
        except click.ClickException:
            if _follows():
                sys.exit(EXIT_MISTAKE)
            raise

    def invoke(self, context: click.Context) -> Any:
        """As click's, quiet in the other processes but for what befell one of them alone."""
        try:
            return super().invoke(context)
        except PmdError as error:
            if _follows() and not _of_one_process(error):
                sys.exit(error.exit_code)
            raise


def _follows() -> bool:
    return int(os.environ.get("RANK", "0")) > 0


def _of_one_process(error: PmdError) -> bool:
    from pmd.workers import WorkerError

    return isinstance(error, WorkerError | OutOfMemory)


def _numbers(kind: type) -> Any:
    def parse(_context: click.Context, option: click.Parameter, value: str | None) -> tuple[Any, ...] | None:
        if value is None:
            return None
        try:
            return tuple(kind(part) for part in value.split(","))
        except ValueError as error:
            raise click.BadParameter(f"{value!r} is not a comma-separated list of numbers", param=option) from error

    return parse


@click.command(cls=_TrainCommand, context_settings=HELP, epilog=EXAMPLES)
@click.option(
    "--recipe",
    default="umls",
    show_default=True,
    metavar="NAME|FILE.yaml",
    help="A shipped recipe or a YAML file.",
)
@click.option("--data", metavar="DIR", help="Dataset folder (or shipped dataset) in place of the recipe's.")
@click.option("--encoder", metavar="NAME|DIR", help="Pretrained encoder in place of the recipe's.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Run folder. [default: runs/RECIPE]")
@click.option("--method", metavar="NAME", help="pmd, pmd-no-mgfd, lkd, pkd or baseline.")
@click.option("--grades", callback=_numbers(int), metavar="6,4,3", help="Layers of each student, in order.")
@click.option(
    "--mask-rates", callback=_numbers(float), metavar="0.2,0.1,0", help="Share of tokens masked, one a grade."
)
@click.option("--alpha", type=float, help="Weight of the score term.")
@click.option("--beta", type=float, help="Weight of the masked-feature term.")
@click.option("--epochs", type=int, help="Epochs of every stage.")
@click.option("--batch-size", type=int, help="Distinct queries a step.")
@click.option("--lr", type=float, help="Peak learning rate.")
@click.option("--seed", type=int, help="Seed of order, masks and dropout.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any recipe key; the value is YAML.")
@click.option("--resume", is_flag=True, help="Go on with the run in the run folder.")
@click.option(
    "--time-limit",
    type=NumberRange(min=0),
    metavar="SECONDS",
    help="Stop then, with all saved (exit code 75).",
)
@click.option(
    "--reuse",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIR",
    help="Another run; stages it finished are taken over where they would be the same. May be repeated.",
)
@click.option(
    "--tracker",
    "trackers",
    multiple=True,
    type=click.Choice(TRACKERS),
    help="Curves for an experiment tracker, in files of the run folder; may be repeated.",
)
@click.option("--dry-run", is_flag=True, help="Print the resolved recipe, texts, steps and memory; train nothing.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
@memory_advice(
    "free memory and go on with --resume, or train anew with a smaller batch_size, chunk_tokens or encoder"
)
def main(
    recipe: str,
    out: Path | None,
    device: str,
    settings: tuple[str, ...],
    resume: bool,
    time_limit: float | None,
    trackers: tuple[str, ...],
    reuse: tuple[Path, ...],
    dry_run: bool,
    quiet: bool,
    **options: Any,
) -> int:
    """Train a teacher and distil it into grades with fewer and fewer layers."""
    started, deadline = time.monotonic(), Deadline.after(time_limit)
    require(
        "train", "torch", "transformers", "safetensors", "pydantic", "yaml", "rich", "huggingface_hub", "accelerate"
    )
    require_trackers(trackers)
    from pmd.datasets import load_graph
    from pmd.device import choose_device
    from pmd.recipe import load_recipe
    from pmd.workers import Workers

    with Workers.started(device) as workers:
        with workers.together():
            resolved = load_recipe(recipe, _overrides(options, settings))
            graph = load_graph(resolved.dataset)
            target = choose_device(device)
        if dry_run:
            return _show_plan(resolved, graph, target) if workers.leads else 0
        from pmd.ladder import train_ladder

        folder = out or Path("runs") / Path(recipe).stem
        ladder, done = train_ladder(
            resolved,
            graph,
            folder,
            device=target,
            resume=resume,
            time_limit=deadline.left,  # loading counts
            progress=show_progress(quiet),
            workers=workers,
            trackers=trackers,
            reuse=reuse,
        )
        if workers.leads:
            _show_results(folder, ladder, done=done, seconds=time.monotonic() - started)
    return 0 if done else EXIT_TIME_LIMIT


def _show_plan(recipe: Recipe, graph: KnowledgeGraph, device: torch.device) -> int:
    from pmd.plan import describe

    text, facts = describe(recipe, graph, device)
    click.echo(text)
    emit({"schema": "pmd-plan/1", **facts})
    return 0


def _show_results(folder: Path, ladder: dict[str, Any], *, done: bool, seconds: float) -> None:
    _print_table(ladder)
    emit(
        {
            "schema": "pmd-train/1",
            "run": str(folder),
            "done": done,
            "seconds": round(seconds, 3),
            "stages": _short(ladder),
        }
    )


def _overrides(options: dict[str, Any], settings: tuple[str, ...]) -> dict[str, Any]:
    """Recipe keys given on the command line; --set comes last and wins."""
    from pmd.recipe import parse_setting

    given = {key: value for key, value in options.items() if value is not None}
    if "data" in given:
        given["dataset"] = given.pop("data")
    if "epochs" in given:
        given["stage_epochs"] = {}  # --epochs means every stage
    if "grades" in given and "mask_rates" not in given:
        given["mask_rates"] = _rates_for(given["grades"])
    return given | dict(parse_setting(setting) for setting in settings)


def _rates_for(grades: tuple[int, ...]) -> tuple[float, ...]:
    """The paper's falling schedule (20, 10, 5, 0 %) for as many grades as were named."""
    falling = (0.2, 0.1, 0.05, 0.0)
    return tuple(falling[min(position, len(falling) - 1)] for position in range(len(grades)))


def _short(ladder: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "stage": stage["stage"],
            "grade": stage["grade"],
            "valid_mrr": stage["valid"] and stage["valid"]["mrr"],
            "test_mrr": stage["test"] and stage["test"]["mrr"],
        }
        for stage in ladder["stages"]
    ]


def _print_table(ladder: dict[str, Any]) -> None:
    click.echo(
        f"{'stage':<14}{'layers':>6}{'parameters':>12}{'mask':>6}{'seconds':>9}{'valid MRR':>11}{'test MRR':>10}"
    )
    for stage, short in zip(ladder["stages"], _short(ladder), strict=True):
        valid, test = (
            f"{value:.4f}" if value is not None else "-" for value in (short["valid_mrr"], short["test_mrr"])
        )
        click.echo(
            f"{stage['stage']:<14}{stage['grade']:>6}{stage['parameters']:>12,}{stage['mask_rate']:>6.0%}"
            f"{stage['train_seconds']:>9.0f}{valid:>11}{test:>10}"
        )


if __name__ == "__main__":
    main()
