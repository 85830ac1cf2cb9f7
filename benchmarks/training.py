"""How fast the training loop is: `python -m pmd.benchmarks.training`.

Times steps of the project's loop, on batches that follow the graph and on random ones, in turn with those of a
padded loop that reads every text of every triple, for the teacher on the task loss and for a grade that it teaches;
and says what share that is of the floor, the matrix products at the rate this machine makes them. With --curves it
also trains all three for some epochs on a small dataset. Measurements run in processes of their own. The last
line of stdout is one JSON object; --out keeps it.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from pmd.benchmarks.errors import BenchError
from pmd.benchmarks.loops.wanted import CASES, LOOPS, Wanted
from pmd.benchmarks.machine import fingerprint, version_of
from pmd.benchmarks.probe import run_python, told
from pmd.benchmarks.training_curve import figure
from pmd.benchmarks.training_table import case_table, curve_table, making_table
from pmd.serving.command import HELP, Command, emit, show_progress
from pmd.serving.cores import default_threads
from pmd.serving.storage import write_atomic

SCHEMA = "pmd-training-bench/1"
CHILD = "from pmd.benchmarks.loops.child import answer; answer()"
VERSIONS = ("torch", "transformers", "numpy")
MEMORY_STEPS = 3
EPILOG = """\b
Examples:
  python -m pmd.benchmarks.training --data ../data/wn18rr --out training.json
  python -m pmd.benchmarks.training --data ../data/wn18rr --steps 2 --warmup 1     a first look
  python -m pmd.benchmarks.training --no-speed --curves --curve-data ../data/wn18rr-small --out training.json
"""


@click.command("pmd.benchmarks.training", cls=Command, context_settings=HELP, epilog=EPILOG)
@click.option("--data", metavar="DIR", help="Dataset; the recipe's if left out.")
@click.option("--recipe", default="wn18rr", show_default=True, metavar="NAME|FILE")
@click.option("--encoder", metavar="NAME|DIR", help="Encoder; the recipe's if left out.")
@click.option("--batch-size", type=click.IntRange(min=2), default=256, show_default=True)
@click.option(
    "--batch-of",
    type=click.Choice(["queries", "triples"]),
    default="queries",
    show_default=True,
    help="What our batches hold BATCH-SIZE of: distinct queries with all their answers, as the recipe counts, "
    "or about as many triples as the padded loop's.",
)
@click.option(
    "--steps", type=click.IntRange(min=1), default=12, show_default=True, help="Timed steps of each loop."
)
@click.option("--warmup", type=click.IntRange(min=1), default=2, show_default=True, help="Untimed steps before.")
@click.option(
    "--layers", default="6,3", show_default=True, help="Layers of the teacher and of the grade it teaches."
)
@click.option(
    "--mask-rate", type=click.FloatRange(0, 1, max_open=True), default=0.1, show_default=True, help="Where masked."
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads; all allowed cores if left out.")
@click.option("--speed/--no-speed", default=True, show_default=True, help="Time the steps.")
@click.option("--memory/--no-memory", default=True, show_default=True, help="Peak memory of each loop, alone.")
@click.option(
    "--making", type=click.IntRange(min=0), default=20_000, show_default=True, help="Triples of the smallest "
    "synthetic graph for the cost of making batches; 0 leaves it out."
)  # fmt: skip
@click.option("--curves/--no-curves", default=False, show_default=True, help="MRR after each epoch.")
@click.option("--curve-data", default="wn18rr-small", show_default=True, metavar="DIR")
@click.option("--curve-recipe", default="wn18rr-small", show_default=True, metavar="NAME|FILE")
@click.option("--epochs", type=click.IntRange(min=1), default=3, show_default=True, help="Epochs of the curves.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.json",
    help="Keep the result here, after each part; curves in it are not trained again. A figure is put beside it.",
)
@click.option("--timeout", type=float, default=7200.0, show_default=True, help="Seconds one measurement may take.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def main(**options: Any) -> None:
    """Time the training loop beside a padded one and beside the floor, and compare what they learn."""
    bench = Bench(options)
    if options["speed"]:
        bench.speed()
    if options["making"]:
        bench.making()
    if options["curves"]:
        bench.curves()
    emit(bench.whole)


class Bench:
    """One run of the command: measures part by part, prints each, keeps all in `report`."""

    def __init__(self, options: dict[str, Any]) -> None:
        """Raises BenchError for layers that are no two numbers, or an --out that is no such report."""
        self.options, self.out = options, options["out"]
        self.progress = show_progress(options["quiet"])
        self.threads = options["threads"] or default_threads()
        layers = _two_numbers(options["layers"])
        self.wanted = Wanted(
            recipe=options["recipe"],
            data=options["data"],
            encoder=options["encoder"],
            batch_size=options["batch_size"],
            batch_of=options["batch_of"],
            teacher_layers=layers[0],
            student_layers=layers[1],
            mask_rate=options["mask_rate"],
            threads=self.threads,
            seed=options["seed"],
        )
        self.before = _read(self.out)
        self.report: dict[str, Any] = {
            "schema": SCHEMA,
            "machine": fingerprint(self.threads)
            | {"training_versions": {name: version_of(name) for name in VERSIONS}},
            "setting": self.wanted.as_dict() | {key: options[key] for key in ("steps", "warmup")},
            "cases": [],
            "making": None,
            "curves": None,
        }

    def speed(self) -> None:
        """Every case: all loops in turn in one process, then each alone for its peak memory."""
        for name in CASES:
            details = {"case_name": name, "warmup": self.options["warmup"], "steps": self.options["steps"]}
            case = self.ask("case", self.wanted, **details)
            for loop in LOOPS:
                memory = {"case_name": name, "loop_name": loop, "steps": MEMORY_STEPS}
                case["loops"][loop]["memory"] = (
                    self.ask("memory", self.wanted, **memory) if self.options["memory"] else None
                )
            naive = case["loops"][LOOPS[-1]]["triples_per_second"]["median"]
            case["ratio"] = {
                loop: case["loops"][loop]["triples_per_second"]["median"] / naive for loop in LOOPS[:-1]
            }
            self.report["cases"].append(case)
            self.keep()
            click.echo(case_table(case) + "\n")

    def making(self) -> None:
        """What making an epoch's batches costs as the graph grows."""
        self.report["making"] = self.ask("making", self.wanted, triples=self.options["making"])
        self.keep()
        click.echo(making_table(self.report["making"]) + "\n")

    def curves(self) -> None:
        """MRR after each epoch by every loop; what --out has of the same setting is taken from there."""
        settings = self.wanted.as_dict() | {
            "data": self.options["curve_data"],
            "recipe": self.options["curve_recipe"],
        }
        settings |= {"batch_of": "triples"}
        key = settings | {"epochs": self.options["epochs"]}
        kept = self.before.get("curves") or {}
        arms = dict(kept["arms"]) if kept.get("setting") == key else {}
        self.report["curves"] = {"setting": key, "arms": arms}
        for loop in LOOPS:
            if loop not in arms:
                arms[loop] = self.ask("curve", Wanted(**settings), loop_name=loop, epochs=self.options["epochs"])
                self.keep()
        self.keep()
        click.echo(curve_table(arms))
        if self.out:
            for suffix in ("svg", "png"):
                write_atomic(self.out.with_suffix(f".{suffix}"), figure(arms, suffix))

    def ask(self, kind: str, wanted: Wanted, **details: Any) -> Any:
        """One measurement in a process of its own. Raises BenchError for a mistake in what was asked."""
        if self.progress:
            named = [str(details[key]) for key in ("case_name", "loop_name") if key in details]
            click.echo(f"{time.strftime('%H:%M:%S')} {': '.join([kind, *named])} …", err=True)
        arguments = kind, json.dumps(wanted.as_dict()), json.dumps(details)
        return told(run_python(CHILD, *arguments, timeout=self.options["timeout"]))

    def keep(self) -> None:
        """Write the report as far as it is; parts that this run leaves out stay as they were."""
        if self.out:
            text = json.dumps(self.whole, indent=1, allow_nan=False) + "\n"
            write_atomic(self.out, text.encode())

    @property
    def whole(self) -> dict[str, Any]:
        """The report, with the parts of an earlier one in --out that this run leaves out."""
        parts = {} if self.options["speed"] else {key: self.before.get(key, []) for key in ("cases", "setting")}
        parts |= {} if self.options["making"] else {"making": self.before.get("making")}
        parts |= {} if self.options["curves"] else {"curves": self.before.get("curves")}
        return self.report | {key: value for key, value in parts.items() if value}


def _read(path: Path | None) -> dict[str, Any]:
    """An earlier report. Raises BenchError if the file is another thing."""
    if path is None or not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["schema"] == SCHEMA:
            return dict(found)
    except (ValueError, KeyError, TypeError, OSError):
        pass
    raise BenchError(f"{path} is there and is no report of schema {SCHEMA}; choose another --out")


def _two_numbers(text: str) -> tuple[int, int]:
    teacher, _, student = text.partition(",")
    if not (teacher.strip().isdigit() and student.strip().isdigit()):
        raise BenchError(f"--layers {text!r} is not TEACHER,GRADE, such as 6,3")
    return int(teacher), int(student)


if __name__ == "__main__":
    main()
