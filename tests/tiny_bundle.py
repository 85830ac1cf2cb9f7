"""A whole bundle in miniature, written without torch: 12 entities, 3 relations, towers of 16 dimensions.

The towers are Gather, masked mean and normalisation, so `tower_vectors` can say in numpy what they must give.
In the int8 variant the graph quantises its hidden states as it goes, so that what it gives depends on the whole
batch, as real dynamic int8 graphs do.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from pmd.serving.bundle import CARD, CONFIG, ENTITY, MODEL, QUERY, TOKENIZER, seal, write_tables
from pmd.serving.known import TEST, VALID, KnownAnswers
from pmd.serving.manifest import SCHEMA
from pmd.serving.neighbours import NeighbourGraph, reranked
from pmd.serving.ranking import FloatArray, evaluate
from pmd.serving.rows import EntityRow, RelationRow
from pmd.serving.tables import Tables
from pmd.serving.texts import Templates, TextBuilder
from pmd.serving.tokenization import Text, TextTokenizer
from pmd.serving.vectors import VectorTable

WIDTH, MAX_TOKENS = 16, 24
RERANK = {"hops": 1, "weight": 0.2}
LONG = " ".join(["the", "muscle", "that", "moves", "blood", "in", "a", "body"] * 3)  # 24 words: not short

ENTITIES = (
    EntityRow("aspirin", "aspirin", "a drug against pain and fever"),
    EntityRow("ibuprofen", "ibuprofen", "a drug against pain"),
    EntityRow("insulin", "insulin", ""),
    EntityRow("heart", "heart", LONG),
    EntityRow("pancreas", "pancreas", "an organ"),
    EntityRow("body", "body", ""),
    EntityRow("fever", "fever", "a hot body"),
    EntityRow("pain", "pain", ""),
    EntityRow("diabetes", "diabetes", "too much sugar in blood"),
    EntityRow("heart_attack", "heart attack", "sudden pain in the heart"),
    EntityRow("cold_illness", "cold", "an illness with fever"),
    EntityRow("cold_weather", "cold", "weather without heat"),
)
RELATIONS = (RelationRow("treats", "treats"), RelationRow("part_of", "part of"), RelationRow("causes", "causes"))

TRAIN = (
    ("aspirin", "treats", "pain"),
    ("aspirin", "treats", "fever"),
    ("ibuprofen", "treats", "pain"),
    ("insulin", "treats", "diabetes"),
    ("heart", "part_of", "body"),
    ("heart_attack", "causes", "pain"),
    ("cold_illness", "causes", "fever"),
    ("cold_weather", "causes", "cold_illness"),
    ("diabetes", "causes", "heart_attack"),
)
VALID_TRIPLES = (("ibuprofen", "treats", "fever"), ("cold_illness", "causes", "pain"))
TEST_TRIPLES = (
    ("pancreas", "part_of", "body"),
    ("aspirin", "treats", "heart_attack"),
    ("heart_attack", "causes", "fever"),
    ("fever", "causes", "cold_illness"),  # a neighbour of its own answer: re-ranking changes this one
)


def indexed(triples: tuple[tuple[str, str, str], ...]) -> np.ndarray:
    """Triples of ids as int64 (N, 3)."""
    entity = {row.id: index for index, row in enumerate(ENTITIES)}
    relation = {row.id: index for index, row in enumerate(RELATIONS)}
    return np.array([(entity[h], relation[r], entity[t]) for h, r, t in triples], dtype=np.int64)


def tokenizer_json() -> str:
    """A word-level tokenizer that knows every word of the tiny graph and words texts as BERT does."""
    texts = [f"{row.name} {row.description}" for row in ENTITIES] + [row.text for row in RELATIONS]
    words = sorted({word for text in texts for word in text.split()} | {"inverse", ":"})
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return tokenizer.to_str()


def embeddings() -> tuple[FloatArray, FloatArray]:
    """Word and segment embeddings, float32 (V, D) and (2, D); the same on every call."""
    rng = np.random.default_rng(0)
    size = Tokenizer.from_str(tokenizer_json()).get_vocab_size()
    return rng.normal(size=(size, WIDTH)).astype(np.float32), rng.normal(size=(2, WIDTH)).astype(np.float32)


def tower_vectors(texts: Sequence[Text]) -> FloatArray:
    """What a float tower gives for texts, computed in numpy: normalised mean of the token embeddings. (N, D)."""
    words, segments = embeddings()
    table = TextTokenizer(tokenizer_json(), MAX_TOKENS)(texts)
    hidden = words[table.ids] + segments[table.types]
    means = np.stack([part.mean(axis=0) for part in np.split(hidden, table.offsets[1:-1])])
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def tower_graph(*, quantised: bool) -> bytes:
    """An ONNX tower with the inputs and outputs of every bundle."""
    words, segments = embeddings()
    constants = {
        "words": words,
        "segments": segments,
        "axis_1": np.array([1], np.int64),
        "axis_2": np.array([2], np.int64),
        "tiny": np.array(1e-12, np.float32),
    }
    hidden = "summed" if quantised else "last_hidden_state"
    nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["word"]),
        helper.make_node("Gather", ["segments", "token_type_ids"], ["segment"]),
        helper.make_node("Add", ["word", "segment"], [hidden]),
    ]
    if quantised:
        nodes += [
            helper.make_node("DynamicQuantizeLinear", ["summed"], ["steps", "step", "zero"]),
            helper.make_node("DequantizeLinear", ["steps", "step", "zero"], ["last_hidden_state"]),
        ]
    nodes += [
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "axis_2"], ["mask_column"]),
        helper.make_node("Mul", ["last_hidden_state", "mask_column"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "axis_1"], ["total"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "axis_1"], ["count"], keepdims=1),
        helper.make_node("Div", ["total", "count"], ["mean"]),
        helper.make_node("Mul", ["mean", "mean"], ["square"]),
        helper.make_node("ReduceSum", ["square", "axis_1"], ["squared_length"], keepdims=1),
        helper.make_node("Add", ["squared_length", "tiny"], ["safe"]),
        helper.make_node("Sqrt", ["safe"], ["length"]),
        helper.make_node("Reciprocal", ["length"], ["shrink"]),
        helper.make_node("Mul", ["mean", "shrink"], ["sentence_embedding"]),
    ]
    tokens = ("input_ids", "attention_mask", "token_type_ids")
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"]) for name in tokens],
        [
            helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["batch", WIDTH]),
            helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "tokens", WIDTH]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def tiny_tables(vectors: str = "float32") -> Tables:
    """The tiny graph, with vectors from `tower_vectors`, as float32 or int8."""
    splits = [indexed(part) for part in (TRAIN, VALID_TRIPLES, TEST_TRIPLES)]
    known = KnownAnswers.from_triples(len(ENTITIES), len(RELATIONS), *splits)
    graph = NeighbourGraph.from_triples(len(ENTITIES), splits[0])
    builder = text_builder(known, graph)
    exact = tower_vectors([builder.entity(index) for index in range(len(ENTITIES))]).astype(np.float32)
    table = VectorTable.quantised(exact) if vectors == "int8" else VectorTable(exact)
    return Tables(ENTITIES, RELATIONS, table, known, graph)


def text_builder(known: KnownAnswers, graph: NeighbourGraph) -> TextBuilder:
    """The texts of the tiny graph."""
    names = [row.name for row in ENTITIES]
    descriptions = [row.description for row in ENTITIES]
    return TextBuilder(names, descriptions, [row.text for row in RELATIONS], Templates(), graph, known)


def write_tiny_bundle(folder: Path, *, precision: str = "fp32", entity_tower: bool = True) -> Path:
    """Write the bundle into a new folder; precision "fp32" (float32 vectors) or "int8"; returns the folder."""
    vectors = "int8" if precision == "int8" else "float32"
    tables = tiny_tables(vectors)
    for tower in (QUERY, ENTITY) if entity_tower else (QUERY,):
        write_tower(folder / tower, quantised=precision == "int8")
    write_tables(folder, tables)
    (folder / CARD).write_text("# A tiny bundle for tests\n", encoding="utf-8")
    seal(folder, tiny_facts(tables, precision, vectors))
    return folder


def write_tower(folder: Path, *, quantised: bool) -> None:
    """Write a tower's graph, tokenizer and the small files that Hub tools look for."""
    (folder / MODEL).parent.mkdir(parents=True)
    (folder / MODEL).write_bytes(tower_graph(quantised=quantised))
    (folder / TOKENIZER).write_text(tokenizer_json(), encoding="utf-8")
    small = {
        CONFIG: {"model_type": "bert", "hidden_size": WIDTH},
        "tokenizer_config.json": {"model_max_length": 24},
    }
    for name, content in small.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")


def tiny_facts(tables: Tables, precision: str, vectors: str) -> dict[str, object]:
    """The manifest without its files; the metrics are those of the numpy towers with float vectors."""
    builder = text_builder(tables.known, tables.graph)
    exact = tables.vectors.vectors()

    def scores(heads: np.ndarray, relations: np.ndarray) -> FloatArray:
        pairs = [builder.query(int(head), int(relation)) for head, relation in zip(heads, relations, strict=True)]
        return tower_vectors(pairs) @ exact.T

    known = tables.known
    near = reranked(scores, tables.graph, hops=1, weight=0.2)
    return {
        "schema": SCHEMA,
        "dataset": "tiny",
        "method": "pmd",
        "stage": "grade-1",
        "grade": 1,
        "precision": precision,
        "encoder": "tiny",
        "layers": 1,
        "width": WIDTH,
        "max_tokens": MAX_TOKENS,
        "parameters": 1000,
        "seed": 0,
        "templates": Templates().as_dict(),
        "rerank": RERANK,
        "vectors": {"dtype": vectors},
        "parity": {"texts": 12, "max_cosine_gap": 0.0, "mrr_kept": 1.0, "gate": {}},
        "metrics": {
            "valid": evaluate(scores, known.triples(VALID), known),
            "test": evaluate(scores, known.triples(TEST), known),
            "test_reranked": evaluate(near, known.triples(TEST), known),
            "teacher_test_mrr": None,
        },
        "fused": {"query": {}, "entity": {}},
        "source": {"weights_sha256": "0" * 64},
        "created_by": "pmd-kgc tests",
    }
