"""`pmd-bench`: measure bundles and write the report."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from pmd.benchmarks.peers.registry import PEERS
from pmd.serving import command
from pmd.serving.extras import require

if TYPE_CHECKING:
    from pmd.benchmarks.gate import Condition
    from pmd.benchmarks.report import Report

RUN_SCHEMA = "pmd-bench-run/1"
RUNS, BUNDLES, REPORTS = Path("runs"), Path("bundles"), Path("reports")
EPILOG = """\b
Examples:
  pmd-bench                                every bundle of the latest run
  pmd-bench --quick --out reports/look     a first look in a minute or two
  pmd-bench bundles/umls-pmd-*-int8        these bundles alone
  pmd-bench --split valid --threads 2      other triples, two threads
  pmd-bench --against torch --against faiss --run runs/umls    beside other stacks, in turn
  pmd-bench --fail-if "mrr_kept<0.995" --fail-if "query_ms.p50>2"
  pmd-bench compare before after           what moved between two reports (see pmd-bench compare --help)
  pmd-bench pick reports/umls --max-mb 10  the bundle to ship (see pmd-bench pick --help)
"""


class _Bench(command.Command):
    """The bench, with two commands on finished reports before it; a bundle called `pick` is named `./pick`."""

    def main(  # type: ignore[override]  # as in the class above it
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        """Run what the first argument names, else the bench, and leave the process with its exit code."""
        given = list(sys.argv[1:] if args is None else args)
        if given[:1] in (["compare"], ["pick"]):
            from pmd.benchmarks.commands import COMMANDS

            COMMANDS[given[0]].main(given[1:], f"{prog_name or self.name} {given[0]}", **extra)
        super().main(given, prog_name, **extra)


@click.command("pmd-bench", cls=_Bench, context_settings=command.HELP, epilog=EPILOG)
@click.argument("bundles", metavar="[BUNDLE]...", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--split",
    type=click.Choice(["test", "valid"]),
    default="test",
    show_default=True,
    help="Triples asked about and ranked.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Report folder.  [default: reports/DATASET]")
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Threads of the runtime and of numpy.",
)
@click.option("--quick", is_flag=True, help="200 questions, not 1,000, and one cold start, not three.")
@click.option(
    "--growth",
    is_flag=True,
    help="Also time tables of 1,000 to 1,000,000 synthetic entities: 3 to 15 s a bundle, up to 1.5 GB of memory.",
)
@click.option(
    "--against",
    multiple=True,
    type=click.Choice(list(PEERS)),
    metavar="NAME",
    help=f"Time each bundle beside NAME, in turn: {', '.join(PEERS)}. Skipped if not installed. Repeatable.",
)
@click.option(
    "--run",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Run of the bundles, with the torch weights of peers.  [default: the latest in runs/ that has them]",
)
@click.option(
    "--fail-if",
    "fail_if",
    multiple=True,
    metavar="CONDITION",
    help='Exit with 1 if a bundle\'s figure is so, e.g. "mrr_kept<0.995", or unknown. Repeatable.',
)
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def main(
    bundles: tuple[Path, ...],
    split: str,
    out: Path | None,
    threads: int,
    quick: bool,
    growth: bool,
    against: tuple[str, ...],
    run: Path | None,
    fail_if: tuple[str, ...],
    quiet: bool,
) -> int:
    """Measure latency, memory, size and accuracy of BUNDLEs on this machine.

    Each BUNDLE (a folder or a zip; by default every bundle in bundles/ of the latest run) is measured in
    processes of its own. Writes report.json, .html, .md and .csv, curve.svg and curve.png to the report folder.
    Exits with 1 if a bundle could not be measured or fails a condition; the report is made all the same.

    `pmd-bench compare` and `pmd-bench pick` read finished reports; a bundle with such a name is ./compare.
    """
    require("bench", "psutil", "matplotlib", "jinja2")
    require("cpu", "onnxruntime")
    from pmd.benchmarks import case, discovery, gate, report
    from pmd.benchmarks.bench import bench, ticks_of
    from pmd.benchmarks.peers.against import check_run

    begin = time.monotonic()
    conditions = [gate.parse(text) for text in fail_if]
    if run is not None:
        check_run(run)
    chosen = list(dict.fromkeys(bundles)) or discovery.bundles_of(run or discovery.latest_run(RUNS), BUNDLES)
    dataset = discovery.dataset_of(chosen)
    out = out or REPORTS / (dataset or "unreadable")
    report.check_target(out)  # before the measurements rather than after them
    make = case.Plan.quick if quick else case.Plan
    peers = tuple(dict.fromkeys(against))
    plan = make(split=split, threads=threads, growth=growth, against=peers, run=run, runs=RUNS)
    tick = _Progress(ticks_of(chosen, plan), command.show_progress(quiet))
    made = bench(chosen, plan, dataset=dataset, quick=quick, tick=tick)
    report.write(made, out)
    return _tell(made, out, conditions, time.monotonic() - begin)


class _Progress:
    """A numbered line on stderr for every step."""

    def __init__(self, total: int, shown: bool) -> None:
        self._total, self._done, self._shown = total, 0, shown

    def __call__(self, what: str) -> None:
        self._done += 1
        if self._shown:
            click.echo(f"[{self._done}/{self._total}] {what}", err=True)


def _tell(made: Report, out: Path, conditions: Sequence[Condition], seconds: float) -> int:
    """Print the table, the machine, the page's path and the closing JSON object; returns the exit code."""
    from pmd.benchmarks import gate, report, table
    from pmd.benchmarks.peers import told

    rows, machine = made["results"], made["machine"]
    errors = sum(row["error"] is not None for row in rows)
    for line in [*table.lines(rows), *told.lines(rows)]:
        click.echo(line)
    click.echo(
        f"\nmeasured on {machine['cpu']}, {machine['cores_used']} thread{'s' * (machine['cores_used'] > 1)}, "
        f"{machine['matmul_gflops']:.0f} GFLOP/s float32 matmul"
    )
    disturbed = [row["bundle"] for row in rows if row["disturbed"]]
    if disturbed:
        click.echo(f"others took the machine while these were timed: {', '.join(disturbed)}")
    judged = [(row["bundle"], gate.reasons(row, conditions)) for row in rows]
    found = gate.verdict(conditions, judged) if conditions else None
    for line in gate.lines(found):
        click.echo(line)
    click.echo(f"report: {out / report.PAGE}")
    command.emit(
        {
            "schema": RUN_SCHEMA,
            "report": str(out / report.REPORT),
            "html": str(out / report.PAGE),
            "results": len(rows),
            "errors": errors,
            "gate": found,
            "seconds": round(seconds, 3),
        }
    )
    return command.EXIT_FAILURE if errors or gate.lines(found) else 0


if __name__ == "__main__":
    main()
