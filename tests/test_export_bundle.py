"""Bundles as they come out: what is in them, that they answer as torch does, and what a failure leaves behind."""

import dataclasses
import hashlib
import json

import numpy as np
import onnx
import pytest
import torch

from pmd.batches import tokenise
from pmd.evaluation import model_scores
from pmd.export import bundle as bundle_module
from pmd.export import graph as graph_module
from pmd.export.bundle import write_bundle
from pmd.export.errors import ParityError
from pmd.export.graph import FusedGraph, graph_bytes
from pmd.export.loading import load_stage
from pmd.export.making import PRECISIONS, Making
from pmd.export.norms import open_norms
from pmd.export.parity import GATES, Limit, cosine_gap
from pmd.export.source import Run
from pmd.serving import Scorer
from pmd.serving.bundle import ENTITY, QUERY
from pmd.serving.neighbours import reranked
from pmd.serving.ranking import evaluate
from tests.tiny_encoder import tiny_graph
from tests.tiny_run import MAX_TOKENS, RERANK, TEMPLATES, random_model, write_run

FUSED = {"EmbedLayerNormalization": 1, "Attention": 2, "SkipLayerNormalization": 4, "BiasGelu": 2}
HUB_FILES = {
    "onnx/model.onnx", "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "modules.json", "sentence_bert_config.json", "1_Pooling/config.json",
}  # fmt: skip
TABLES = {"manifest.json", "README.md", "entities.npy", "entities.tsv", "relations.tsv", "known.npz", "graph.npz"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run.open(write_run(tmp_path_factory.mktemp("source")))


@pytest.fixture(scope="module")
def loaded(run):
    return load_stage(run, run.students[2], run.graph())


@pytest.fixture(scope="module")
def ready(loaded):
    return loaded.ready()


@pytest.fixture(scope="module")
def bundles(ready, tmp_path_factory):
    root = tmp_path_factory.mktemp("bundles")
    for precision in PRECISIONS:
        write_bundle(ready, Making(precision), root / precision)
    return root


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_files(bundles, precision):
    expected = TABLES | {f"{tower}/{name}" for tower in ("query", "entity") for name in HUB_FILES}
    assert names(bundles / precision) == expected | (
        {"scales.npy"} if Making(precision).vector_type == "int8" else set()
    )
    listed = manifest(bundles / precision)["files"]
    assert set(listed) == names(bundles / precision) - {"manifest.json"}
    for name, entry in listed.items():
        data = (bundles / precision / name).read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_manifest(bundles, run, loaded):
    facts = manifest(bundles / "int8")
    weights = (run.students[2].folder / "model.safetensors").read_bytes()
    teacher = run.ladder["stages"][0]
    expected = {
        "schema": "pmd-bundle/1", "dataset": "tiny", "method": "pmd", "stage": "grade-2", "grade": 2,
        "precision": "int8", "encoder": "tiny-bert", "layers": 2, "width": 32, "max_tokens": MAX_TOKENS, "seed": 0,
        "parameters": loaded.grade.model.num_parameters, "templates": TEMPLATES.as_dict(), "rerank": RERANK,
        "vectors": {"dtype": "int8"}, "fused": {"query": FUSED, "entity": FUSED},
        "source": {"weights_sha256": hashlib.sha256(weights).hexdigest()},
    }  # fmt: skip
    assert {key: facts[key] for key in expected} == expected
    stage = run.ladder["stages"][2]
    assert facts["metrics"] == {
        **{key: stage[key] for key in ("valid", "test", "test_reranked")},
        "teacher_test_mrr": teacher["test"]["mrr"],
    }
    assert facts["created_by"].startswith("pmd-kgc ")
    assert set(facts["parity"]) >= {
        "texts",
        "max_cosine_gap",
        "max_score_gap",
        "p99_score_gap",
        "mrr_torch",
        "mrr_kept",
    }
    assert facts["parity"]["gate"] == {"mrr_kept": {"at_least": 0.995, "standard_errors": 2.0}}


def test_float_bundle_is_the_torch_model(bundles, loaded):
    scorer = Scorer.load(bundles / "fp32", threads=1, verify=True)
    texts = tokenise(loaded.graph, loaded.grade.tokenizer, TEMPLATES)
    heads, relations = (part.ravel() for part in np.meshgrid(np.arange(12), np.arange(6)))
    scores = model_scores(loaded.grade.model, texts, np.stack([heads, relations], axis=1))
    gap = np.abs(scorer.score_queries(heads, relations) - scores(heads, relations)).max()
    assert gap < 1e-5
    for split in ("train", "valid", "test"):
        triples = scorer.known.triples(("train", "valid", "test").index(split))
        ours, theirs = scorer.evaluate(split), evaluate(scores, triples, scorer.known)
        assert ours["queries"] == theirs["queries"]
        assert ours["mrr"] == pytest.approx(theirs["mrr"], abs=1e-6)
    near = reranked(scores, loaded.graph.neighbours(), hops=1, weight=0.05)
    want = evaluate(near, scorer.known.triples(2), scorer.known)["mrr"]
    assert scorer.evaluate("test", reranked=True)["mrr"] == pytest.approx(want, abs=1e-6)


def test_parity_is_what_the_bundle_does(bundles):
    """The figures of the manifest, measured again from the files alone."""
    for precision in PRECISIONS:
        facts = manifest(bundles / precision)
        mrr = Scorer.load(bundles / precision, threads=1).evaluate("valid")["mrr"]
        assert facts["parity"]["mrr_bundle"] == pytest.approx(mrr, abs=1e-12)
        assert facts["parity"]["mrr_kept"] == pytest.approx(mrr / facts["metrics"]["valid"]["mrr"], abs=1e-9)
    assert manifest(bundles / "fp32")["parity"]["max_score_gap"] < 1e-5


def test_stored_vectors_are_torchs(bundles, loaded):
    for precision in PRECISIONS:
        stored = Scorer.load(bundles / precision, threads=1).bundle.tables.vectors.vectors()
        largest = np.abs(loaded.reference.entities).max()
        step = 0.5 / 127 if Making(precision).vector_type == "int8" else 0.0
        np.testing.assert_allclose(stored, loaded.reference.entities, rtol=0, atol=step * largest + 1e-9)


def test_the_entity_tower_gives_the_stored_vectors_as_nearly_as_the_manifest_says(bundles, loaded):
    """What an entity that is removed and added again from its text will find."""
    for precision in PRECISIONS:
        scorer = Scorer.load(bundles / precision, threads=1)
        again = bundle_module.TowerEncoder.load(scorer.bundle, ENTITY, threads=1)(loaded.texts[ENTITY])
        gap = cosine_gap(loaded.reference.entities, again)
        assert gap <= manifest(bundles / precision)["parity"]["max_cosine_gap"] + 1e-12
        assert gap < (1e-6 if precision == "fp32" else 0.05)


def test_equal_texts_tie_exactly(tmp_path):
    graph = tiny_graph()
    twins = (graph.names[0], graph.names[0], *graph.names[2:])
    train = graph.train[(graph.train[:, [0, 2]] > 1).all(axis=1)]  # without neighbours, texts are names alone
    silent = dataclasses.replace(graph, names=twins, descriptions=("",) * 12, train=train)
    source = Run.open(write_run(tmp_path, silent, {"grade-1": 1}))
    ready = load_stage(source, source.students[1], source.graph()).ready()
    for precision in PRECISIONS:
        write_bundle(ready, Making(precision), tmp_path / precision)
        scores = Scorer.load(tmp_path / precision, threads=1).score_queries(np.arange(12), np.arange(12) % 6)
        np.testing.assert_array_equal(scores[:, 0], scores[:, 1])


def test_a_graph_without_validation_split(tmp_path):
    graph = tiny_graph()
    bare = dataclasses.replace(graph, valid=graph.valid[:0], test=graph.test[:0])
    source = Run.open(write_run(tmp_path, bare, {"grade-1": 1}))
    ready = load_stage(source, source.students[1], source.graph()).ready()
    facts = write_bundle(ready, Making("int8"), tmp_path / "bare")
    assert facts["parity"]["split"] == "train"
    assert facts["metrics"] == dict.fromkeys(("valid", "test", "test_reranked", "teacher_test_mrr"))
    assert "on train" in (tmp_path / "bare" / "README.md").read_text()
    assert len(Scorer.load(tmp_path / "bare", threads=1).top_tails("e1", "isa", k=3)) == 3


def test_same_grade_same_bytes(ready, run, bundles, tmp_path):
    fresh = load_stage(run, run.students[2], run.graph()).ready()
    for name in PRECISIONS:
        write_bundle(fresh, Making(name), tmp_path / name)
        assert names(tmp_path / name) == names(bundles / name)
        for file in names(tmp_path / name):
            assert (tmp_path / name / file).read_bytes() == (bundles / name / file).read_bytes(), file


def test_without_entity_tower(ready, bundles, tmp_path):
    write_bundle(ready, Making("int8", entity_tower=False), tmp_path / "edge")
    assert names(tmp_path / "edge") == {name for name in names(bundles / "int8") if not name.startswith("entity/")}
    ours, theirs = (Scorer.load(folder, threads=1) for folder in (tmp_path / "edge", bundles / "int8"))
    assert ours.top_tails("e1", "isa") == theirs.top_tails("e1", "isa")


def test_card_is_true_to_the_manifest(bundles):
    facts, card = manifest(bundles / "int8"), (bundles / "int8" / "README.md").read_text()
    for expected in (
        "# int8", "Grade 2", "`tiny`", "12 entities, 3 relations", "Scorer.load('int8')", "a small one",
        f"{facts['metrics']['test']['mrr']:.4g}", f"{facts['metrics']['test_reranked']['mrr']:.4g}",
        f"{facts['parity']['mrr_kept']:.2%}", "mrr_kept at least 0.995 within 2 standard errors", "Apache-2.0",
    ):  # fmt: skip
        assert expected in card, expected


def test_the_cards_three_lines_run(bundles, capsys):
    card = (bundles / "fp32" / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    assert len(code.strip().splitlines()) == 3
    exec(code.replace("'fp32'", repr(str(bundles / "fp32"))), {})
    assert "Prediction(" in capsys.readouterr().out


def test_graphs_in_the_bundle(bundles):
    graph = onnx.load(bundles / "fp32" / "query" / "onnx" / "model.onnx")
    assert sum(node.op_type == "Attention" for node in graph.graph.node) == 2
    integer = onnx.load(bundles / "int8" / "entity" / "onnx" / "model.onnx")
    assert sum(node.op_type == "QAttention" for node in integer.graph.node) == 2


# ---- Hub tools ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tower", ["query", "entity"])
def test_transformers_reads_the_tokenizer(bundles, loaded, tower):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bundles / "fp32" / tower)
    texts = loaded.texts[tower]
    for text in texts:
        pair = (text,) if isinstance(text, str) else text
        theirs = tokenizer(*pair, truncation=True)
        ours = loaded.grade.tokenizer([text])
        assert theirs["input_ids"] == ours.ids.tolist()
        assert theirs["token_type_ids"] == ours.types.tolist()
    assert tokenizer.pad_token == "[PAD]"
    long = " ".join(["alpha"] * 100)
    assert len(tokenizer(long, truncation=True)["input_ids"]) == MAX_TOKENS


def test_optimum_opens_a_tower(bundles, loaded):
    optimum = pytest.importorskip("optimum.onnxruntime")
    model = optimum.ORTModelForFeatureExtraction.from_pretrained(bundles / "fp32" / "entity")
    inputs = loaded.grade.tokenizer(loaded.texts[ENTITY]).padded(0)
    hidden = model(**{name: torch.from_numpy(value) for name, value in inputs.items()}).last_hidden_state
    mask = torch.from_numpy(inputs["attention_mask"])[..., None]
    pooled = torch.nn.functional.normalize((hidden * mask).sum(dim=1))
    np.testing.assert_allclose(pooled.numpy(), loaded.reference.entities, rtol=0, atol=1e-5)


# ---- failures -------------------------------------------------------------------------------------------------


def assert_only_a_report(root, name, measure):
    assert [path.name for path in root.iterdir()] == [f"{name}.parity.json"]
    report = json.loads((root / f"{name}.parity.json").read_text())
    assert (report["schema"], report["bundle"]) == ("pmd-parity/1", name)
    assert measure in report["failures"][0]
    return report


def test_wrong_pooling_does_not_pass(ready, run, tmp_path, monkeypatch):
    """The error this gate is for: padding pooled as if it were text."""
    original = graph_module.SentenceTower.forward

    def careless(self, input_ids, attention_mask, token_type_ids):
        _, hidden = original(self, input_ids, attention_mask, token_type_ids)
        return graph_module.unit_length(hidden.sum(dim=1) + 0 * attention_mask.sum()), hidden

    monkeypatch.setattr(graph_module.SentenceTower, "forward", careless)
    broken = load_stage(run, run.students[2], run.graph()).ready()
    with pytest.raises(ParityError, match=r"max_score_gap is .*, needed at most 0\.0001"):
        write_bundle(broken, Making("fp32"), tmp_path / "broken")
    assert assert_only_a_report(tmp_path, "broken", "max_score_gap")["parity"]["max_score_gap"] > 1e-3


def swapped(ready, tower, model):
    twin = dataclasses.replace(ready)
    graph = FusedGraph(model, FUSED, True)
    # where a cached property keeps its value
    twin.__dict__["towers"] = {**ready.towers, tower: dataclasses.replace(ready.towers[tower], graph=graph)}
    return twin


@pytest.mark.parametrize("tower", [QUERY, ENTITY])
@pytest.mark.parametrize("precision", ["fp32"])
def test_nan_does_not_pass(ready, tmp_path, tower, precision):
    model = onnx.ModelProto()
    model.CopyFrom(ready.towers[tower].graph.model)
    for weight in model.graph.initializer:
        if weight.name == "embeddings.LayerNorm.bias":
            weight.raw_data = np.full(32, np.nan, np.float32).tobytes()
    with pytest.raises(ParityError, match="max_score_gap is nan"):
        write_bundle(swapped(ready, tower, model), Making(precision), tmp_path / "nan")
    report = assert_only_a_report(tmp_path, "nan", "max_score_gap")
    assert report["parity"]["max_score_gap"] is None
    assert report["parity"]["mrr_kept"] is None


def test_another_models_tower_does_not_pass(ready, tmp_path):
    other = graph_module.export_tower(random_model(2, seed=99).query)
    with pytest.raises(ParityError):
        write_bundle(swapped(ready, QUERY, other.model), Making("fp32"), tmp_path / "other")


def test_all_broken_limits_are_in_the_message(ready, tmp_path, monkeypatch):
    gate = (Limit("max_score_gap", at_most=-1.0), Limit("mrr_kept", at_least=2.0))
    monkeypatch.setitem(GATES, "fp32", gate)
    with pytest.raises(ParityError) as caught:
        write_bundle(ready, Making("fp32"), tmp_path / "strict")
    assert "max_score_gap is" in str(caught.value)
    assert "mrr_kept is 1, needed at least 2" in str(caught.value)
    assert str(tmp_path / "strict.parity.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_failure_keeps_the_bundle_that_was_there(ready, bundles, tmp_path, monkeypatch):
    write_bundle(ready, Making("fp32"), tmp_path / "mine")
    before = (tmp_path / "mine" / "manifest.json").read_bytes()
    monkeypatch.setitem(GATES, "fp32", (Limit("mrr_kept", at_least=2.0),))
    with pytest.raises(ParityError):
        write_bundle(ready, Making("fp32"), tmp_path / "mine", replace=True)
    assert (tmp_path / "mine" / "manifest.json").read_bytes() == before
    monkeypatch.setitem(GATES, "fp32", GATES["int8"])
    write_bundle(ready, Making("fp32"), tmp_path / "mine", replace=True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"], "a success removes the old report"


@pytest.mark.parametrize("where", ["write_tower", "write_tables", "model_card"])
def test_an_interrupt_leaves_nothing(ready, tmp_path, monkeypatch, where):
    def interrupt(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle_module, where, interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(ready, Making("fp32"), tmp_path / "half")
    assert list(tmp_path.iterdir()) == []


def test_a_changed_dataset_is_said(run, caplog):
    stage = run.students[2]
    then = {**stage.facts, "valid": {**stage.facts["valid"], "mrr": stage.facts["valid"]["mrr"] / 2}}
    assert load_stage(run, dataclasses.replace(stage, facts=then), run.graph()).reference.mrr > 0
    assert "changed since" in caplog.text


def test_no_warning_for_an_unchanged_one(run, caplog):
    assert load_stage(run, run.students[2], run.graph()).reference.mrr > 0
    assert caplog.text == ""


def test_graph_files_are_the_traced_ones(ready, bundles):
    stored = (bundles / "fp32" / "query" / "onnx" / "model.onnx").read_bytes()
    assert stored == graph_bytes(open_norms(ready.towers[QUERY].graph.model))
