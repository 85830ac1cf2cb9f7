"""The parts of the measurement, each of which asks child processes and gives one JSON value; in the parent."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pmd.benchmarks import case, discovery
from pmd.benchmarks.errors import BenchError, MeasureError

Part = dict[str, Any]
COMPARED = 50
"""Questions whose ten best the usual stacks are compared by."""
CHILD = (sys.executable, "-m", "pmd.benchmarks.edge.child")
EXPORT = "import sys; from pmd.export.cli import main; main(sys.argv[1:])"


@dataclass(frozen=True)
class Wanted:
    """What is measured, and how much of it."""

    bundles: tuple[str, ...]
    """The first is measured by every part, all of them by `answers`."""
    fp32: str | None
    run: str | None
    grade: int | None
    data: str | None
    split: str
    questions: int
    cold_starts: int
    memory_questions: int
    rows: int
    ann_rows: int
    clients: int
    http_seconds: float
    threads: int
    """Of building the approximate index, and of exporting."""
    timeout: float


class Measurer:
    """Measures parts; questions are written to `folder` once and read by all of them."""

    def __init__(self, wanted: Wanted, folder: Path, say: Callable[[str], None]) -> None:
        self.wanted, self.folder, self.say = wanted, folder, say
        self.bundle = wanted.bundles[0]
        self._material: Part | None = None

    def answers(self) -> Part:
        """Latency of every bundle, in turn on the same questions; the first one's figures stand at the top."""
        material, sides = (
            self.material,
            {f"{number}": self._ours(b) for number, b in enumerate(self.wanted.bundles)},
        )
        found = self._rounds(sides, compare=0)
        rows = []
        for (number, side), bundle in zip(found["sides"].items(), self.wanted.bundles, strict=True):
            facts = discovery.facts_of(Path(bundle), ("precision", "grade", "layers", "method"))
            facts.pop("trained")
            slower = side["query_ms"]["p50"] / found["sides"]["0"]["query_ms"]["p50"]
            name = Path(bundle).resolve().name
            rows.append({"bundle": name, **facts, **side, "times_first": slower, "turn": int(number)})
        p50 = {f"{row['precision']}, {row['layers']} layers": row["query_ms"]["p50"] for row in rows}
        return {**rows[0], "tokens": material["tokens"], "entities": material["entities"], "p50_by_precision": p50,
                "bundles": rows}  # fmt: skip

    def usual(self) -> Part:
        """The same questions by the usual stacks on the same weights; `times` and `times_cpu` are ratios to ours.

        Raises BenchError if neither a run nor an fp32 bundle is there to take the weights from.
        """
        if self.wanted.run is None and self.wanted.fp32 is None:
            raise BenchError(
                "usual needs --run, or --bundle-fp32 for the ONNX side alone; or leave it out of --parts"
            )
        fp32 = self.wanted.fp32 or self._exported()
        sides = {"pmd": self._ours(self.bundle), "onnx": self._side("onnx", fp32)}
        if self.wanted.run is not None:
            stage = str(Path(self.wanted.run) / f"grade-{self._grade()}")
            sides["torch"] = self._side("torch", fp32) | {"stage": stage}
        found = self._rounds(sides, compare=min(COMPARED, self.wanted.questions))
        p50 = {name: side["query_ms"]["p50"] for name, side in found["sides"].items()}
        cpu = {name: side["cpu_ms"] for name, side in found["sides"].items()}
        others = [name for name in sides if name != "pmd"]
        return {
            **found,
            "times": {name: p50[name] / p50["pmd"] for name in others},
            "times_cpu": {name: cpu[name] / cpu["pmd"] for name in others},
        }

    def overhead(self) -> Part:
        """What a call takes beside onnxruntime's runs."""
        return self._ask("overhead", bundle=self.bundle, **self._asked())

    def cold(self) -> Part:
        """The median of fresh processes, from just before the start to the first answer, and its parts."""
        plan = case.Plan(split=self.wanted.split)
        request = {"task": "cold", "bundle": self.bundle, "question": self.material["first"]}
        runs = [case.run_child(request, plan, self.wanted.timeout) for _ in range(self.wanted.cold_starts)]
        middle = statistics.median_low(run["cold_start_ms"] for run in runs)
        chosen = next(run for run in runs if run["cold_start_ms"] == middle)
        return {**chosen, "runs_ms": [run["cold_start_ms"] for run in runs]}

    def memory(self) -> Part:
        """Peak, and how far memory moves over many questions."""
        found = self._ask("memory", bundle=self.bundle, texts=self.wanted.memory_questions, **self._asked())
        first = found["first_mib"]
        return {**found, "rise_mib": found["max_mib"] - first, "fall_mib": first - found["min_mib"]}

    def million(self) -> Part:
        """Exact search in a large synthetic table, and the approximate index beside it."""
        folder = self.folder / "million"
        folder.mkdir(exist_ok=True)
        self.say(f"million: writing {self.wanted.rows:,} vectors")
        table = self._ask("table", folder=str(folder), rows=self.wanted.rows, width=384)
        self.say("million: exact search")
        search = self._ask("search", folder=str(folder), queries=50, checked=20)
        self.say("million: the approximate index")
        rows = min(self.wanted.ann_rows, self.wanted.rows)
        ann = self._ask("ann", folder=str(folder), rows=rows, queries=100, threads=self.wanted.threads)
        return {"table": table, "search": search, "ann": ann}

    def http(self) -> Part:
        """Requests a second and their latency from pmd-serve under load."""
        load = {"clients": self.wanted.clients, "seconds": self.wanted.http_seconds}
        return self._ask("http", bundle=self.bundle, **self._asked(), **load)

    @property
    def material(self) -> Part:
        """Facts about the questions, which are in the file `questions.json` from then on."""
        if self._material is None:
            out = self.folder / "questions.json"
            asked = {"split": self.wanted.split, "questions": self.wanted.questions}
            self._material = self._ask("material", bundle=self.bundle, out=str(out), **asked)
        return self._material

    def _asked(self) -> dict[str, str]:
        """Where the questions are, written by now."""
        _ = self.material
        return {"questions": str(self.folder / "questions.json")}

    def _side(self, kind: str, bundle: str) -> dict[str, str]:
        return {"side": kind, "bundle": bundle, **self._asked()}

    def _ours(self, bundle: str) -> dict[str, str]:
        return self._side("pmd", bundle)

    def _rounds(self, sides: dict[str, Any], compare: int) -> Part:
        return self._ask("rounds", sides=sides, questions=self.wanted.questions, compare=compare)

    def _ask(self, task: str, **request: Any) -> Part:
        plan = case.Plan(child=CHILD)
        return case.run_child({"task": task, **request}, plan, self.wanted.timeout)

    def _grade(self) -> int:
        return self.wanted.grade or int(discovery.manifest_of(Path(self.bundle))["grade"])

    def _exported(self) -> str:
        """An fp32 bundle of the run's grade, in the scratch folder. Raises MeasureError if the export fails."""
        out = self.folder / "fp32"
        self.say("usual: exporting the grade in fp32")
        command = ["--run", str(self.wanted.run), "--grade", str(self._grade()), "--precision", "fp32", "--quiet"]
        command += ["--out", str(out), "--no-entity-tower"] + (
            ["--data", self.wanted.data] if self.wanted.data else []
        )
        began = time.monotonic()
        child = subprocess.run(
            [sys.executable, "-c", EXPORT, *command],
            capture_output=True,
            text=True,
            timeout=self.wanted.timeout,
            check=False,
        )
        if child.returncode:
            reason = (child.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise MeasureError(f"pmd-export failed after {time.monotonic() - began:.0f} s: {reason}")
        return str(out)


PARTS: dict[str, Callable[[Measurer], Part]] = {
    "answers": Measurer.answers,
    "usual": Measurer.usual,
    "overhead": Measurer.overhead,
    "cold": Measurer.cold,
    "memory": Measurer.memory,
    "million": Measurer.million,
    "http": Measurer.http,
}
