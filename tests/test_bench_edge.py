"""Child processes of the serving bench: all sides get the same work, and planted costs show where they should."""

from __future__ import annotations

import ast
import io
import json
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pmd.benchmarks import case
from pmd.benchmarks.case import Plan
from pmd.benchmarks.edge import flat, material, overhead, sides, turns
from pmd.benchmarks.edge.parts import CHILD
from pmd.benchmarks.errors import MeasureError
from pmd.benchmarks.questions import Question, of_split
from pmd.serving import Scorer
from pmd.serving.bundle import QUERY, Bundle
from pmd.serving.encoder import TowerEncoder

ROOT = Path(__file__).resolve().parents[1]
QUESTIONS = 20


@pytest.fixture(scope="module")
def questions(tiny_int8_folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("questions") / "questions.json"
    request = {"bundle": str(tiny_int8_folder), "split": "test", "questions": QUESTIONS, "out": str(out)}
    assert material.write_questions(request)["entities"] == 12
    return out


class Clock:
    """In the place of the clock that laps are read from; it moves where a test moves it."""

    def __init__(self, monkeypatch) -> None:
        self.ns = 0
        for name in ("perf_counter_ns", "thread_time_ns", "process_time_ns"):
            monkeypatch.setattr(time, name, lambda: self.ns)


def asked_of(bundle: Path, questions: Path, **more: object) -> dict:
    return {"bundle": str(bundle), "questions": str(questions), **more}


# ---- the same work for every side ---------------------------------------------------------------------------


def test_the_usual_stacks_read_what_the_tower_reads(tiny_int8_folder, questions, monkeypatch):
    read: list[tuple[str, str]] = []
    honest = TowerEncoder.__call__
    monkeypatch.setattr(TowerEncoder, "__call__", lambda self, texts: (read.extend(texts), honest(self, texts))[1])
    scorer = Scorer.load(tiny_int8_folder, threads=1)
    asked = of_split(scorer, "test", QUESTIONS)
    for question in asked:
        question.ask(scorer)
    rows = json.loads(questions.read_text(encoding="utf-8"))
    assert [tuple(row["text"]) for row in rows] == read
    assert [Question(**row["question"]) for row in rows] == asked
    assert {question.inverse for question in asked} == {True, False}


def test_token_counts_are_those_of_the_pairs(tiny_int8_folder, questions, tmp_path):
    found = material.write_questions(
        {"bundle": str(tiny_int8_folder), "split": "test", "questions": QUESTIONS, "out": str(tmp_path / "q.json")}
    )
    pairs = [tuple(row["text"]) for row in json.loads(questions.read_text(encoding="utf-8"))]
    lengths = Bundle.open(tiny_int8_folder).tokenizer(QUERY)(pairs).lengths
    assert (found["tokens"]["p0"], found["tokens"]["p50"]) == (lengths.min(), np.median(lengths))


def test_sides_take_turns_and_each_begins(monkeypatch):
    """Every side answers every question once; who begins changes, and the untimed laps count nowhere."""
    orders: list[tuple[str, tuple[int, int]]] = []

    def ask(side: str, order: dict) -> dict:
        if "top" in order:
            return {"top": [["a", "b"], ["c", "d"]] if side == "one" else [["a", "x"], ["c", "d"]]}
        orders.append((side, (order["first"], order["last"])))
        took = (order["last"] - order["first"]) * [1_000_000 if side == "one" else 3_000_000]
        if len(orders) <= 2:  # the untimed ones
            took = [10**12] * len(took)
        return {"laps_ns": took, "cpu_ns": sum(took), "wall_ns": 2 * sum(took)}

    monkeypatch.setattr(turns, "_started", lambda request: io.StringIO())
    monkeypatch.setattr(turns.ExitStack, "enter_context", lambda self, started: names.pop(0))
    monkeypatch.setattr(turns, "_ask", ask)
    names = ["one", "two"]
    found = turns.rounds({"sides": {"one": {}, "two": {}}, "questions": 130, "compare": 2})
    assert orders[:2] == [("one", (0, 50)), ("two", (0, 50))]
    timed = orders[2:]
    assert [side for side, _ in timed] == ["one", "two", "two", "one", "one", "two"]
    assert Counter(timed) == Counter((side, part) for side in ("one", "two") for part in
                                     ((0, 50), (50, 100), (100, 130)))  # fmt: skip
    assert found["sides"]["one"]["query_ms"]["mean"] == 1
    assert found["sides"]["two"]["query_ms"]["p99"] == 3
    assert found["sides"]["two"]["cores_busy"] == 0.5
    assert found["sides"]["two"]["cpu_ms"] == 3
    assert found["shared_top"] == {"two": 0.75}


def test_a_side_times_its_calls_and_answers_to_the_channel(tiny_int8_folder, questions, monkeypatch, capsys):
    """A planted sleep is in every lap; what a library prints cannot come between the answers."""

    def slow(self, scorer):
        sys.stdout.write("chatter\n")
        clock.ns += 5_000_000

    clock = Clock(monkeypatch)
    monkeypatch.setattr(Question, "ask", slow)
    orders = [{"first": 3, "last": 7}, {"top": QUESTIONS}]
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(json.dumps(order) + "\n" for order in orders)))
    assert sides.take_turns(asked_of(tiny_int8_folder, questions, side="pmd")) == {"done": "pmd"}
    ready, timed, top = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert ready == {"ready": "pmd"}
    assert timed["laps_ns"] == [5_000_000] * 4
    assert timed["wall_ns"] == timed["cpu_ns"] == 20_000_000
    scorer = Scorer.load(tiny_int8_folder, threads=1)
    for row, ids in zip(json.loads(questions.read_text(encoding="utf-8")), top["top"], strict=True):
        entity, relation, inverse = row["question"].values()
        found = (
            scorer.top_heads(relation, entity, exclude_known=False)
            if inverse
            else scorer.top_tails(entity, relation, exclude_known=False)
        )
        assert ids == [prediction.entity for prediction in found]


def test_rounds_in_real_processes(tiny_int8_folder, questions):
    side = asked_of(tiny_int8_folder, questions, side="pmd")
    request = {"task": "rounds", "sides": {"one": side, "two": side}, "questions": QUESTIONS, "compare": QUESTIONS}
    found = case.run_child(request, Plan(child=CHILD), 120)
    assert found["shared_top"] == {"two": 1.0}
    assert all(0 < figures["query_ms"]["p50"] for figures in found["sides"].values())
    broken = {**request, "sides": {"one": side, "two": {**side, "bundle": str(questions)}}}
    with pytest.raises(MeasureError, match=r"questions\.json"):
        case.run_child(broken, Plan(child=CHILD), 120)


def test_a_side_that_dies_is_told(monkeypatch):
    monkeypatch.setattr(turns.sys, "executable", "/bin/false")
    with pytest.raises(MeasureError, match="ended without an answer: exit code 1"), turns._started({}):
        pass


# ---- what a call costs beside onnxruntime --------------------------------------------------------------------


def test_time_is_told_apart_inside_and_outside(tiny_int8_folder, questions, monkeypatch):
    import onnxruntime

    honest_ask, honest_run = Question.ask, onnxruntime.InferenceSession.run

    def ask(self, scorer):
        clock.ns += 4_000_000
        return honest_ask(self, scorer)

    def run(self, *given, **named):
        clock.ns += 8_000_000
        return honest_run(self, *given, **named)

    clock = Clock(monkeypatch)
    monkeypatch.setattr(Question, "ask", ask)
    monkeypatch.setattr(onnxruntime.InferenceSession, "run", run)
    found = overhead.measure_overhead(asked_of(tiny_int8_folder, questions))
    assert onnxruntime.InferenceSession.run is run  # put back
    assert found["runs_per_question"] >= 1
    assert found["inside_ms"]["mean"] == 8 * found["runs_per_question"]
    assert found["outside_ms"]["p50"] == found["outside_ms"]["p99"] == 4
    assert found["outside_cpu_ms"] == found["outside_ms"]
    assert found["whole_ms"]["mean"] == found["inside_ms"]["mean"] + 4


def test_a_run_within_a_run_counts_once(monkeypatch):
    clock = Clock(monkeypatch)

    class Inner:
        def run(self):
            clock.ns += 10

    class Outer(Inner):
        def run(self):
            clock.ns += 1
            super().run()

    inside = overhead.Inside()
    with inside.watching(Outer, Inner):
        Outer().run()
    assert (inside.runs, inside.ns, inside.cpu_ns) == (1, 11, 11)
    Outer().run()
    assert inside.runs == 1


def test_without_a_run_nothing_was_measured(tiny_int8_folder, questions, monkeypatch):
    monkeypatch.setattr(Question, "ask", lambda self, scorer: [])
    with pytest.raises(MeasureError, match="without any run of onnxruntime"):
        overhead.measure_overhead(asked_of(tiny_int8_folder, questions))


# ---- memory --------------------------------------------------------------------------------------------------


def test_a_leak_shows_as_a_slope(tiny_int8_folder, questions, monkeypatch):
    kept, lengths, honest = [], [], Scorer.top_tails

    def leaking(self, head, *given, **named):
        if named.get("head_is_text"):
            kept.append(np.ones(1 << 17))  # 1 MiB
            lengths.append(len(head.split()))
        return honest(self, head, *given, **named)

    monkeypatch.setattr(Scorer, "top_tails", leaking)
    found = flat.measure_memory(asked_of(tiny_int8_folder, questions, texts=400))
    assert (found["texts"], found["sampled_every"], len(found["samples_mib"])) == (400, 4, 100)
    assert len(kept) == 200  # the other half ask for heads
    assert (min(lengths), max(lengths)) == (1, 60)
    assert 180 <= found["last_mib"] - found["first_mib"] <= 215  # two of four questions leak, 98 times
    assert 4_500 <= found["slope_mib_per_10000"] <= 5_500
    assert found["peak_rss_mib"] < found["last_mib"]  # it was read before


def test_drift():
    found = flat.drift([900.0, 10.0, 12.0, 11.0, 13.0], every=1000)
    expected = {"first_mib": 10.0, "last_mib": 13.0, "min_mib": 10.0, "max_mib": 13.0, "slope_mib_per_10000": 8.0}
    assert found == pytest.approx(expected)


def test_a_system_without_the_file_is_told(tmp_path):
    with pytest.raises(MeasureError, match="leave out memory"):
        flat.resident_bytes(tmp_path / "none")


# ---- what is loaded ------------------------------------------------------------------------------------------


def test_torch_is_loaded_by_the_usual_stacks_alone():
    """The process whose memory is measured, and the parent, hold the runtime and nothing else of weight."""
    heavy = {"torch", "transformers", "sentence_transformers", "faiss", "usearch", "safetensors", "pmd.grade"}
    for path in [*(ROOT / "benchmarks" / "edge").glob("*.py"), ROOT / "benchmarks" / "serving.py"]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        named = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
        named |= {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
        assert not named & heavy, path


def test_the_measured_process_loads_the_runtime_alone(tiny_int8_folder, questions, tmp_path):
    code = (
        "import sys; from pmd.benchmarks.edge import child; code = child.main(sys.argv[1:]);"
        f"open({str(tmp_path / 'modules')!r}, 'w').write(' '.join({{m.split('.')[0] for m in sys.modules}}))"
    )
    request = {"task": "memory", **asked_of(tiny_int8_folder, questions, texts=300)}
    case.run_child(request, Plan(child=(sys.executable, "-c", code)), 120)
    loaded = set((tmp_path / "modules").read_text(encoding="utf-8").split())
    assert {"numpy", "onnxruntime", "tokenizers"} <= loaded
    assert not loaded & {"torch", "transformers", "onnx", "matplotlib", "psutil", "click", "starlette"}
