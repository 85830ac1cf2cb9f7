"""Every precision: close to the float graph, whatever the shape, and stored as small as it says."""

import copy
import logging

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper
from transformers import AutoModel

from pmd.export import static
from pmd.export.attention import opened_attention
from pmd.export.graph import CONTRIB, HIDDEN, VECTOR, count_ops, export_tower, graph_bytes
from pmd.export.half import to_half
from pmd.export.int4 import BLOCK, MIN_WORDS, quantise_int4
from pmd.export.int8 import float_products, matrices
from pmd.export.making import PRECISIONS
from pmd.export.parity import GATES
from pmd.export.precisions import BUILDS
from pmd.export.static import ENOUGH, quantise_static, to_round
from pmd.grade import without_pooler
from tests.tiny_towers import (
    MAX_LENGTH,
    assert_safe,
    in_onnx,
    in_torch,
    random_inputs,
    random_texts,
    tiny_config,
    tiny_tower,
)

COSINE = {"fp32": 1 - 1e-6, "fp16": 1 - 1e-4, "int8": 0.995, "int8-static": 0.99, "int4": 0.9}
"""The least that a random tower of width 32 keeps; trained ones keep more."""


@pytest.fixture(scope="module")
def fused():
    return export_tower(tiny_tower()).model


@pytest.fixture(scope="module")
def graphs(fused):
    return {name: build(fused, random_texts()) for name, build in BUILDS.items()}


def cosines(ours, theirs):
    return (ours.astype(np.float64) * theirs).sum(axis=1)


def test_every_precision_has_a_way_and_a_gate():
    """The command offers the names without loading onnx; all tables must have the same ones."""
    assert tuple(BUILDS) == tuple(GATES) == PRECISIONS


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, MAX_LENGTH), (7, 3), (7, 19), (64, 2), (64, MAX_LENGTH)])
def test_any_batch_and_length(fused, graphs, precision, batch, length):
    inputs = random_inputs(batch, length, seed=batch + length)
    (vectors, hidden), (exact, _) = in_onnx(graphs[precision], inputs), in_onnx(fused, inputs)
    assert (vectors.shape, vectors.dtype) == ((batch, 32), np.float32)
    assert (hidden.shape, hidden.dtype) == ((batch, length, 32), np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3 if precision == "fp16" else 1e-5)
    assert cosines(vectors, exact).min() > COSINE[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("padding", ["left", "holes"])
def test_any_padding(fused, graphs, precision, padding):
    inputs = random_inputs(8, 14, padding)
    assert cosines(in_onnx(graphs[precision], inputs)[0], in_onnx(fused, inputs)[0]).min() > COSINE[precision]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8-static", "int4"])
def test_a_text_has_the_vector_in_a_batch_that_it_has_alone(graphs, precision):
    """Of dynamic int8 this is not so, and it is run one text at a time (test_export_bundle)."""
    inputs = random_inputs(9, 17)
    together = in_onnx(graphs[precision], inputs)[0]
    for row in range(9):
        real = int(inputs["attention_mask"][row].sum())
        alone = in_onnx(graphs[precision], {name: part[row : row + 1, :real] for name, part in inputs.items()})[0]
        assert cosines(together[row : row + 1], alone)[0] > (1 - 1e-6 if precision == "fp32" else 1 - 1e-4)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_files_are_models(fused, graphs, precision):
    model = graphs[precision]
    onnx.checker.check_model(model)
    onnx.shape_inference.infer_shapes(model, check_type=True)
    assert [node.name for node in model.graph.input] == [node.name for node in fused.graph.input]
    assert [node.name for node in model.graph.output] == [VECTOR, HIDDEN]
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx", CONTRIB}
    assert graph_bytes(BUILDS[precision](fused, random_texts())) == graph_bytes(model), "the same bytes every time"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_float_graph_is_left_alone(fused, precision):
    before = graph_bytes(fused)
    BUILDS[precision](fused, random_texts())
    assert graph_bytes(fused) == before


# ---- attention apart ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["right", "left", "holes"])
def test_opened_attention_gives_the_same(fused, padding):
    opened = opened_attention(fused)
    assert (count_ops(opened)["Attention"], count_ops(opened)["MultiHeadAttention"]) == (0, 2)
    inputs = random_inputs(6, 11, padding)
    for ours, theirs in zip(in_onnx(opened, inputs), in_onnx(fused, inputs), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)


# ---- fp16 -----------------------------------------------------------------------------------------------------


def test_half_the_file(fused, graphs):
    assert matrices(fused.graph)
    assert matrices(graphs["fp16"].graph) == {}
    sizes = [
        sum(numpy_helper.to_array(w).nbytes for w in graphs[name].graph.initializer) for name in ("fp16", "fp32")
    ]
    assert sizes[0] < 0.52 * sizes[1]


def test_unit_length_survives_half_precision():
    """Sums of squares beyond 65,504 are no number in half precision: pooling must not be converted."""
    tower = tiny_tower()
    for parameter in tower.encoder.layer[-1].output.LayerNorm.parameters():
        parameter.data *= 200
    loud = export_tower(tower).model
    inputs = random_inputs(5, 9)
    vectors = in_onnx(to_half(loud, random_texts()), inputs)[0]
    assert np.isfinite(vectors).all()
    assert cosines(vectors, in_onnx(loud, inputs)[0]).min() > 0.999


# ---- int8-static ----------------------------------------------------------------------------------------------


def test_static_scales_are_in_the_file(graphs):
    ops = count_ops(graphs["int8-static"])
    assert ops["QuantizeLinear"] == 8, "one an activation that a product reads"
    assert ops["DynamicQuantizeLinear"] == 0
    tensors = {tensor.name: tensor for tensor in graphs["int8-static"].graph.initializer}
    opened = {node.output[0]: node.input[0] for node in graphs["int8-static"].graph.node if node.input}
    products = [node for node in graphs["int8-static"].graph.node if node.op_type == "MatMul"]
    stored = [numpy_helper.to_array(tensors[opened[node.input[1]]]) for node in products]
    assert len(stored) == 8
    for weights in stored:
        assert_safe(weights)


def test_all_is_rounded_where_that_costs_little():
    asked = []

    def gap(products):
        asked.append(list(products))
        return ENOUGH

    assert to_round(["a", "b", "c"], gap) == ["a", "b", "c"]
    assert asked == [["a", "b", "c"]], "nothing else is tried"


@given(st.lists(st.floats(0, 1e-2), min_size=1, max_size=9))
def test_the_costliest_products_stay_in_float(costs):
    products = [f"product {index}" for index in range(len(costs))]
    cost = dict(zip(products, costs, strict=True))

    def gap(rounded):
        return sum(cost[name] for name in rounded)

    rounded = to_round(products, gap)
    kept = [name for name in products if name not in rounded]
    assert rounded == [name for name in products if name in rounded], "in their order"
    assert len(kept) <= len(products) / 2
    if len(kept) < len(products) // 2:
        assert gap(rounded) <= ENOUGH
    if kept and len(kept) <= len(products) // 2:
        assert min(cost[name] for name in kept) >= max((cost[name] for name in rounded), default=0)
        assert gap([*rounded, min(kept, key=cost.__getitem__)]) > ENOUGH, "one fewer would not have done"


def test_a_product_that_rounding_ruins_is_found(fused, monkeypatch):
    """One channel a thousand times the others and no evening out: what the search is for."""
    monkeypatch.setattr(static, "equalise", lambda model, texts: copy.deepcopy(model))
    wide = copy.deepcopy(fused)
    weights = {weight.name: weight for weight in wide.graph.initializer}
    node = next(node for node in wide.graph.node if node.op_type == "SkipLayerNormalization")
    (reader,) = (n for n in wide.graph.node if n.op_type == "MatMul" and n.input[0] == node.output[0])
    for name, factor in ((node.input[2], 1e3), (node.input[3], 1e3), (reader.input[1], 1e-3)):
        values = numpy_helper.to_array(weights[name]).copy()
        values[3] *= factor
        weights[name].CopyFrom(numpy_helper.from_array(values, name))
    monkeypatch.setattr(static, "ENOUGH", 1e-4)
    mixed = quantise_static(wide, random_texts())
    assert len(float_products(mixed)) == 1
    inputs = random_inputs(8, 14)
    exact = in_onnx(wide, inputs)[0]
    found = cosines(in_onnx(mixed, inputs)[0], exact).mean()
    monkeypatch.setattr(static, "ENOUGH", 2.0)
    assert 1 - found < 0.5 * (1 - cosines(in_onnx(quantise_static(wide, random_texts()), inputs)[0], exact).mean())


# ---- int4 -----------------------------------------------------------------------------------------------------


def test_every_product_is_in_blocks(graphs):
    ops = count_ops(graphs["int4"])
    assert (ops["MatMulNBits"], ops["MatMul"], ops["Attention"]) == (8, 0, 0)
    assert {
        attribute.i
        for node in graphs["int4"].graph.node
        for attribute in node.attribute
        if attribute.name == "block_size"
    } == {BLOCK}


def test_a_large_vocabulary_is_in_blocks_and_a_small_one_in_rows(graphs):
    assert count_ops(graphs["int4"])["GatherBlockQuantized"] == 0
    exact = export_tower(tiny_tower(tiny_config(vocab_size=MIN_WORDS))).model
    large = quantise_int4(exact, random_texts())
    assert count_ops(large)["GatherBlockQuantized"] == 1
    four_bit = [w for w in large.graph.initializer if w.data_type in (TensorProto.INT4, TensorProto.UINT4)]
    assert [list(w.dims) for w in four_bit] == [[MIN_WORDS, 32]]
    inputs = random_inputs(4, 9)
    assert cosines(in_onnx(large, inputs)[0], in_onnx(exact, inputs)[0]).min() > 0.9


def test_the_quantisers_set_up_of_logging_is_undone(fused):
    root = logging.getLogger()
    before = root.handlers[:], root.level
    quantise_int4(fused, random_texts())
    assert (root.handlers, root.level) == before


@pytest.mark.slow
@pytest.mark.parametrize("layers", [12, 9, 6, 3])
def test_bert_base_in_every_precision(layers):
    """The paper's encoder and its grades: the architecture at full width, random weights."""
    config = tiny_config(
        num_hidden_layers=layers,
        num_attention_heads=12,
        hidden_size=768,
        intermediate_size=3072,
    )
    with torch.random.fork_rng():
        torch.manual_seed(layers)
        tower = without_pooler(AutoModel.from_config(config)).eval()  # as BERT starts: normal weights of 0.02
    exported = export_tower(tower)
    assert exported.complete
    inputs = random_inputs(5, 17)
    exact = in_torch(tower, inputs)[0]
    for precision, build in BUILDS.items():
        vectors = in_onnx(build(exported.model, random_texts()), inputs)[0]
        assert cosines(vectors, exact).min() > COSINE[precision], precision
