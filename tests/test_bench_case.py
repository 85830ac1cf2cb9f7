"""Known truths must come out of the child processes, and whatever breaks must become an error row."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_bundle
from tiny_bundle import write_tiny_bundle

from pmd.benchmarks import case, discovery
from pmd.benchmarks.bench import bench
from pmd.benchmarks.case import Plan
from pmd.benchmarks.errors import BenchError, MeasureError
from pmd.serving.archive import pack
from pmd.serving.bundle import MANIFEST, MODEL, QUERY, VECTORS, seal
from pmd.serving.errors import BundleError
from pmd.serving.rows import EntityRow

QUICK = Plan(questions=20, lap_limit_s=0, batches=1, cold_starts=1)
WORDS = [f"{first}{last}" for first in ("ba", "co", "di", "fu") for last in ("l", "m", "n", "r", "s")]
PLANTED = """
import sys, time
from pmd.benchmarks import child
from pmd.serving.scorer import Scorer
honest = Scorer.top_tails, Scorer.top_heads
def planted(index):
    def answer(*args, **options):
        {work}
        return honest[index](*args, **options)
    return answer
Scorer.top_tails, Scorer.top_heads = planted(0), planted(1)
code = child.main(sys.argv[1:])
sys.exit(code)
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


def speed(bundle: Path, child: tuple[str, ...] = case.CHILD, questions: int = 20) -> dict:
    asked = {"split": "test", "questions": questions, "lap_limit_s": 0, "batches": 1}
    return case.run_child({"task": "speed", "bundle": str(bundle), **asked}, Plan(child=child), 120)


def child_of(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def reseal(folder: Path, **changes: object) -> Path:
    """Write the manifest again, after files or facts have changed."""
    facts = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    seal(folder, {**{key: value for key, value in facts.items() if key != "files"}, **changes})
    return folder


# ---- known truths -----------------------------------------------------------------------------------------


def test_a_planted_sleep_moves_the_median_by_as_much(bundle, tmp_path):
    """Bounds: 5 %, and the noise of the same run: p50's intervals, and how far its sleeps overslept in the median.

    The injected scorer does nothing else, so that a busy machine disturbs only the sleep, which tells its length.
    """
    notes = tmp_path / "notes"
    injected = f"""
import sys, time
from pmd.benchmarks import child
from pmd.serving.scorer import Scorer
notes = []
def answer(*_, **options):
    begin = time.perf_counter()
    {{work}}
    notes.append(time.perf_counter() - begin)
    return []
Scorer.top_tails = Scorer.top_heads = answer
code = child.main(sys.argv[1:])
open({str(notes)!r}, "w").write(" ".join(map(str, notes[:260])))  # single questions: batches come later
sys.exit(code)
"""
    plain = speed(bundle, child_of(injected.format(work="pass")), questions=200)
    asleep = speed(bundle, child_of(injected.format(work="time.sleep(0.002)")), questions=200)
    moved = asleep["query_ms"]["p50"] - plain["query_ms"]["p50"]
    overslept = 1000 * float(np.median(np.loadtxt(notes))) - 2
    noise = sum((high - low) / 2 for low, high in (x["intervals"]["query_ms.p50"] for x in (plain, asleep)))
    assert 0 <= overslept
    assert 2 - 0.1 - noise <= moved - overslept <= 2 + 0.1 + noise


def test_a_planted_sleep_is_in_every_figure_of_time(bundle):
    found = speed(bundle, child_of(PLANTED.format(work="time.sleep(0.01)")))
    assert found["query_ms"]["p50"] >= 10
    assert found["query_ms"]["mean"] >= 10
    for batch in found["batches"]:
        assert batch["queries_per_second"] <= batch["size"] / 0.01
    assert found["cores_busy"] < 0.9  # asleep most of the time


def test_throughput_is_told_for_every_size_and_the_largest_is_the_one(bundle):
    found = speed(bundle)
    assert [batch["size"] for batch in found["batches"]] == [1, 2, 4, 8, 16, 32, 64]
    assert found["batch_queries_per_second"] == found["batches"][-1]["queries_per_second"] > 0


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="a core cannot be crowded on purpose here")
def test_a_core_that_others_take_is_said(bundle):
    crowded = """
import os, subprocess, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
from pmd.benchmarks import child
code = child.main(sys.argv[1:])
for hog in hogs:
    hog.kill()
"""
    found = speed(bundle, child_of(crowded), questions=1000)
    assert found["disturbed"] is True
    assert found["cores_busy"] < 0.6
    assert found["disturbance"]["beats"] == 100


def test_a_planted_allocation_shows_in_the_peak(bundle):
    plain = speed(bundle)
    work = "Scorer.ballast = getattr(Scorer, 'ballast', None) or bytearray(b'x') * (100 << 20)"
    heavy = speed(bundle, child_of(PLANTED.format(work=work)))
    for name in ("peak_rss_bytes", "private_dirty_bytes"):
        assert 95 << 20 <= heavy[name] - plain[name] <= 115 << 20


def test_shuffled_vectors_send_the_mrr_down(tmp_path):
    good = write_tiny_bundle(tmp_path / "good")
    tables = tiny_bundle.tiny_tables()
    builder = tiny_bundle.text_builder(tables.known, tables.graph)
    vectors = tables.vectors.vectors().copy()
    for head, relation, tail in tables.known.triples(2):  # each answer stands where its question points
        vectors[tail] = tiny_bundle.tower_vectors([builder.query(int(head), int(relation))])[0]
    np.save(good / VECTORS, vectors)
    bad = write_tiny_bundle(tmp_path / "bad")
    np.save(bad / VECTORS, np.roll(vectors, 5, axis=0))
    trained = {"test": {"mrr": 0.8}, "teacher_test_mrr": 0.9}
    row = case.measure(reseal(good, metrics=trained), QUICK)
    assert row["error"] is None
    assert row["metrics"]["tail"]["mrr"] == 1.0
    assert row["mrr_kept"] == pytest.approx(row["metrics"]["mrr"] / 0.8)
    assert row["mrr_of_teacher"] == pytest.approx(row["metrics"]["mrr"] / 0.9)
    request = {"task": "quality", "bundle": str(reseal(bad)), "split": "test"}
    assert case.run_child(request, Plan(), 120)["metrics"]["tail"]["mrr"] < 0.7


def test_shuffled_vectors_send_the_mrr_to_chance(tmp_path, monkeypatch):
    """400 entities, each the answer to one question: in place all are found, shuffled the ranks are uniform."""
    count = 400
    rows = tuple(EntityRow(f"e{n}", f"{WORDS[n // 20]}{WORDS[n % 20]}", "") for n in range(count))
    triples = tuple((f"e{n}", "treats", f"e{(n + 1) % count}") for n in range(count))
    known = (("e0", "part_of", "e1"), ("e1", "part_of", "e2"))
    for name, value in (("ENTITIES", rows), ("TRAIN", known[:1]), ("VALID_TRIPLES", known[1:])):
        monkeypatch.setattr(tiny_bundle, name, value)
    monkeypatch.setattr(tiny_bundle, "TEST_TRIPLES", triples)
    monkeypatch.setattr(tiny_bundle, "RERANK", None)
    folder = write_tiny_bundle(tmp_path / "chance")
    tables = tiny_bundle.tiny_tables()
    builder = tiny_bundle.text_builder(tables.known, tables.graph)
    vectors = np.empty((count, tiny_bundle.WIDTH), np.float32)
    for head, relation, tail in tables.known.triples(2):
        vectors[tail] = tiny_bundle.tower_vectors([builder.query(int(head), int(relation))])[0]
    shuffled = vectors[np.random.default_rng(0).permutation(count)]
    found = {}
    for name, table in (("in place", vectors), ("shuffled", shuffled)):
        np.save(folder / VECTORS, table)
        request = {"task": "quality", "bundle": str(reseal(folder)), "split": "test"}
        found[name] = case.run_child(request, Plan(), 120)
    assert found["in place"]["metrics"]["tail"]["mrr"] > 0.9
    harmonic = [float((1 / np.arange(1, count + 1) ** power).sum()) / count for power in (1, 2)]
    deviation = ((harmonic[1] - harmonic[0] ** 2) / count) ** 0.5
    assert abs(found["shuffled"]["metrics"]["tail"]["mrr"] - harmonic[0]) < 3 * deviation
    assert abs(found["shuffled"]["analysis"]["filtered"]["realistic"]["tail"]["amri"]) < 0.1


def test_a_zip_gives_the_figures_of_its_folder(bundle, tmp_path):
    pack(bundle, tmp_path / "tiny.zip")
    ticks: list[str] = []
    row = case.measure(tmp_path / "tiny.zip", QUICK, ticks.append)
    assert row["error"] is None
    assert row["bundle"] == "tiny.zip"
    assert ticks == ["tiny.zip: accuracy", "tiny.zip: speed and memory", "tiny.zip: cold start"]
    assert row["metrics"] == json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))["metrics"]["test"]
    assert row["mrr_kept"] == 1.0
    assert row["metrics_reranked"] is not None
    assert row["bundle_bytes"] == (tmp_path / "tiny.zip").stat().st_size
    assert sum(row["cold_start_parts_ms"].values()) == pytest.approx(row["cold_start_ms"])
    assert "question" not in row


def test_without_reranking_settings_reranked_is_null(tmp_path):
    folder = reseal(write_tiny_bundle(tmp_path / "tiny"), rerank=None)
    request = {"task": "quality", "bundle": str(folder), "split": "valid"}
    found = case.run_child(request, Plan(), 120)
    assert found["metrics_reranked"] is None
    assert found["metrics"]["queries"] == 2 * len(tiny_bundle.VALID_TRIPLES)


def test_the_child_loads_the_runtime_and_nothing_of_the_report(bundle, tmp_path):
    code = (
        "import sys, json; from pmd.benchmarks import child; code = child.main(sys.argv[1:]);"
        f"open({str(tmp_path / 'modules')!r}, 'w').write(' '.join({{m.split('.')[0] for m in sys.modules}}))"
    )
    speed(bundle, child_of(code))
    loaded = set((tmp_path / "modules").read_text(encoding="utf-8").split())
    assert {"numpy", "onnxruntime", "tokenizers"} <= loaded
    assert not loaded & {"torch", "transformers", "onnx", "matplotlib", "jinja2", "psutil", "click"}


def test_threads_are_set_before_the_child_starts():
    code = "import os, json; print(json.dumps({k: v for k, v in os.environ.items() if k.endswith('_THREADS')}))"
    found = case.run_child({"task": "x"}, Plan(threads=3, child=child_of(code)), 60)
    assert {*case.THREAD_VARIABLES, "RAYON_NUM_THREADS"} <= set(found)
    assert set(found.values()) == {"3"}


def test_sizes_with_and_without_the_entity_tower(bundle, tmp_path):
    slim = write_tiny_bundle(tmp_path / "slim", entity_tower=False)
    sizes = discovery.sizes_of(bundle, discovery.manifest_of(bundle))
    entity = sum(path.stat().st_size for path in (bundle / "entity").rglob("*") if path.is_file())
    assert sizes["bundle_bytes"] - sizes["answering_bytes"] == entity > 0
    slim_sizes = discovery.sizes_of(slim, discovery.manifest_of(slim))
    assert slim_sizes["bundle_bytes"] == slim_sizes["answering_bytes"]


# ---- what breaks ------------------------------------------------------------------------------------------


def test_a_changed_byte_becomes_an_error_row_that_is_still_named(tmp_path):
    folder = write_tiny_bundle(tmp_path / "tiny")
    data = bytearray((folder / VECTORS).read_bytes())
    data[-1] ^= 0x40
    (folder / VECTORS).write_bytes(data)
    row = case.measure(folder, QUICK)
    assert "entities.npy is not what the manifest's sha256 says" in row["error"]
    assert (row["grade"], row["precision"], row["metrics"]) == (1, "fp32", None)
    assert row["query_ms"] == {"p50": None, "p95": None, "p99": None, "mean": None}


def test_an_unreadable_manifest_becomes_an_error_row(tmp_path):
    folder = write_tiny_bundle(tmp_path / "tiny")
    (folder / MANIFEST).write_text("{", encoding="utf-8")
    row = case.measure(folder, Plan())
    assert "is not JSON" in row["error"]
    assert row["bundle"] == "tiny"
    assert row["grade"] is None


@pytest.mark.parametrize("where", ["entities", "query"])
def test_nan_becomes_an_error_row(tmp_path, where):
    folder = write_tiny_bundle(tmp_path / "tiny")
    if where == "entities":
        vectors = np.load(folder / VECTORS)
        vectors[3, 5] = np.nan
        np.save(folder / VECTORS, vectors)
    else:
        graph = folder / QUERY / MODEL
        words = tiny_bundle.embeddings()[0].tobytes()
        data = graph.read_bytes()
        assert words in data
        graph.write_bytes(data.replace(words, np.full(len(words) // 4, np.nan, np.float32).tobytes()))
    row = case.measure(reseal(folder), QUICK)
    assert "NaN" in row["error"] or "longer than 1" in row["error"]
    assert row["metrics"] is None


def test_a_bundle_that_hangs_leaves_the_others_in_the_report(bundle, tmp_path):
    hanging = write_tiny_bundle(tmp_path / "hanging")
    code = """
import sys, time
if "hanging" in sys.argv[1]:
    time.sleep(600)
from pmd.benchmarks import child
sys.exit(child.main(sys.argv[1:]))
"""
    plan = replace(QUICK, quality_limit_s=20, child=child_of(code))
    rows = {row["bundle"]: row for row in bench([hanging, bundle], plan)["results"]}
    assert rows["hanging"]["error"] == "quality: no answer within 20 s, given up"
    assert rows["tiny"]["error"] is None
    assert rows["tiny"]["query_ms"]["p50"] > 0


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import time; time.sleep(600)", "quality: no answer within 0.3 s, given up"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended by SIGKILL (out of memory?)"),
        ("import sys; sys.exit('no space left')", "exit code 1: no space left"),
        ("print('[1, 2]')", "exit code 0: nothing on stderr"),
        ('print(\'{"error": "planted"}\')', "planted"),
    ],
)
def test_a_child_that_hangs_dies_or_talks_nonsense(bundle, code, message):
    row = case.measure(bundle, Plan(quality_limit_s=0.3 if "sleep" in code else 60, child=child_of(code)))
    assert message in row["error"]
    assert row["metrics"] is None
    assert row["parameters"] == 1000


def test_an_unexpected_error_of_the_child_is_named(bundle):
    with pytest.raises(MeasureError, match="KeyError: 'split'"):
        case.run_child({"task": "quality", "bundle": str(bundle)}, Plan(), 60)


# ---- which bundles ----------------------------------------------------------------------------------------


def run_folder(runs: Path, name: str, weights: bytes, written: int) -> str:
    """A run with one stage; returns the sha256 of its weights."""
    stage = runs / name / "grade-1"
    stage.mkdir(parents=True)
    (stage / "model.safetensors").write_bytes(weights)
    ladder = runs / name / "ladder.json"
    ladder.write_text("{}", encoding="utf-8")
    os.utime(ladder, ns=(written, written))
    return discovery.sha256_of(stage / "model.safetensors")


def test_the_latest_run_is_the_one_whose_ladder_was_written_last(tmp_path):
    run_folder(tmp_path, "b-old", b"old", 1_000)
    run_folder(tmp_path, "a-new", b"new", 2_000)
    (tmp_path / "unfinished").mkdir()
    assert discovery.latest_run(tmp_path).name == "a-new"


def test_no_run_says_what_to_do(tmp_path):
    with pytest.raises(BenchError, match="name the bundles, or run pmd-train"):
        discovery.latest_run(tmp_path / "runs")


def test_bundles_of_a_run_are_those_made_from_its_weights(tmp_path, caplog):
    mine = run_folder(tmp_path / "runs", "umls", b"mine", 1_000)
    bundles = tmp_path / "bundles"
    ours = reseal(write_tiny_bundle(bundles / "ours"), source={"weights_sha256": mine})
    pack(ours, bundles / "packed.zip")
    write_tiny_bundle(bundles / "others")
    (bundles / "broken.zip").write_bytes(b"PK nothing")
    (bundles / "notes").mkdir()
    found = discovery.bundles_of(tmp_path / "runs" / "umls", bundles)
    assert [path.name for path in found] == ["ours", "packed.zip"]
    assert "broken.zip" in caplog.text


@pytest.mark.parametrize("bundles", ["absent", "runs"])
def test_a_run_without_bundles_says_how_to_export(tmp_path, bundles):
    run_folder(tmp_path / "runs", "umls", b"mine", 1_000)
    with pytest.raises(BenchError, match=r"pmd-export --run .* --all"):
        discovery.bundles_of(tmp_path / "runs" / "umls", tmp_path / bundles)


def test_bundles_of_two_datasets_are_refused_and_a_broken_one_is_not_asked(tmp_path):
    one = write_tiny_bundle(tmp_path / "one")
    broken = write_tiny_bundle(tmp_path / "broken")
    (broken / MANIFEST).write_text("[]", encoding="utf-8")
    with pytest.raises(BundleError):
        discovery.manifest_of(broken)
    assert discovery.dataset_of([broken, one]) == "tiny"
    assert discovery.dataset_of([broken]) is None
    two = reseal(write_tiny_bundle(tmp_path / "two"), dataset="huge")
    with pytest.raises(BenchError, match=r"different datasets \(huge, tiny\)"):
        discovery.dataset_of([one, two])
