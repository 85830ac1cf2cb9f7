"""Bundles beside planted peers: what each costs comes out, and what goes wrong with one is its reason."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path

import bench_rows
import fake_peers
import numpy as np
import pytest
from click.testing import CliRunner
from tiny_bundle import write_tiny_bundle

from pmd.benchmarks import discovery, page, schema, sheets
from pmd.benchmarks.bench import bench, repeat_command
from pmd.benchmarks.case import UNMEASURED, Plan, Row
from pmd.benchmarks.cli import main
from pmd.benchmarks.errors import BenchError
from pmd.benchmarks.figures import interval_of, is_time
from pmd.benchmarks.peers import against, registry, told
from pmd.benchmarks.peers.against import UNCOMPARED, beside_peers, shared_top
from pmd.benchmarks.peers.registry import PEERS, Peer
from pmd.serving.archive import pack
from pmd.serving.bundle import MANIFEST, seal

QUESTIONS = 100


@pytest.fixture(autouse=True)
def planted(monkeypatch) -> None:
    """Peers of `fake_peers` by the names of its functions."""
    monkeypatch.setenv("PYTHONPATH", str(Path(fake_peers.__file__).parent))
    for name in ("same", "slow", "broken", "fails", "dies", "hangs", "telling"):
        monkeypatch.setitem(PEERS, name, Peer("planted", f"fake_peers:{name}", (), ()))


def row_of(bundle: Path) -> Row:
    return {"bundle": bundle.name, "stage": "grade-1", "grade": 1, "precision": "fp32", **copy.deepcopy(UNMEASURED)}


def compared(bundle: Path, *names: str, questions: int = QUESTIONS, **plan: object) -> Row:
    return beside_peers(bundle, row_of(bundle), Plan(questions=questions, against=names, **plan))


def only_skipped(entry: Row) -> str:
    """The reason of an entry that holds nothing else."""
    assert entry == {**UNCOMPARED, "skipped": entry["skipped"]}
    return str(entry["skipped"])


# ---- what comes out -----------------------------------------------------------------------------------------


def test_a_planted_sleep_is_in_the_ratio(tiny_folder):
    found = compared(tiny_folder, "slow", "same")
    slow, same = found["against"]["slow"], found["against"]["same"]
    assert list(found["against"]) == ["slow", "same"]
    assert slow["query_ms"]["p50"] >= fake_peers.SLEEP_MS
    assert slow["bundle_query_ms"] == same["bundle_query_ms"]  # of the same rounds
    assert slow["bundle_query_ms"]["p50"] < fake_peers.SLEEP_MS
    assert slow["ratio"] == pytest.approx(slow["query_ms"]["p50"] / slow["bundle_query_ms"]["p50"])
    assert 1 < slow["interval"][0] <= slow["ratio"] <= slow["interval"][1]
    assert same["ratio"] < slow["ratio"] / 2
    assert slow["cores_busy"] < 0.7  # asleep
    assert slow["ratio_cpu"] < slow["ratio"] / 2
    assert (slow["rounds"], same["rounds"]) == (20, 20)
    assert (slow["shared_top"], same["shared_top"]) == (0.0, 1.0)
    assert found["speedup"] == {"torch": None, "slow": slow["ratio"], "same": same["ratio"]}
    assert [entry["skipped"] for entry in found["against"].values()] == [None, None]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("broken", "RuntimeError: planted failure"),
        ("fails", "ZeroDivisionError: integer division or modulo by zero"),
        ("dies", "a side ended without an answer: the process was ended by SIGKILL (out of memory?)"),
    ],
)
def test_a_peer_that_fails_leaves_the_others_whole(tiny_folder, name, reason):
    found = compared(tiny_folder, name, "same")
    assert only_skipped(found["against"][name]) == reason
    assert found["speedup"][name] is None
    assert found["against"]["same"]["rounds"] == 20
    assert found["against"]["same"]["shared_top"] == 1.0


def test_a_peer_that_hangs_is_given_up(tiny_folder):
    found = compared(tiny_folder, "hangs", "same", speed_limit_s=10)
    assert only_skipped(found["against"]["hangs"]) == "no answer within 10 s, given up"
    assert found["against"]["same"]["rounds"] == 20


def test_a_peer_that_is_not_installed_names_the_pip_command(tiny_folder, monkeypatch):
    absent = Peer("planted", "fake_peers:same", ("json", "no_such_module", "no.such.part"), ("a", "b", "c"))
    monkeypatch.setitem(PEERS, "absent", absent)
    found = compared(tiny_folder, "absent")
    assert only_skipped(found["against"]["absent"]) == "b, c not installed; run: pip install b c"
    assert found["speedup"] == {"torch": None, "absent": None}


def test_every_peer_that_is_shipped_can_be_found():
    """Of each, the module and function are there; whether its libraries are is another matter."""
    for name in ("torch", "torch-compiled", "sentence-transformers", "sentence-transformers-onnx",
                 "sentence-transformers-openvino", "optimum", "faiss", "usearch"):  # fmt: skip
        module, _, function = PEERS[name].maker.partition(":")
        source = Path(against.__file__).with_name(f"{module.rpartition('.')[2]}.py").read_text(encoding="utf-8")
        assert f"def {function}(" in source
        assert len(PEERS[name].modules) == len(PEERS[name].distributions) > 0


def test_what_a_side_is_told(tiny_folder):
    entry = compared(tiny_folder, "telling", threads=2)["against"]["telling"]
    given = json.loads(only_skipped(entry).removeprefix("RuntimeError: "))
    assert (given["side"], given["threads"], given["stage"]) == ("telling", 2, None)
    assert (given["OMP_NUM_THREADS"], given["HF_HUB_OFFLINE"]) == ("2", "1")
    assert given["query"] == str(tiny_folder.resolve() / "query")


def test_a_bundle_that_failed_is_not_compared(tiny_folder, tmp_path):
    failed = {**row_of(tiny_folder), "error": "damaged"}
    found = beside_peers(tiny_folder, failed, Plan(against=("same",)))
    assert only_skipped(found["against"]["same"]) == "the bundle itself could not be measured"
    gone = beside_peers(tmp_path / "gone", row_of(tiny_folder), Plan(against=("same", "slow")))
    assert all("gone" in only_skipped(entry) for entry in gone["against"].values())


def test_shared_top():
    assert shared_top([["a", "b"], ["c"], []], [["b", "x"], ["c"], ["d"]]) == 0.75
    assert shared_top([[]], [["a"]]) is None


# ---- whose weights ------------------------------------------------------------------------------------------


def sealed(folder: Path, weights: bytes) -> Path:
    facts = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    facts.pop("files")
    seal(folder, {**facts, "source": {"weights_sha256": hashlib.sha256(weights).hexdigest()}})
    return folder


def run_of(folder: Path, weights: bytes) -> Path:
    (folder / "grade-1").mkdir(parents=True)
    (folder / "grade-1" / "model.safetensors").write_bytes(weights)
    (folder / "ladder.json").write_text("{}", encoding="utf-8")
    return folder


def test_the_weights_are_those_the_bundle_was_made_from(tmp_path, monkeypatch):
    bundle = sealed(write_tiny_bundle(tmp_path / "tiny"), b"ours")
    own, other = run_of(tmp_path / "runs/own", b"ours"), run_of(tmp_path / "runs/other", b"theirs")
    assert discovery.stage_of(bundle, None, tmp_path / "runs") == own / "grade-1"
    assert discovery.stage_of(bundle, own, tmp_path / "none") == own / "grade-1"
    with pytest.raises(
        BenchError, match=r"other has no grade-1 that .*tiny was made from; name its run with --run"
    ):
        discovery.stage_of(bundle, other, tmp_path / "runs")
    (own / "grade-1/model.safetensors").write_bytes(b"later")  # trained on since
    with pytest.raises(BenchError, match="runs/ has no grade-1"):
        discovery.stage_of(bundle, None, tmp_path / "runs")


def test_a_peer_of_torch_is_given_the_stage_or_skipped(tmp_path, monkeypatch):
    bundle = sealed(write_tiny_bundle(tmp_path / "tiny"), b"ours")
    run = run_of(tmp_path / "runs/own", b"ours")
    monkeypatch.setitem(PEERS, "heavy", Peer("planted", "fake_peers:telling", (), (), weights=True))
    told_by = compared(bundle, "heavy", runs=tmp_path / "runs")["against"]["heavy"]
    assert json.loads(only_skipped(told_by).removeprefix("RuntimeError: "))["stage"] == str(run / "grade-1")
    without = compared(bundle, "heavy", "same", runs=tmp_path / "none")["against"]
    assert only_skipped(without["heavy"]).startswith("no torch weights: ")
    assert without["same"]["skipped"] is None


# ---- the report ---------------------------------------------------------------------------------------------


@pytest.fixture
def made(tiny_folder, tmp_path) -> dict:
    pack(tiny_folder, tmp_path / "tiny.zip")
    plan = Plan(questions=40, batches=1, cold_starts=1, against=("same", "broken"))
    report = bench([tiny_folder, tmp_path / "tiny.zip"], plan, dataset="tiny")
    return json.loads(json.dumps(report, allow_nan=False))


def test_the_report_tells_it_everywhere(made):
    assert not list(schema.breaches(made))
    assert all(row["error"] is None for row in made["results"])
    assert "--against same --against broken" in made["command"]
    for row in made["results"]:
        assert row["speedup"] == {"torch": None, "same": row["against"]["same"]["ratio"], "broken": None}
        assert row["mrr_kept"] == 1.0
        assert interval_of(row, "speedup.same") == interval_of(row, "against.same.ratio")
        assert interval_of(row, "speedup.same") == tuple(row["against"]["same"]["interval"])
        assert interval_of(row, "speedup.broken") is None
    assert is_time("against.same.query_ms.p50")
    lines = told.lines(made["results"])
    ratio = f"{told.three_digits(made['results'][0]['speedup']['same'])} ×"
    assert lines[0] == ""
    assert lines[1].split()[:3] == ["bundle", "precision", "beside"]
    assert ratio in lines[2]
    assert lines[-1] == "skipped: broken: RuntimeError: planted failure (2 bundles)"
    seen = page.render(made)
    assert "Beside other stacks" in seen
    written = sheets.to_markdown(made)
    assert f"| {ratio} |" in written
    assert "- skipped: broken: RuntimeError: planted failure\n" in written
    assert ratio in seen
    assert "<b>broken</b> for 2 bundles: RuntimeError: planted failure." in seen


def test_without_peers_nothing_is_said():
    rows = [bench_rows.row()]
    assert told.lines(rows) == []
    assert "Beside other stacks" not in page.render(bench_rows.report(rows))
    assert "Beside other stacks" not in sheets.to_markdown(bench_rows.report(rows))
    assert "--against" not in repeat_command([Path("x")], Plan(), quick=False)


def test_what_a_peer_says_is_escaped():
    evil = "<script>alert(1)</script>"
    entry = {**copy.deepcopy(UNCOMPARED), "skipped": evil}
    report = bench_rows.report([bench_rows.row(against={"torch": entry})])
    rendered = page.render(report)
    assert evil not in rendered
    assert evil not in sheets.to_markdown(report)
    assert "&lt;script&gt;alert(1)" in rendered


def test_a_single_round_has_no_interval():
    times = {"p50": 2.0, "p95": 2.0, "p99": 2.0, "mean": 2.0}
    entry = {
        **UNCOMPARED,
        "ratio": 2.0,
        "ratio_cpu": 1.5,
        "interval": [None, None],
        "query_ms": times,
        "bundle_query_ms": times,
    }
    rows = [bench_rows.row(against={"torch": {**entry, "shared_top": None, "versions": {"torch": None}}})]
    assert [shown for shown, _ in told.cells(rows)[0]][3:] == ["2.00 ×", "–", "1.50 ×", "2.00 ms", "2.00 ms", "–"]
    assert told.legend(rows) == [("torch", "torch, eager, float32; numpy", "torch –")]


def test_the_command(tmp_path, monkeypatch):
    """A search peer on a zip, and torch, which has no run to take its weights from."""
    pytest.importorskip("usearch")
    monkeypatch.chdir(tmp_path)
    pack(write_tiny_bundle(tmp_path / "tiny", precision="int8"), tmp_path / "tiny.zip")
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda name: name)
    done = CliRunner().invoke(main, ["tiny.zip", "--quick", "--against", "usearch", "--against", "torch"])
    assert done.exit_code == 0, done.stderr + done.stdout
    assert done.stderr == ""
    report = json.loads(Path("reports/tiny/report.json").read_text(encoding="utf-8"))
    (row,) = report["results"]
    assert row["against"]["usearch"]["shared_top"] == pytest.approx(1.0, abs=0.05)  # int8 sums against float32's
    assert row["speedup"]["usearch"] > 0
    assert np.isfinite(row["against"]["usearch"]["interval"]).all()
    assert any(line.startswith("skipped: torch: no torch weights: runs/ has no grade-1") for line in
               done.stdout.splitlines())  # fmt: skip
    assert report["command"].endswith("--quick --against usearch --against torch")
