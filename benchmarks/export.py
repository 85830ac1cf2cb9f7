"""What an export costs and what it gives: `python -m pmd.benchmarks.export --run RUN`.

Exports a grade in every precision, timed with its peak memory; then times one text through torch and through every
graph, and all entities of the graph through sentence-transformers and through every bundle. Each measurement runs
in a process of its own, its sides in turn. The last line of stdout is one JSON object; --out keeps it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from pmd.benchmarks.errors import BenchError, MeasureError
from pmd.benchmarks.machine import fingerprint, version_of
from pmd.benchmarks.probe import run_python, told
from pmd.serving.command import HELP, Command, emit, show_progress
from pmd.serving.cores import default_threads
from pmd.serving.storage import write_atomic

SCHEMA = "pmd-export-bench/1"
PRECISIONS = ("fp32", "fp16", "int8", "int8-static", "int4")
EXPORT = """
import sys
from pmd.export.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    if end.code:
        raise
from pmd.benchmarks.memory import peak_rss_bytes
print(peak_rss_bytes())
"""
CHILD = "from pmd.benchmarks.towers.child import answer; answer()"
VERSIONS = ("torch", "transformers", "onnx", "sentence-transformers")
EPILOG = """\b
Examples:
  python -m pmd.benchmarks.export --run runs/umls --out export.json
  python -m pmd.benchmarks.export --run runs/wn18rr --data ../data/wn18rr --texts 4000     a first look
"""


@click.command("pmd.benchmarks.export", cls=Command, context_settings=HELP, epilog=EPILOG)
@click.option("--run", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Run folder.")
@click.option("--grade", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--data", metavar="DIR", help="The run's dataset, if it is not where its recipe says.")
@click.option("--tokens", type=click.IntRange(min=3), default=20, show_default=True, help="Of the text to time.")
@click.option("--laps", type=click.IntRange(min=3), default=200, show_default=True)
@click.option("--texts", type=click.IntRange(min=0), default=0, help="Entities to encode. [default: all]")
@click.option("--parts", type=click.IntRange(min=1), default=8, show_default=True, help="Shares, taken in turn.")
@click.option("--threads", type=click.IntRange(min=1), help="Of exporting and encoding. [default: all]")
@click.option("--encode/--no-encode", default=True, show_default=True)
@click.option("--timeout", type=float, default=3600.0, show_default=True, help="Seconds one measurement may take.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE.json")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def main(**options: Any) -> None:
    """Time an export, its graphs beside torch, and its encoding beside sentence-transformers."""
    threads = options["threads"] or default_threads()
    progress = show_progress(options["quiet"])
    stage = options["run"].resolve() / f"grade-{options['grade']}"
    data = options["data"] or _dataset(options["run"])
    data = str(Path(data).resolve()) if Path(data).exists() else data  # else one that is shipped, by name
    if not stage.is_dir():
        raise BenchError(f"{options['run']} has no folder grade-{options['grade']}; name another with --grade")

    def say(line: str) -> None:
        if progress:
            click.echo(f"{time.strftime('%H:%M:%S')} {line} …", err=True)

    report: dict[str, Any] = {
        "schema": SCHEMA,
        "machine": fingerprint(threads) | {"export_versions": {name: version_of(name) for name in VERSIONS}},
        "setting": {key: str(options[key]) for key in ("run", "grade", "tokens", "laps", "texts", "parts")},
    }
    with tempfile.TemporaryDirectory(prefix="pmd-bench-") as scratch:
        say("exporting in every precision")
        report["export"], bundles = _export(options, data, Path(scratch), threads)
        say("one text through every graph")
        asked = {"stage": str(stage), "bundles": bundles}
        one = asked | {"tokens": options["tokens"], "laps": options["laps"], "threads": 1}
        report["speed"] = _ask("speed", one, options["timeout"])
        report["encode"] = None
        if options["encode"]:
            say("all entities through every tower")
            many = asked | {"data": data, "texts": options["texts"], "parts": options["parts"], "threads": threads}
            report["encode"] = _ask("encode", many, options["timeout"])
    for line in _tables(report):
        click.echo(line)
    if options["out"]:
        write_atomic(options["out"], (json.dumps(report, indent=1, allow_nan=False) + "\n").encode())
    emit(report)


def _export(
    options: dict[str, Any], data: str, folder: Path, threads: int
) -> tuple[dict[str, Any], dict[str, str]]:
    """Seconds and peak memory of exporting every precision, and the bundles by precision."""
    command = ["--run", str(options["run"].resolve()), "--grade", str(options["grade"]), "--data", data, "--quiet"]
    command += [option for precision in PRECISIONS for option in ("--precision", precision)]
    began = time.perf_counter()
    child = subprocess.run(
        [sys.executable, "-c", EXPORT, *command],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=options["timeout"],
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        check=False,
    )
    seconds = time.perf_counter() - began
    if child.returncode:
        raise MeasureError(f"pmd-export failed: {(child.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    *_, result, peak = child.stdout.strip().splitlines()
    made = json.loads(result)["bundles"]
    facts = {row["precision"]: {"bytes": row["bytes"], "parity": row["parity"]} for row in made}
    return (
        {"seconds": seconds, "peak_rss_bytes": int(peak), "threads": threads, "bundles": facts},
        {row["precision"]: str(folder / row["path"]) for row in made},
    )


def _ask(kind: str, asked: dict[str, Any], timeout: float) -> Any:
    """One measurement in a process of its own. Raises BenchError for a mistake in what was asked."""
    return told(run_python(CHILD, kind, json.dumps(asked), timeout=timeout))


def _tables(report: dict[str, Any]) -> list[str]:
    export = report["export"]
    lines = [f"export, {len(export['bundles'])} precisions: {export['seconds']:.0f} s, "
             f"{export['peak_rss_bytes'] / 2**20:,.0f} MiB"]  # fmt: skip
    lines += [f"{'one text, one thread':<30}  {'p50 ms':>7}  {'p95':>6}  {'x eager':>7}  {'cosine gap':>10}"]
    lines += [
        f"{name:<30}  {side['p50']:7.2f}  {side['p95']:6.2f}  {side['times_torch_eager']:7.2f}  "
        f"{side['cosine_gap']:10.1e}"
        for name, side in report["speed"].items()
    ]
    if found := report["encode"]:
        lines += [f"{found['texts']:,} entities, {found['tokens']:,} tokens, {found['threads']} threads"]
        lines += [
            f"{name:<30}  {side['texts_per_second']:7.0f} a second  "
            f"{side['times_sentence_transformers']:6.2f} times"
            for name, side in found["sides"].items()
        ]
    return lines


def _dataset(run: Path) -> str:
    """The dataset that a run's recipe names. Raises BenchError for a folder that is no run."""
    try:
        return str(json.loads((run / "run.json").read_text(encoding="utf-8"))["recipe"]["dataset"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchError(
            f"{run} is not a run folder: run.json cannot be read; name one made by pmd-train"
        ) from error


if __name__ == "__main__":
    main()
