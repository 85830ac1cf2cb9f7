"""`pmd-export`: make bundles of a run's grades."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pmd.export.errors import ParityError, TargetError
from pmd.export.parity import GATES
from pmd.serving.bundle import MANIFEST
from pmd.serving.command import HELP, Command, emit, show_progress
from pmd.serving.extras import require

if TYPE_CHECKING:
    from pmd.export.source import Run, RunStage
    from pmd.serving.manifest import Manifest

SCHEMA = "pmd-export/1"
EXAMPLES = """\b
Examples:
  pmd-export --grade 3                           grade 3 of the latest run, in float32 and int8
  pmd-export --all --precision int8              every grade of the latest run
  pmd-export --grade 3 --teacher --run runs/umls
  pmd-export --grade 2 --precision int8 --no-entity-tower --out edge
"""


@click.command(name="pmd-export", cls=Command, context_settings=HELP, epilog=EXAMPLES)
@click.option("--grade", type=click.IntRange(min=1), metavar="N", help="The student of this many layers.")
@click.option("--all", "every", is_flag=True, help="Every student of the run.")
@click.option("--teacher", is_flag=True, help="The teacher, too or alone.")
@click.option(
    "--run", type=click.Path(path_type=Path), metavar="DIR", help="Run folder. [default: latest in runs/]"
)
@click.option("--data", metavar="DIR", help="The run's dataset, if it is not where its recipe says.")
@click.option(
    "--precision",
    "precisions",
    type=click.Choice(tuple(GATES)),
    multiple=True,
    help="How numbers are stored; may be given several times. [default: all]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Bundle folder, for a single bundle. [default: bundles/DATASET-METHOD-grade-N-PRECISION]",
)
@click.option("--no-entity-tower", is_flag=True, help="Leave out what only adding entities from text needs.")
@click.option("--force", is_flag=True, help="Replace bundles that exist.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def main(
    grade: int | None,
    every: bool,
    teacher: bool,
    run: Path | None,
    data: str | None,
    precisions: tuple[str, ...],
    out: Path | None,
    no_entity_tower: bool,
    force: bool,
    quiet: bool,
) -> None:
    """Make bundles of a run's grades: fused ONNX graphs, entity vectors, known answers and a manifest.

    A bundle is written only if its answers are those of the torch model, within what its precision may lose.
    """
    if not (grade or every or teacher) or (grade and every):
        raise click.UsageError("say what to export: --grade N or --all, or --teacher")
    require("export", "torch", "transformers", "onnx")
    require("cpu", "onnxruntime")
    from pmd.export.source import Run
    from pmd.run import latest_run

    started = time.monotonic()
    source = Run.open(run or latest_run(Path("runs")))
    stages = source.stages(grade=grade, every=every, teacher=teacher)
    names = tuple(dict.fromkeys(precisions)) or tuple(GATES)
    if out and len(stages) * len(names) > 1:
        raise click.UsageError(f"--out names one bundle, this makes {len(stages) * len(names)}; leave it out")
    targets = {
        (stage.label, name): out or Path("bundles") / _bundle_name(source, stage, name)
        for stage in stages
        for name in names
    }
    for target in targets.values():
        _check_target(target, force)
    say = _talker(show_progress(quiet))
    done, failed = [], []
    for target, result in _export(source, stages, targets, data, not no_entity_tower, force, say):
        if isinstance(result, ParityError):
            failed.append(str(result))
        else:
            done.append(_row(target, result))
    _print_table(done)
    emit({"schema": SCHEMA, "bundles": done, "seconds": round(time.monotonic() - started, 3)})
    if failed:
        raise ParityError("; ".join(failed))


def _export(
    run: Run,
    stages: list[RunStage],
    targets: dict[tuple[str, str], Path],
    data: str | None,
    entity_tower: bool,
    force: bool,
    say: Callable[[str], None],
) -> Iterator[tuple[Path, Manifest | ParityError]]:
    """Each target with its manifest, or with the error of one that is not the torch model."""
    from pmd.export.bundle import write_bundle
    from pmd.export.loading import load_stage
    from pmd.export.quantize import PRECISIONS

    graph = run.graph(data)
    for stage in stages:
        say(f"{stage.label}: loading {stage.folder} and tracing its towers")
        loaded = load_stage(run, stage, graph)
        for (label, name), target in targets.items():
            if label != stage.label:
                continue
            say(f"{label}: writing {target} and comparing it with torch")
            try:
                manifest = write_bundle(loaded, PRECISIONS[name], target, entity_tower=entity_tower, replace=force)
                yield target, manifest
            except ParityError as error:  # the other bundles may still be good
                yield target, error


def _bundle_name(run: Run, stage: RunStage, precision: str) -> str:
    return f"{run.ladder['dataset']}-{run.ladder['method']}-{stage.label}-{precision}"


def _check_target(target: Path, force: bool) -> None:
    """Refuse, before any work, a target that is in the way; only a bundle may be replaced."""
    if not target.exists():
        return
    if not force:
        raise TargetError(f"{target} exists already; replace it with --force, or choose another --out")
    if not (target / MANIFEST).is_file():
        raise TargetError(f"{target} is not a bundle; it will not be replaced: choose another --out")


def _talker(progress: bool) -> Callable[[str], None]:
    return (lambda line: click.echo(line, err=True)) if progress else (lambda line: None)


def _row(target: Path, manifest: Manifest) -> dict[str, Any]:
    size = sum(entry["bytes"] for entry in manifest["files"].values()) + (target / MANIFEST).stat().st_size
    return {
        "path": str(target),
        "stage": manifest["stage"],
        "grade": manifest["grade"],
        "precision": manifest["precision"],
        "bytes": size,
        "parity": manifest["parity"],
    }


def _print_table(rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    width = max(len(row["path"]) for row in rows)
    click.echo(f"{'bundle':<{width}}  {'MB':>7}  {'cosine gap':>10}  {'score gap':>10}  {'MRR':>6}  {'kept':>7}")
    for row in rows:
        parity = row["parity"]
        click.echo(
            f"{row['path']:<{width}}  {row['bytes'] / 1e6:7.2f}  {parity['max_cosine_gap']:10.2e}  "
            f"{parity['max_score_gap']:10.2e}  {parity['mrr_bundle']:.4f}  {parity['mrr_kept']:7.2%}"
        )
