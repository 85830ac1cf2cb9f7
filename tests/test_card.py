"""The model card's header as the Hub reads it, and what it says of where a bundle comes from."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import yaml
from huggingface_hub import ModelCard

from pmd.export.card import model_card
from pmd.export.header import hub_id
from pmd.export.source import Run
from pmd.published import KNOWN
from pmd.serving.manifest import parse_manifest
from tests.tiny_encoder import tiny_graph
from tests.tiny_exports import export_bundles
from tests.tiny_run import write_run

MINILM = KNOWN["all-MiniLM-L6-v2"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return export_bundles(tmp_path_factory.mktemp("exports"), ["fp32"])["fp32"]


@pytest.fixture(scope="module")
def facts(bundle):
    return parse_manifest((bundle / "manifest.json").read_bytes(), "manifest.json")


def header(text):
    """The header as the Hub's library reads it, which must read it as plain YAML does."""
    found = ModelCard(text).data.to_dict()
    assert found == yaml.safe_load(text.split("---\n")[1])
    return found


def test_the_hub_reads_the_card(bundle, facts):
    card = ModelCard.load(bundle / "README.md")
    assert card.text.lstrip().startswith(f"# {bundle.name}\n")
    found = header((bundle / "README.md").read_text())
    results = found.pop("model-index")
    assert found == {
        "library_name": "pmd-kgc",
        "license": "other",
        "license_name": "of-the-encoder-and-the-dataset",
        "pipeline_tag": "feature-extraction",
        "tags": [
            "knowledge-graph", "knowledge-graph-completion", "link-prediction", "onnx", "onnxruntime", "fp32",
        ],
    }  # fmt: skip
    assert [entry["name"] for entry in results] == [bundle.name]


def test_metrics_are_those_of_the_manifest(bundle, facts):
    test, valid = ModelCard.load(bundle / "README.md").data.to_dict()["model-index"][0]["results"]
    assert (test["dataset"]["name"], test["dataset"]["split"]) == ("tiny", "test")
    assert test["task"] == {"type": "graph-ml", "name": "Link prediction"}
    assert {entry["type"]: entry["value"] for entry in test["metrics"]} == {
        key: pytest.approx(facts["metrics"]["test"][key], abs=1e-6)
        for key in ("mrr", "hits@1", "hits@3", "hits@10", "mean_rank")
    }
    assert valid["dataset"]["split"] == "valid"
    (measured,) = valid["metrics"]
    assert measured["value"] == pytest.approx(facts["parity"]["mrr_bundle"], abs=1e-6)
    assert "of this bundle" in measured["name"]


def test_the_base_model_is_in_the_header(facts, tmp_path):
    text = model_card("fp32", facts, tiny_graph(), tmp_path, {}, base_model=MINILM.hub_id)
    assert header(text)["base_model"] == MINILM.hub_id


def test_without_a_test_split(facts, tmp_path):
    bare = copy.deepcopy(facts)
    bare["metrics"].update(test=None, test_reranked=None)
    (results,) = header(model_card("bare", bare, tiny_graph(), tmp_path, {}))["model-index"][0]["results"]
    assert results["dataset"]["split"] == "valid"


@pytest.mark.parametrize("name", ["null", "yes", "1e3", "a: b # c", "'\"\n---", "- x", "Wörter, 知識"])
def test_any_dataset_name_survives(facts, tmp_path, name):
    named = {**facts, "dataset": name}
    found = ModelCard(model_card("a: bundle", named, tiny_graph(), tmp_path, {})).data.to_dict()
    assert found["model-index"][0]["name"] == "a: bundle"
    assert {entry["dataset"]["name"] for entry in found["model-index"][0]["results"]} == {name}


@pytest.mark.parametrize(
    ("encoder", "sha256", "expected"),
    [
        ("all-MiniLM-L6-v2", MINILM.sha256, MINILM.hub_id),
        ("sentence-transformers/all-MiniLM-L6-v2", None, MINILM.hub_id),
        ("all-MiniLM-L6-v2", "0" * 64, None),
        ("google-bert/bert-base-uncased", "0" * 64, "google-bert/bert-base-uncased"),
        ("bert-base-uncased", None, "google-bert/bert-base-uncased"),
        ("some-encoder", None, None),
        ("encoders/mine", None, None),
        ("./mine", None, None),
        ("/models/mine", None, None),
        ("~/mine", None, None),
        ("a/b/c", None, None),
        ("no spaces/allowed here", None, None),
    ],
)
def test_only_what_the_hub_has_is_named_as_base(encoder, sha256, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "encoders" / "mine").mkdir(parents=True)
    assert hub_id(encoder, sha256) == expected


def test_the_base_is_the_encoder_that_the_stage_began_as(tmp_path):
    root = shutil.copytree(write_run(tmp_path), tmp_path / "again")
    facts = json.loads((root / "run.json").read_text())
    assert Run.open(root).base_model(Run.open(root).students[2]) is None, "the tiny run names no encoder"
    facts["recipe"] |= {"encoder": "big/teacher", "student_encoder": "all-MiniLM-L6-v2"}
    facts["encoder"] = {"sha256": "0" * 64, "student_sha256": MINILM.sha256}
    (root / "run.json").write_text(json.dumps(facts))
    run = Run.open(root)
    assert run.base_model(run.students[2]) == MINILM.hub_id
    assert run.base_model(run.teacher) == "big/teacher"
    made = export_bundles(tmp_path, ["fp32"], run=root)["fp32"]
    assert ModelCard.load(made / "README.md").data.base_model == MINILM.hub_id
