"""The serving bench as a command: what it measures, what it keeps, what it is held to."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tiny_bundle import write_tiny_bundle

from pmd.benchmarks import case, serving
from pmd.benchmarks.edge import child, material, sides, targets
from pmd.benchmarks.edge.parts import PARTS, Measurer, Wanted
from pmd.benchmarks.errors import MeasureError
from pmd.serving.bundle import Bundle

QUESTIONS = 20
STEADY = {"best_gflops": 2.0, "median_gflops": 1.0}
MACHINE = {"cpu": "a small one", "versions": {"numpy": "1", "onnxruntime": "1"}}


def invoke(*arguments: object):
    return CliRunner().invoke(serving.main, [str(argument) for argument in arguments])


def wanted(bundle: Path, **changes: object) -> Wanted:
    given = {"bundles": (str(bundle),), "fp32": None, "run": None, "grade": None, "data": None, "split": "test"}
    given |= {"questions": QUESTIONS, "cold_starts": 1, "memory_questions": 300, "rows": 2000, "ann_rows": 1000}
    return Wanted(**{**given, "clients": 2, "http_seconds": 1.0, "threads": 1, "timeout": 300.0, **changes})


# ---- the usual stacks ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    """A run and the fp32 bundle of its grade."""
    pytest.importorskip("sentence_transformers")
    from tests.tiny_exports import export_bundles
    from tests.tiny_run import write_run

    root = tmp_path_factory.mktemp("trained")
    run = write_run(root)
    return run, export_bundles(root, ["fp32"], run=run)["fp32"]


@pytest.mark.slow
@pytest.mark.parametrize("exported", [False, True])
def test_the_usual_stacks_find_the_same(trained, tmp_path, exported):
    """Both rank a trained grade as its fp32 bundle does, on that bundle or on one exported for them."""
    pytest.importorskip("faiss")
    run, ours = trained
    said: list[str] = []
    given = wanted(ours, run=str(run), fp32=None if exported else str(ours))
    found = Measurer(given, tmp_path, said.append).usual()
    assert said == ["usual: exporting the grade in fp32"] * exported
    assert found["shared_top"] == {"onnx": 1.0, "torch": 1.0}
    p50 = {name: side["query_ms"]["p50"] for name, side in found["sides"].items()}
    assert found["times"] == {name: p50[name] / p50["pmd"] for name in ("onnx", "torch")}


@pytest.mark.slow
def test_weights_of_another_grade_are_seen(trained, tmp_path):
    """The share of answers in common is no formality: other weights give other answers."""
    from pmd.benchmarks.edge import usual

    run, ours = trained
    rows = tmp_path / "questions.json"
    material.write_questions({"bundle": str(ours), "split": "test", "questions": 12, "out": str(rows)})
    asked = json.loads(rows.read_text(encoding="utf-8"))
    right, wrong = (
        usual.torch_numpy({"bundle": str(ours), "stage": str(run / stage)}, asked)
        for stage in ("grade-2", "teacher")
    )
    own = sides._side({"side": "pmd", "bundle": str(ours)}, asked)
    assert [right.top(number) for number in range(12)] == [own.top(number) for number in range(12)]
    assert [wrong.top(number) for number in range(12)] != [own.top(number) for number in range(12)]
    assert [list(np.array(usual.entity_ids(ours))[right.ask(number)]) for number in range(12)] == [
        right.top(number) for number in range(12)
    ]


def test_float_vectors_are_those_of_the_table(tiny_int8_folder):
    from pmd.benchmarks.edge.usual import float_vectors

    vectors, expected = float_vectors(tiny_int8_folder), Bundle.open(tiny_int8_folder).tables.vectors.vectors()
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert (vectors.dtype, vectors.flags.c_contiguous) == (np.float32, True)
    np.testing.assert_allclose(vectors, expected, atol=1e-6)


# ---- the server ----------------------------------------------------------------------------------------------


def test_http(tiny_int8_folder, tmp_path, monkeypatch):
    pytest.importorskip("uvicorn")
    monkeypatch.setenv("PMD_API_KEY", "secret")  # of another server; this one must not ask for it
    found = Measurer(wanted(tiny_int8_folder), tmp_path, lambda _: None).http()
    assert set(found["statuses"]) == {"200"}
    assert found["requests"] == found["statuses"]["200"] > 0
    assert found["clients"] == 2


def test_a_server_that_does_not_start_is_told(tmp_path):
    pytest.importorskip("uvicorn")
    from pmd.benchmarks.edge import web

    with pytest.raises(MeasureError, match="did not start: error: no bundle at"), web.serving(str(tmp_path / "no")):
        pass


# ---- the command ---------------------------------------------------------------------------------------------


def test_the_command_and_what_it_keeps(tiny_int8_folder, tmp_path, monkeypatch):
    """Four parts in real processes; a second run measures none again, a changed setting just what depends on it."""
    out = tmp_path / "serving.json"
    given = [
        "--bundle",
        tiny_int8_folder,
        "--parts",
        "cold,answers,overhead,memory",
        "--questions",
        QUESTIONS,
        "--out",
        out,
    ]
    given += ["--cold-starts", 2, "--memory-questions", 300]
    result = invoke(*given)
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout.splitlines()[-1])
    assert report == json.loads(out.read_text(encoding="utf-8"))
    assert report["schema"] == "pmd-bench-serving/1"
    assert list(report["parts"]) == ["answers", "overhead", "cold", "memory"]
    cold = report["parts"]["cold"]
    assert sum(cold["parts_ms"].values()) == pytest.approx(cold["cold_start_ms"])
    assert min(cold["runs_ms"]) == cold["cold_start_ms"]  # of two the lower median
    for part in report["parts"].values():
        assert {"setting", "measured_at", "took_seconds", "noise"} <= set(part)
    answers = report["parts"]["answers"]
    assert answers["query_ms"] == answers["bundles"][0]["query_ms"]
    assert answers["p50_by_precision"] == {"int8, 1 layers": answers["query_ms"]["p50"]}
    assert {row["figure"] for row in report["targets"] if row["met"] is not None} == {
        "answers.query_ms.p50", "overhead.outside_ms.p50", "cold.cold_start_ms",
        *(f"memory.{name}" for name in ("peak_rss_mib", "rise_mib", "fall_mib")),
    }  # fmt: skip

    measured: list[str] = []
    monkeypatch.setattr(case, "calibrate", lambda _: STEADY)
    for name in PARTS:
        monkeypatch.setitem(PARTS, name, lambda _, name=name: (measured.append(name), {"planted": True})[1])
    assert invoke(*given).exit_code == 0
    assert measured == []
    assert invoke(*given, "--cold-starts", 1).exit_code == 0
    assert measured == ["cold"]
    assert json.loads(out.read_text(encoding="utf-8"))["parts"]["answers"] == answers
    assert invoke(*given, "--parts", "answers", "--again").exit_code == 0
    assert measured == ["cold", "answers"]
    assert set(json.loads(out.read_text(encoding="utf-8"))["parts"]) == set(report["parts"])


def setting_of(bundle: Path, machine: dict = MACHINE, **changes: object) -> dict:
    return serving._setting("answers", wanted(bundle, **changes), machine)


def test_parts_are_measured_again_when_the_runtime_or_the_bundle_changes(tiny_int8_folder, tmp_path, monkeypatch):
    before = setting_of(tiny_int8_folder)
    assert before == setting_of(tiny_int8_folder, clients=9)
    other = write_tiny_bundle(tmp_path / "tiny", precision="fp32")
    assert before["bundles"] == [tiny_int8_folder.name]
    assert setting_of(tiny_int8_folder, machine={**MACHINE, "cpu": "another"}) != before
    assert before["manifests"] != setting_of(other)["manifests"]
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "search.py").write_text("FASTER = True\n", encoding="utf-8")
    monkeypatch.setattr(serving.pmd.serving, "__path__", [str(tmp_path / "code")])
    assert before["code"] != setting_of(tiny_int8_folder)["code"]


def test_settings_name_what_is_there():
    fields = {field.name for field in dataclasses.fields(Wanted)}
    assert set(serving.NEEDS) == set(PARTS)
    assert {name for names in serving.NEEDS.values() for name in names} <= fields
    for module, name in child.TASKS.values():
        if module in ("million", "near"):
            pytest.importorskip("onnxruntime")
        assert callable(getattr(importlib.import_module(f"pmd.benchmarks.edge.{module}"), name))


def test_what_was_finished_stays_when_a_later_part_fails(tiny_int8_folder, tmp_path, monkeypatch):
    def fails(_):
        raise MeasureError("planted")

    monkeypatch.setattr(case, "calibrate", lambda _: STEADY)
    monkeypatch.setitem(PARTS, "overhead", lambda _: {"outside_ms": {"p50": 0.1}})
    monkeypatch.setitem(PARTS, "cold", fails)
    out = tmp_path / "serving.json"
    result = invoke("--bundle", tiny_int8_folder, "--parts", "overhead,cold", "--out", out)
    assert (result.exit_code, result.stderr) == (1, "error: planted\n")
    kept = json.loads(out.read_text(encoding="utf-8"))
    assert list(kept["parts"]) == ["overhead"]
    assert [row["met"] for row in kept["targets"] if row["figure"] == "overhead.outside_ms.p50"] == [True]


def test_mistakes_are_the_users(tiny_int8_folder, tmp_path, monkeypatch):
    other = tmp_path / "other.json"
    other.write_text('{"schema": "else"}', encoding="utf-8")
    for arguments, said in (
        (["--bundle", tmp_path / "none"], "none"),
        (["--bundle", tiny_int8_folder, "--parts", "speed"], "no part 'speed'"),
        (["--bundle", tiny_int8_folder, "--parts", "usual"], "usual needs --run"),
        (["--bundle", tiny_int8_folder, "--run", tmp_path], "is not a run folder"),
        (["--bundle", tiny_int8_folder, "--out", other, "--again"], "is no report of schema"),
    ):
        result = invoke(*arguments)
        assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1), result.stderr
        assert said in result.stderr
    monkeypatch.setattr(case, "calibrate", lambda _: STEADY)
    for name in PARTS:
        monkeypatch.setitem(PARTS, name, lambda _: {})
    report = json.loads(invoke("--bundle", tiny_int8_folder).stdout.splitlines()[-1])
    assert list(report["parts"]) == [name for name in PARTS if name != "usual"]  # nothing to compare with


@pytest.mark.parametrize(("flags", "bound"), [(["avx2", "avx512_vnni"], 1.5), (["avx2"], 3.0), (None, 3.0)])
def test_targets(flags, bound):
    parts = {"answers": {"query_ms": {"p50": 2.0}}, "usual": {"times": {"onnx": 2.9, "torch": 6.0}}}
    found = {row["figure"]: row for row in targets.targets_of(parts, flags)}
    assert found["answers.query_ms.p50"]["bound"] == bound
    assert found["answers.query_ms.p50"]["met"] is (bound == 3.0)
    assert found["usual.times.torch"]["met"] is True
    assert found["usual.times.onnx"]["met"] is False
    assert (found["http.ms.p99"]["found"], found["http.ms.p99"]["met"]) == (None, None)
