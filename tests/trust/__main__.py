"""`python -m tests.trust`: attack everything that is shipped, and say what held.

Without arguments the ten-minute version of `make trust`; `--full` makes the counts of docs/trust.md.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import click

from pmd.benchmarks.machine import fingerprint
from pmd.serving.command import HELP, Command, emit
from pmd.serving.storage import write_atomic
from tests.trust.page import PAGE, RESULTS, refresh, shown
from tests.trust.runner import all_attacks, make, make_all

SCHEMA = "pmd-trust/1"


@click.command(name="python -m tests.trust", cls=Command, context_settings=HELP)
@click.argument("names", nargs=-1, metavar="[ATTACK]...")
@click.option("--full", is_flag=True, help="The counts of docs/trust.md, an hour or more.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--jobs", type=click.IntRange(min=1), default=len(os.sched_getaffinity(0)), help="Attacks side by side."
)
@click.option("--out", type=click.Path(path_type=Path), help="Write the findings there, as JSON.")
@click.option("--record", is_flag=True, help=f"Put the findings into {RESULTS} and {PAGE}.")
@click.option("--list", "only_list", is_flag=True, help="Name the attacks and end.")
@click.option("--count", type=click.IntRange(min=1), help="Cases of each, in place of its own counts.")
@click.option("--one", hidden=True, help="Make one attack in this process.")
def main(
    names: tuple[str, ...],
    full: bool,
    seed: int,
    jobs: int,
    out: Path | None,
    record: bool,
    only_list: bool,
    count: int | None,
    one: str | None,
) -> int:
    """Make each ATTACK (default: all). Exit code 1 if a promise was broken."""
    attacks = all_attacks()
    if one is not None:
        attack = attacks[one]
        emit(make(attack, count or attack.quick, seed))
        return 0
    for name in names:
        if name not in attacks:
            raise click.BadParameter(f"no attack {name!r}; there are {', '.join(attacks)}")
    chosen = [attacks[name] for name in names or attacks]
    if only_list:
        for attack in chosen:
            click.echo(f"{attack.name:<28}{attack.part:<16}{attack.quick:>9,}{attack.full:>10,}  {attack.what}")
        return 0
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)  # before ten minutes of work, not after
    started, findings = time.monotonic(), []
    for finding in make_all(
        chosen, lambda attack: count or (attack.full if full else attack.quick), seed, jobs=jobs
    ):
        findings.append(finding)
        click.echo(shown(finding))
    report = _report(findings, seed, time.monotonic() - started)
    if out is not None:
        write_atomic(out, (json.dumps(report, indent=1) + "\n").encode())
    if record:
        refresh(report)
    failed = sum(finding["failed"] for finding in findings)
    cases = sum(finding["cases"] for finding in findings)
    emit(
        {"schema": SCHEMA, "attacks": len(findings), "cases": cases, "failed": failed, "seconds": report["seconds"]}
    )
    return 1 if failed else 0


def _report(findings: list[dict[str, Any]], seed: int, seconds: float) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "seed": seed,
        "seconds": round(seconds, 1),
        "machine": fingerprint(len(os.sched_getaffinity(0))),
        "attacks": findings,
    }


if __name__ == "__main__":
    main()
