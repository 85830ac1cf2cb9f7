"""`pmd-bench compare` and `pmd-bench pick`: what finished reports say, without measuring anything."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from pmd.serving import command

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
REPORT = click.Path(exists=True, path_type=Path)


class _Bound(click.FloatRange):
    """A finite number from zero: NaN passes click's own range, and infinity is no limit."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number. Fails as click's own types do."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is no finite number", param, ctx)
        return number


COMPARE_EPILOG = """\b
Examples:
  pmd-bench compare before/report.json after/report.json
  pmd-bench compare before after --all                          every figure, moved or not
  pmd-bench compare before after --noise 30                     on a machine that others use too
  pmd-bench compare before after --fail-if "query_ms.p50>+10%" --fail-if "metrics.mrr<-0.5%"
"""
PICK_EPILOG = """\b
Examples:
  pmd-bench pick reports/umls --max-mb 10 --min-mrr-kept 0.99 --max-p50-ms 2
  pmd-bench pick reports/umls --min-mrr 0.85                    the smallest that is as good as the best
"""


def fail_if(text: str) -> Callable[[Decorated], Decorated]:
    """The option that names conditions."""
    return click.option("--fail-if", "fail_if", multiple=True, metavar="CONDITION", help=text)


@click.command("pmd-bench compare", cls=command.Command, context_settings=command.HELP, epilog=COMPARE_EPILOG)
@click.argument("first", type=REPORT)
@click.argument("second", type=REPORT)
@click.option("--all", "everything", is_flag=True, help="Show every figure, not only what moved.")
@click.option(
    "--noise",
    type=_Bound(0, 100, max_open=True),
    default=0.0,
    metavar="PERCENT",
    help="Least noise of times, where you know more of the machine than the reports say.",
)
@fail_if(
    'Exit with 1 where a figure of SECOND is so ("mrr_kept<0.995") or moved so ("query_ms.p50>+10%"). Repeatable.'
)
def compare(first: Path, second: Path, everything: bool, noise: float, fail_if: tuple[str, ...]) -> int:
    """Say what moved beyond noise from the report FIRST to the report SECOND.

    Each is a report.json or its folder; bundles are matched by name. Times are judged on one machine alone.
    """
    from pmd.benchmarks import compare as comparing
    from pmd.benchmarks import compare_table, gate
    from pmd.benchmarks.reading import read_report

    conditions = [gate.parse(text, changes=True) for text in fail_if]
    a, b = read_report(first), read_report(second)
    found = comparing.compare(a, b, conditions, noise_percent=noise)
    machine = b["machine"]
    for line in compare_table.lines(found, machine["cpu"], machine["cores_used"], everything=everything):
        click.echo(line)
    return close({"a": str(first), "b": str(second)}, found)


def close(paths: dict[str, str], found: dict[str, Any]) -> int:
    """Print what the gate found and the closing JSON object; returns the exit code."""
    from pmd.benchmarks import gate

    told = gate.lines(found["gate"])
    for line in told:
        click.echo(line)
    command.emit({"schema": found["schema"], **paths, **{key: found[key] for key in found if key != "schema"}})
    return command.EXIT_FAILURE if told else 0


def _limits(decorated: Decorated) -> Decorated:
    """An option for every limit."""
    from pmd.benchmarks.pick import LIMITS

    for limit in reversed(LIMITS):
        side, unit = ("most" if limit.is_most else "least"), f" {limit.unit}" if limit.unit else ""
        share = " as a share, 1 is all" if limit.key == "mrr_kept" else ""
        option = click.option(
            f"--{limit.option}",
            type=_Bound(min=0),
            metavar="N",
            help=f"{limit.name[0].upper()}{limit.name[1:]} at {side} N{unit}{share}.",
        )
        decorated = option(decorated)
    return decorated


@click.command("pmd-bench pick", cls=command.Command, context_settings=command.HELP, epilog=PICK_EPILOG)
@click.argument("report", type=REPORT)
@_limits
def pick(report: Path, **given: float | None) -> int:
    """Name the bundle of a REPORT to ship: the most accurate within the limits, and why not the others.

    MRRs that the split's triples cannot tell apart count as equal; then the smaller bundle is chosen, then the
    faster. Exits with 1 where nothing fits, and says what is nearest.
    """
    from pmd.benchmarks import pick as picking
    from pmd.benchmarks.reading import read_report

    asked = {limit: given[limit.option.replace("-", "_")] for limit in picking.LIMITS}
    found = picking.pick(read_report(report), {limit: bound for limit, bound in asked.items() if bound is not None})
    for line in picking.lines(found):
        click.echo(line)
    command.emit({"schema": found["schema"], "report": str(report), **found})
    return 0 if found["bundle"] else command.EXIT_FAILURE


COMMANDS = {"compare": compare, "pick": pick}
