"""The peers that are installed, on a trained grade: all of them name the bundle's own answers."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest

from pmd.benchmarks.case import UNMEASURED, Plan
from pmd.benchmarks.peers.against import beside_peers
from pmd.benchmarks.peers.registry import PEERS, why_missing
from pmd.serving.archive import pack

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, dict[str, Path]]:
    """A run and bundles of its grade."""
    pytest.importorskip("torch")
    from tests.tiny_exports import export_bundles
    from tests.tiny_run import write_run

    root = tmp_path_factory.mktemp("trained")
    run = write_run(root)
    return run, export_bundles(root, ["fp32", "int8"], run=run)


def compared(bundle: Path, run: Path, *names: str, threads: int = 1) -> dict:
    row = {"bundle": bundle.name, **copy.deepcopy(UNMEASURED)}
    plan = Plan(questions=20, against=names, run=run, threads=threads, speed_limit_s=300)
    return beside_peers(bundle, row, plan)["against"]


def check(name: str, entry: dict, least: float = 1.0) -> None:
    if why_missing(PEERS[name]):
        assert entry["skipped"] == why_missing(PEERS[name])
        pytest.skip(entry["skipped"])
    assert entry["skipped"] is None, entry["skipped"]
    assert entry["shared_top"] >= least
    assert 0 < entry["interval"][0] <= entry["ratio"] <= entry["interval"][1]
    assert None not in entry["versions"].values()


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_names_the_answers_of_the_fp32_bundle(trained, name):
    if name == "torch-compiled" and not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("torch.compile needs a C++ compiler")
    run, bundles = trained
    check(name, compared(bundles["fp32"], run, name)[name])


@pytest.mark.parametrize(
    "name", ["torch", "sentence-transformers", "sentence-transformers-onnx", "optimum", "faiss"]
)
def test_a_peer_reads_a_zip_with_two_threads(trained, tmp_path, name):
    run, bundles = trained
    pack(bundles["fp32"], tmp_path / "small.zip")
    check(name, compared(tmp_path / "small.zip", run, name, threads=2)[name])


@pytest.mark.parametrize("name", ["sentence-transformers-onnx", "optimum", "usearch"])
def test_a_peer_runs_the_int8_graph(trained, name):
    run, bundles = trained
    check(name, compared(bundles["int8"], run, name)[name], least=0.9)


def test_other_weights_show_in_the_answers(trained, tmp_path, monkeypatch):
    """The share of answers in common is no formality."""
    from pmd.benchmarks import discovery

    run, bundles = trained
    monkeypatch.setattr(discovery, "stage_of", lambda *_: run / "teacher")
    assert compared(bundles["fp32"], run, "torch")["torch"]["shared_top"] < 1
