"""How fast and how small the edge runtime is: `python -m pmd.benchmarks.serving --bundle DIR`.

Times answers of one thread, in turn with the usual stacks on the same weights; says what Python adds to
onnxruntime, how long a start takes, whether memory stays where it is, how near search in a million entities comes
to the speed of memory, and what the HTTP server carries. Each measurement runs in a process of its own. The last
line of stdout is one JSON object; --out keeps it, part by part, and parts that it has of the same setting are not
measured again.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

import pmd.serving
from pmd.benchmarks import case, discovery, report
from pmd.benchmarks.edge.parts import PARTS, Measurer, Wanted
from pmd.benchmarks.edge.targets import lines_of, targets_of
from pmd.benchmarks.errors import BenchError
from pmd.benchmarks.machine import fingerprint, version_of
from pmd.serving.command import HELP, Command, emit, show_progress
from pmd.serving.cores import default_threads
from pmd.serving.storage import write_atomic

SCHEMA = "pmd-bench-serving/1"
VERSIONS = ("sentence-transformers", "torch", "optimum-onnx", "faiss-cpu", "usearch", "starlette", "uvicorn")
QUICK = {"questions": 200, "cold_starts": 1, "memory_questions": 3000, "rows": 200_000, "ann_rows": 20_000,
         "http_seconds": 3.0}  # fmt: skip
"""How much --quick measures of what is not named on the command line."""
NEEDS: dict[str, tuple[str, ...]] = {
    "answers": ("bundles", "split", "questions"),
    "usual": ("bundles", "fp32", "run", "grade", "split", "questions"),
    "overhead": ("bundles", "split", "questions"),
    "cold": ("bundles", "split", "cold_starts"),
    "memory": ("bundles", "split", "questions", "memory_questions"),
    "million": ("rows", "ann_rows", "threads"),
    "http": ("bundles", "split", "questions", "clients", "http_seconds"),
}
"""What a part's figures depend on: it is measured again when one of these, the bundle or the runtime changes."""
EPILOG = """\b
Examples:
  python -m pmd.benchmarks.serving --bundle bundles/wn18rr-pmd-grade-3-int8 --run runs/wn18rr --out serving.json
  python -m pmd.benchmarks.serving --bundle bundles/umls-pmd-grade-3-int8 --parts answers,overhead,cold --quick
  python -m pmd.benchmarks.serving --bundle A-int8 --bundle A-fp32 --bundle A-int4 --parts answers
"""


@click.command("pmd.benchmarks.serving", cls=Command, context_settings=HELP, epilog=EPILOG)
@click.option("--bundle", "bundles", required=True, multiple=True, type=click.Path(path_type=Path), metavar="DIR",
              help="Bundle; more than one for their answers side by side, the first for all else.")  # fmt: skip
@click.option(
    "--run", type=click.Path(path_type=Path), metavar="DIR", help="Its run, for the usual stacks' weights."
)
@click.option("--grade", type=click.IntRange(min=1), help="Grade of the run. [default: the bundle's]")
@click.option("--bundle-fp32", type=click.Path(path_type=Path), metavar="DIR",
              help="The same grade in fp32, a folder; exported from --run if left out.")  # fmt: skip
@click.option("--data", metavar="DIR", help="The run's dataset, if it is not where its recipe says.")
@click.option("--parts", metavar="NAME,…", help=f"Of {', '.join(PARTS)}. [default: all that can be measured]")
@click.option("--split", type=click.Choice(["test", "valid"]), default="test", show_default=True)
@click.option("--questions", type=click.IntRange(min=10), default=1000, show_default=True)
@click.option("--cold-starts", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--memory-questions", type=click.IntRange(min=300), default=100_000, show_default=True)
@click.option("--rows", type=click.IntRange(min=1000), default=1_000_000, show_default=True,
              help="Vectors of the synthetic table.")  # fmt: skip
@click.option("--ann-rows", type=click.IntRange(min=1000), default=200_000, show_default=True,
              help="Of them, in the approximate index.")  # fmt: skip
@click.option("--clients", type=click.IntRange(min=1), default=32, show_default=True, help="Of the HTTP server.")
@click.option("--http-seconds", type=click.FloatRange(min=1), default=15.0, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="Of building the index. [default: all allowed cores]")
@click.option("--scratch", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Where temporary files go; 400 MB for a million vectors. [default: the system's]")  # fmt: skip
@click.option("--timeout", type=float, default=7200.0, show_default=True, help="Seconds one measurement may take.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.json")
@click.option("--again", is_flag=True, help="Measure parts again that --out has already.")
@click.option("--quick", is_flag=True, help="A first look: fewer questions, a smaller table.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
@click.pass_context
def main(context: click.Context, **options: Any) -> None:
    """Measure the edge runtime on this machine, beside what one would use instead."""
    if options["quick"]:
        named = {name for name in QUICK if context.get_parameter_source(name) is click.core.ParameterSource.DEFAULT}
        options |= {name: QUICK[name] for name in named}
    wanted = _wanted(options)
    before = _read(options["out"])
    progress = show_progress(options["quiet"])

    def say(line: str) -> None:
        if progress:
            click.echo(f"{time.strftime('%H:%M:%S')} {line} …", err=True)

    chosen = _chosen(options["parts"], wanted)
    if options["scratch"]:
        options["scratch"].mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pmd-bench-", dir=options["scratch"]) as scratch:
        measurer = Measurer(wanted, Path(scratch), say)
        found = _measured(measurer, chosen, before, options["out"], again=options["again"])
    for line in lines_of(found["targets"], found["parts"]):
        click.echo(line)
    emit(found)


def _measured(
    measurer: Measurer, chosen: Sequence[str], before: dict[str, Any], out: Path | None, *, again: bool
) -> dict[str, Any]:
    """The report, kept after each part; those of the same setting are taken from `before`, unless `again`."""
    wanted = measurer.wanted
    machine = fingerprint(wanted.threads) | {"usual_versions": {name: version_of(name) for name in VERSIONS}}
    pinned = case.Plan()
    parts: dict[str, Any] = dict(before.get("parts", {}))
    whole = {"schema": SCHEMA, "machine": machine, "parts": parts, "targets": targets_of(parts, machine["flags"])}
    for name in chosen:
        setting = _setting(name, wanted, machine)
        if not again and parts.get(name, {}).get("setting") == setting:
            measurer.say(f"{name}: kept")
            continue
        measurer.say(name)
        calibrated, began = case.calibrate(pinned), time.monotonic()
        parts[name] = PARTS[name](measurer) | {
            "setting": setting,
            "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "took_seconds": round(time.monotonic() - began, 1),
            "noise": report.noise(calibrated, case.calibrate(pinned)),
        }
        whole["targets"] = targets_of(parts, machine["flags"])
        if out:
            write_atomic(out, (json.dumps(whole, indent=1, allow_nan=False) + "\n").encode())
    return whole


def _wanted(options: dict[str, Any]) -> Wanted:
    """What is asked for, its bundles looked at. Raises BundleError, and BenchError for what does not fit."""
    bundles, fp32, run = options["bundles"], options["bundle_fp32"], options["run"]
    discovery.dataset_of(bundles)
    for bundle in [*bundles, *([fp32] if fp32 else [])]:
        discovery.manifest_of(bundle)
    if fp32 and not fp32.is_dir():
        raise BenchError(f"{fp32} is a zip; the usual stacks read folders, so unpack it")
    if run and not (run / "run.json").is_file():
        raise BenchError(f"{run} is not a run folder: it has no run.json; name one made by pmd-train")
    kept = {name: options[name] for name in Wanted.__dataclass_fields__ if name in options}
    return Wanted(
        **kept
        | {
            "bundles": tuple(str(bundle.resolve()) for bundle in bundles),
            "fp32": None if fp32 is None else str(fp32.resolve()),
            "run": None if run is None else str(run.resolve()),
            "threads": options["threads"] or default_threads(),
        }
    )


def _chosen(parts: str | None, wanted: Wanted) -> list[str]:
    """Names of parts in their order. Raises BenchError for one that is none."""
    if parts is None:
        without = set() if wanted.run or wanted.fp32 else {"usual"}
        return [name for name in PARTS if name not in without]
    asked = [name.strip() for name in parts.split(",") if name.strip()]
    unknown = [name for name in asked if name not in PARTS]
    if unknown or not asked:
        raise BenchError(f"no part {', '.join(unknown) or parts!r}; there are {', '.join(PARTS)}")
    return [name for name in PARTS if name in asked]


def _setting(part: str, wanted: Wanted, machine: Mapping[str, Any]) -> dict[str, Any]:
    """What a part's figures depend on, with fingerprints of the bundles and of the runtime's own code."""
    chosen = {name: getattr(wanted, name) for name in NEEDS[part]}
    for name in {"bundles", "fp32", "run"} & set(chosen):  # two machines keep one bundle in two places
        paths = chosen[name] or ()
        chosen[name] = [Path(path).name for path in ((paths,) if isinstance(paths, str) else paths)]
    bundles = [*wanted.bundles, *([wanted.fp32] if wanted.fp32 else [])] if "bundles" in chosen else []
    hashes = [_sha(json.dumps(discovery.manifest_of(Path(bundle)), sort_keys=True).encode()) for bundle in bundles]
    code = b"".join(path.read_bytes() for path in sorted(Path(pmd.serving.__path__[0]).rglob("*.py")))
    return {
        **chosen,
        "manifests": hashes,
        "code": _sha(code),
        "cpu": machine["cpu"],
        "versions": {name: machine["versions"][name] for name in ("numpy", "onnxruntime")},
    }


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _read(path: Path | None) -> dict[str, Any]:
    """An earlier report. Raises BenchError if the file is another thing."""
    if path is None or not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["schema"] == SCHEMA and isinstance(found["parts"], dict):
            return dict(found)
    except (ValueError, KeyError, TypeError, OSError):
        pass
    raise BenchError(f"{path} is there and is no report of schema {SCHEMA}; choose another --out")


if __name__ == "__main__":
    main()
