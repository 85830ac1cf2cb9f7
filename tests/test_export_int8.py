"""int8 graphs: nothing overflows, nothing stays float, and what they give stays close."""

import copy

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from pmd.export import int8 as int8_module
from pmd.export.equalise import equalise, sample
from pmd.export.errors import ExportError
from pmd.export.graph import count_ops, export_tower, graph_bytes
from pmd.export.int8 import PAIR_LIMIT, float_products, quantise_int8, safe_int8
from pmd.export.lookups import open_lookups, quantise_rows
from pmd.export.making import PRECISIONS
from pmd.export.parity import GATES
from pmd.serving.encoder import open_session
from tests.tiny_towers import assert_safe, in_onnx, random_inputs, random_texts, tiny_tower


@pytest.fixture(scope="module")
def fused():
    return export_tower(tiny_tower()).model


@pytest.fixture(scope="module")
def integer(fused):
    return quantise_int8(fused, random_texts())


def weights_of(model, op, slot):
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    return [numpy_helper.to_array(tensors[node.input[slot]]) for node in model.graph.node if node.op_type == op]


def spread_weights(seed, rows, columns):
    """Heavy-tailed weights, some columns much larger than others, one of them zero."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_t(2, (rows, columns)) * np.exp(rng.normal(0, 2, columns))
    weights[:, 0] = 0
    return weights.astype(np.float32)


@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 6))
def test_safe_weights_cannot_overflow(seed, rows, columns):
    weights = spread_weights(seed, rows, columns)
    stored, scales = safe_int8(weights)
    assert (stored.dtype, scales.dtype, stored.shape, scales.shape) == (
        np.int8,
        np.float32,
        weights.shape,
        (columns,),
    )
    assert np.abs(stored.astype(int)).max() <= 127
    padded = np.concatenate([stored, np.zeros((rows % 2, columns), np.int8)]).reshape(-1, 2, columns).astype(int)
    assert np.maximum(padded, 0).sum(axis=1).max() <= PAIR_LIMIT
    assert np.maximum(-padded, 0).sum(axis=1).max() <= PAIR_LIMIT
    assert (np.abs(stored * scales - weights) <= scales * 0.5000001).all()


def test_safe_weights_use_more_than_seven_bits():
    """onnxruntime's remedy for overflow, 7 bits, stops at 64; ordinary weights leave room for more."""
    stored, _ = safe_int8(np.random.default_rng(0).normal(size=(384, 200)).astype(np.float32))
    assert np.abs(stored.astype(int)).max(axis=0).mean() > 95


def product(weights, activations):
    """uint8 (M, K) times int8 (K, N) by onnxruntime on this processor, int32."""
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["y"])],
        "product",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, ["m", len(weights)])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, ["m", weights.shape[1]])],
        [numpy_helper.from_array(weights, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return open_session(model.SerializeToString(), threads=1).run(None, {"a": activations})[0]


@pytest.mark.parametrize("rows", [50, 51, 384, 1536])
@pytest.mark.parametrize("batch", [1, 3, 17])
def test_products_are_exact_at_the_largest_activations(rows, batch):
    stored, _ = safe_int8(spread_weights(rows, rows, 40))
    rng = np.random.default_rng(batch)
    activations = np.where(rng.random((batch, rows)) < 0.8, 255, rng.integers(0, 256, (batch, rows))).astype(
        np.uint8
    )
    np.testing.assert_array_equal(product(stored, activations), activations.astype(int) @ stored.astype(int))


def test_no_product_keeps_float_weights(integer):
    assert float_products(integer) == []
    assert count_ops(integer)["MatMul"] == 0
    assert count_ops(integer)["Attention"] == 0
    assert (count_ops(integer)["QAttention"], count_ops(integer)["MatMulInteger"]) == (2, 6)


def test_weights_in_the_graph_are_safe_ones(integer):
    stored = weights_of(integer, "MatMulInteger", 1) + weights_of(integer, "QAttention", 1)
    assert len(stored) == 8
    for weights in stored:
        assert_safe(weights)


def test_embedding_tables_are_int8(fused, integer):
    assert count_ops(fused)["EmbedLayerNormalization"] == 1
    assert count_ops(integer)["EmbedLayerNormalization"] == 0
    large = [t for t in integer.graph.initializer if len(t.dims) == 2 and t.dims[0] >= 16 and t.dims[1] > 1]
    assert large
    assert {tensor.data_type for tensor in large} == {TensorProto.INT8}


def test_embeddings_as_rows_stay_close(fused):
    rows = copy.deepcopy(fused)
    open_lookups(rows.graph)
    quantise_rows(rows.graph)
    inputs = random_inputs(6, 12)
    cosine = (in_onnx(fused, inputs)[0] * in_onnx(rows, inputs)[0]).sum(axis=1)
    assert cosine.min() > 0.9999


@pytest.mark.parametrize("padding", ["right", "left", "holes"])
def test_int8_stays_close(fused, integer, padding):
    inputs = random_inputs(8, 14, padding)
    cosine = (in_onnx(fused, inputs)[0] * in_onnx(integer, inputs)[0]).sum(axis=1)
    assert cosine.min() > 0.995


def uneven(model, factor):
    """The same function from a graph in which one channel of a norm is `factor` times as large."""
    twin = copy.deepcopy(model)
    weights = {weight.name: weight for weight in twin.graph.initializer}
    node = next(node for node in twin.graph.node if node.op_type == "SkipLayerNormalization")
    (reader,) = (n for n in twin.graph.node if n.op_type == "MatMul" and n.input[0] == node.output[0])
    for name in node.input[2:4]:
        values = numpy_helper.to_array(weights[name]).copy()
        values[3] *= factor
        weights[name].CopyFrom(numpy_helper.from_array(values, name))
    values = numpy_helper.to_array(weights[reader.input[1]]).copy()
    values[3] /= factor
    weights[reader.input[1]].CopyFrom(numpy_helper.from_array(values, reader.input[1]))
    return twin


def test_equalising_changes_no_output(fused):
    inputs = random_inputs(6, 12)
    for vectors, want in zip(in_onnx(equalise(fused, random_texts()), inputs), in_onnx(fused, inputs), strict=True):
        np.testing.assert_allclose(vectors, want, rtol=0, atol=2e-5)


def test_equalising_saves_a_graph_with_a_large_channel(fused, monkeypatch):
    """What real encoders have: one channel of a norm far above the others."""
    wide, inputs = uneven(fused, 60.0), random_inputs(8, 14)
    want = in_onnx(wide, inputs)[0]

    def lost():
        return float((1 - (want * in_onnx(quantise_int8(wide, random_texts()), inputs)[0]).sum(axis=1)).mean())

    equalised = lost()
    monkeypatch.setattr(int8_module, "equalise", lambda model, texts: copy.deepcopy(model))
    assert equalised < 0.5 * lost()


def test_an_unused_channel_asks_for_no_endless_factor(fused):
    silent = copy.deepcopy(fused)
    gamma, beta = next(n.input[2:4] for n in silent.graph.node if n.op_type == "SkipLayerNormalization")
    for weight in silent.graph.initializer:
        if weight.name in (gamma, beta):
            values = numpy_helper.to_array(weight).copy()
            values[5] = 0
            weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    inputs = random_inputs(4, 9)
    vectors = in_onnx(quantise_int8(silent, random_texts()), inputs)[0]
    assert np.isfinite(vectors).all()
    assert (vectors * in_onnx(silent, inputs)[0]).sum(axis=1).min() > 0.99


def test_same_graph_same_bytes(fused, integer):
    assert graph_bytes(quantise_int8(fused, random_texts())) == graph_bytes(integer)


def test_the_float_graph_is_left_alone(fused):
    before = graph_bytes(fused)
    quantise_int8(fused, random_texts())
    assert graph_bytes(fused) == before


def test_the_file_is_a_quarter(fused, integer):
    """Of the weights, that is; in a graph this small, names and nodes are a good part of the rest."""

    def weights(model):
        return sum(numpy_helper.to_array(tensor).nbytes for tensor in model.graph.initializer)

    assert weights(integer) < 0.36 * weights(fused)


def test_a_product_left_in_float_is_an_error(fused, monkeypatch):
    monkeypatch.setattr(int8_module, "_quantise_products", lambda model: model)
    with pytest.raises(ExportError, match="8 products kept float weights"):
        quantise_int8(fused, random_texts())


def test_a_checked_model(fused, integer):
    """The standard parts pass ONNX's own check; fused operators are onnxruntime's and opened by it elsewhere."""
    for model in (fused, integer):
        assert {node.domain for node in model.graph.node} <= {"", "com.microsoft", "ai.onnx"}
        onnx.checker.check_model(model)


def test_sample_is_spread_and_bounded():
    assert sample(3).tolist() == [0, 1, 2]
    spread = sample(10_000)
    assert len(spread) == 256
    assert (spread[0], spread[-1]) == (0, 9_999)


def test_every_precision_has_a_gate():
    """The command offers the gates' keys without loading onnx; both tables must have the same ones."""
    assert tuple(PRECISIONS) == tuple(GATES)


def test_columns_too_small_for_float32_become_zeros():
    weights = np.full((4, 2), 1e-45, dtype=np.float32)
    weights[:, 1] = 0.5
    values, scales = safe_int8(weights)
    assert not values[:, 0].any() and scales[0] == 1.0
    assert (values[:, 1] > 0).all()
