"""`pmd-export`: make bundles of a run's grades, and check them again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pmd.export.errors import ParityError, TargetError
from pmd.export.making import MEASURES, NOTES, PRECISIONS, VECTOR_TYPES, Making, ways
from pmd.serving.command import HELP, TRUSTED_KEY, Command, emit, show_progress
from pmd.serving.exhausted import memory_advice
from pmd.serving.extras import require
from pmd.serving.storage import folder_bytes

if TYPE_CHECKING:
    from pmd.export.jobs import Order, Outcome
    from pmd.serving.manifest import Manifest

SCHEMA, VERIFY_SCHEMA = "pmd-export/1", "pmd-verify/1"
DEFAULTS = ("fp32", "int8")
EXAMPLES = """\b
Examples:
  pmd-export --grade 3                           grade 3 of the latest run, in float32 and int8
  pmd-export --all --precision int8              every grade of the latest run
  pmd-export --grade 3 --teacher --run runs/umls
  pmd-export --grade 2 --precision int4 --trim-vocabulary --no-entity-tower --out edge
  pmd-export --grade 3 --auto 10MB               what ranks best of all that fits
  pmd-export --all --auto 99%                    the smallest that keeps 99 % of the MRR
  pmd-export --grade 3 --sign maker.pem
  pmd-export --verify bundles/umls-pmd-grade-3-int8
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
    type=click.Choice(PRECISIONS),
    multiple=True,
    help="How numbers are stored; may be given several times. [default: fp32 and int8; --auto: all]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Bundle folder, for a single bundle. [default: bundles/DATASET-METHOD-grade-N-PRECISION]",
)
@click.option(
    "--trim-vocabulary/--whole-vocabulary",
    "trim",
    default=None,
    help="Keep only the pieces that the graph's texts use. [default: whole; --auto: both]",
)
@click.option(
    "--width",
    "widths",
    type=click.IntRange(min=1),
    multiple=True,
    metavar="W",
    help="Numbers per vector; with --auto several may be given. [default: the encoder's]",
)
@click.option(
    "--vectors", type=click.Choice(VECTOR_TYPES), help="How entity vectors are stored. [default: as the precision]"
)
@click.option("--no-entity-tower", is_flag=True, help="Leave out what only adding entities from text needs.")
@click.option("--ort", is_flag=True, help="Add .ort files, for reduced builds of onnxruntime.")
@click.option(
    "--gate",
    "gates",
    multiple=True,
    metavar="MEASURE=BOUND",
    help="What a bundle must keep, in place of its precision's own: mrr_kept=0.99, max_score_gap=0.001, …",
)
@click.option(
    "--auto", metavar="BUDGET", help="Try all that may fit a size (10MB), a time (2ms) or a share of MRR (99%)."
)
@click.option(
    "--verify",
    type=click.Path(path_type=Path),
    metavar="BUNDLE",
    help="Check a bundle again and make none; with --run also that it is of that run.",
)
@TRUSTED_KEY
@click.option(
    "--sign",
    type=click.Path(path_type=Path),
    metavar="KEY",
    help="Sign what is made with the Ed25519 key of this PEM file; pmd-sign signs what is there already.",
)
@click.option("--force", is_flag=True, help="Replace bundles that exist.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
@memory_advice("free memory, or export one grade in one precision at a time; what is made already stays")
def main(
    grade: int | None,
    every: bool,
    teacher: bool,
    run: Path | None,
    data: str | None,
    precisions: tuple[str, ...],
    out: Path | None,
    trim: bool | None,
    widths: tuple[int, ...],
    vectors: str | None,
    no_entity_tower: bool,
    ort: bool,
    gates: tuple[str, ...],
    auto: str | None,
    verify: Path | None,
    trusted_keys: tuple[Path, ...],
    sign: Path | None,
    force: bool,
    quiet: bool,
) -> None:
    """Make bundles of a run's grades: fused ONNX graphs, entity vectors, known answers and a manifest.

    A bundle is written only if its answers are those of the torch model, within what its precision may lose.
    """
    chosen = bool(grade or every or teacher)
    if verify is not None and (chosen or auto is not None or sign is not None):
        raise click.UsageError(
            "--verify checks a bundle and makes none; leave out --grade, --all, --teacher, --auto and --sign"
        )
    if verify is None and trusted_keys:
        raise click.UsageError("--trusted-key is for --verify; --sign KEY signs what is made")
    if verify is None and (not chosen or (grade and every)):
        raise click.UsageError("say what to export: --grade N or --all, or --teacher")
    if len(widths) > 1 and auto is None:
        raise click.UsageError("several --width need --auto, which chooses among them")
    gate = _gate(gates)
    require("export", "torch", "transformers", "onnx")
    require("cpu", "onnxruntime")
    if verify is not None:
        _verify(verify, run, trusted_keys)
        return
    from pmd.export.auto import Budget
    from pmd.export.jobs import Order, make, search
    from pmd.export.signing import SigningKey
    from pmd.export.source import Run
    from pmd.export.target import check_target
    from pmd.run import latest_run

    started = time.monotonic()
    key = None if sign is None else SigningKey.read(sign)
    budget = None if auto is None else Budget.parse(auto)
    makings = ways(
        dict.fromkeys(precisions) or (PRECISIONS if budget else DEFAULTS),
        [trim] if trim is not None else [False, True] if budget else [False],
        widths or [None],
        Making("fp32", vectors=vectors, entity_tower=not no_entity_tower, ort_format=ort),
        lenient=not precisions,  # what is asked for by name must be possible
    )
    source = Run.open(run or latest_run(Path("runs")))
    stages = source.stages(grade=grade, every=every, teacher=teacher)
    if out and not budget and len(stages) * len(makings) > 1:
        raise click.UsageError(f"--out names one bundle, this makes {len(stages) * len(makings)}; leave it out")
    orders = [Order.of(source, stage, making, out, key) for stage in stages for making in makings]
    for order in orders:
        check_target(order.target, force, TargetError, "another --out")
    say = _talker(show_progress(quiet))
    if budget:
        _found(search(source, orders, budget, data, gate, force, say), started)
    else:
        _made(make(source, orders, data, gate, force, say), started)


def _made(results: Iterable[tuple[Order, Manifest | ParityError]], started: float) -> None:
    """Tell what was made. Raises ParityError if a bundle missed its gate, after the others are made."""
    done, failed = [], []
    for order, result in results:
        if isinstance(result, ParityError):
            failed.append(str(result))
        else:
            done.append(_row(order.target, result))
    _print_table(done)
    emit({"schema": SCHEMA, "bundles": done, "seconds": round(time.monotonic() - started, 3)})
    if failed:
        raise ParityError("; ".join(failed))


def _found(outcome: Outcome, started: float) -> None:
    """Tell what a search tried and kept."""
    order, manifest = outcome.kept
    width = max(len(f"{one.stage} {one.making.suffix}") for one in outcome.tried)
    click.echo(f"  {'way':<{width}}  {'MB':>7}  {'ms':>7}  {'MRR':>6}   (* none is smaller, faster and better)")
    for one in outcome.tried:
        mark = "*" if one in outcome.frontier else " "
        found = one.failure or f"{one.size_bytes / 1e6:7.2f}  {one.query_ms:7.2f}  {one.mrr:.4f}"
        click.echo(f"{mark} {f'{one.stage} {one.making.suffix}':<{width}}  {found}")
    tried = [
        {
            "stage": one.stage,
            "name": one.making.suffix,
            "bytes": None if one.failure else one.size_bytes,
            "query_ms": None if one.failure else one.query_ms,
            "mrr": None if one.failure else one.mrr,
            "failure": one.failure,
            "frontier": one in outcome.frontier,
        }
        for one in outcome.tried
    ]
    rows = [_row(order.target, manifest)]
    _print_table(rows)
    seconds = round(time.monotonic() - started, 3)
    emit({"schema": SCHEMA, "bundles": rows, "tried": tried, "seconds": seconds})


def _verify(path: Path, root: Path | None, trusted_keys: Sequence[Path]) -> None:
    """Check a bundle again and tell what was found. Raises VerifyError if a check does not hold."""
    from pmd.export.source import Run
    from pmd.export.verify import refuse, verify

    checks = verify(path, Run.open(root) if root else None, trusted_keys)
    width = max(len(check.name) for check in checks)
    for check in checks:
        click.echo(f"{'ok ' if check.holds else 'BAD'}  {check.name:<{width}}  {check.found}")
    emit({"schema": VERIFY_SCHEMA, "bundle": str(path), "checks": [check._asdict() for check in checks]})
    refuse(path, checks)


def _gate(texts: Sequence[str]) -> dict[str, float]:
    """Bounds by measure. Raises UsageError for what is no MEASURE=BOUND."""
    bounds = {}
    for text in texts:
        measure, _, bound = text.partition("=")
        if measure not in MEASURES or not _is_bound(bound):
            raise click.UsageError(
                f"--gate {text!r} is not MEASURE=BOUND; measures are {', '.join(MEASURES)}, bounds 0 and more"
            )
        bounds[measure] = float(bound)
    return bounds


def _is_bound(text: str) -> bool:
    try:
        return 0 <= float(text) < math.inf
    except ValueError:
        return False


def _talker(progress: bool) -> Callable[[str], None]:
    return (lambda line: click.echo(line, err=True)) if progress else (lambda line: None)


def _row(target: Path, manifest: Manifest) -> dict[str, Any]:
    return {
        "path": str(target),
        "stage": manifest["stage"],
        "grade": manifest["grade"],
        "precision": manifest["precision"],
        "bytes": folder_bytes(target),
        "note": NOTES.get(manifest["precision"]),
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
    for note in dict.fromkeys(row["note"] for row in rows if row["note"]):
        click.echo(f"note: {note}")
