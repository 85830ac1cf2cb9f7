"""int8 graphs by onnxruntime's dynamic quantisation.

Weights are int8 with a scale per output channel, activations uint8 with a scale chosen as they come. Three things
are done differently from its defaults, each measured in docs/decisions/int8-weights.md: activations are evened out
first, embedding tables get a scale per row, and weights are as large as an AVX2 processor can multiply without
overflow, and no larger.
"""

from __future__ import annotations

import copy

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from pmd.export.equalise import equalise
from pmd.export.errors import ExportError
from pmd.export.graph import tidy
from pmd.export.lookups import open_lookups, quantise_rows
from pmd.export.scratch import scratch_files
from pmd.serving.known import IntArray
from pmd.serving.ranking import FloatArray
from pmd.serving.tokenization import TokenTable
from pmd.serving.vectors import INT8_MAX

PAIR_LIMIT = 128
"""Largest sum of two neighbouring weights of one sign: 255 * 128 is the most that 16 bits hold."""
PRODUCTS = ("MatMul", "Attention")
PREPARED = ("onnx.quant.pre_process", "onnxruntime.quant")  # says that the graph is optimised, which it is


def quantise_int8(model: onnx.ModelProto, texts: TokenTable) -> onnx.ModelProto:
    """The int8 graph of a fused float32 graph. `texts` are samples of what it reads.

    Raises ExportError if a product kept its float weights.
    """
    balanced = equalise(model, texts)
    weights = matrices(balanced.graph)
    open_lookups(balanced.graph)
    quantise_rows(balanced.graph)
    integer = _quantise_products(balanced)
    refit(integer.graph, weights)
    refuse_float_products(integer)
    return tidy(integer)


def float_products(model: onnx.ModelProto) -> list[str]:
    """Names of the products that multiply by float weights."""
    floats = set(matrices(model.graph))
    return [
        node.name for node in model.graph.node if node.op_type in (*PRODUCTS, "Gemm") and floats & set(node.input)
    ]


def refuse_float_products(model: onnx.ModelProto) -> None:
    """Raise ExportError if a product of a quantised graph kept its float weights."""
    if left := float_products(model):
        raise ExportError(f"{len(left)} products kept float weights after quantisation, the first is {left[0]}")


def safe_int8(weights: FloatArray) -> tuple[IntArray, FloatArray]:
    """Weights (K, N) as int8 (K, N) and float32 scales (N,), such that no AVX2 product of them can overflow.

    Without VNNI, x86 multiplies uint8 by int8 in pairs along K and adds each pair in 16 bits, saturating. So a
    column's scale is the smallest that keeps every weight within 127 and every pair of one sign within 128; about
    1.2 times the plain scale, where onnxruntime's 7-bit weights take 2 times.
    """
    exact = weights.astype(np.float64)
    even = np.concatenate([exact, np.zeros((len(exact) % 2, exact.shape[1]))]).reshape(-1, 2, exact.shape[1])
    pairs = np.maximum(np.maximum(even, 0).sum(axis=1), np.maximum(-even, 0).sum(axis=1)).max(axis=0)
    # 1 below the limit: rounding may lift both weights of a pair by a half
    scales = np.maximum(np.abs(exact).max(axis=0) / INT8_MAX, pairs / (PAIR_LIMIT - 1)).astype(np.float32)
    scales = np.where(scales > 0, scales, np.float32(1.0))  # 0 where a column's weights are too small for float32
    return np.rint(exact / scales).clip(-INT8_MAX, INT8_MAX).astype(np.int8), scales


def matrices(graph: onnx.GraphProto) -> dict[str, FloatArray]:
    """Every float matrix of `graph` by name."""
    return {
        weight.name: numpy_helper.to_array(weight)
        for weight in graph.initializer
        if len(weight.dims) == 2 and weight.data_type == TensorProto.FLOAT
    }


def prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that tells onnxruntime's quantisers that it is optimised, which it is."""
    marked = copy.deepcopy(model)
    helper.set_model_props(marked, dict([PREPARED]))
    return marked


def _quantise_products(model: onnx.ModelProto) -> onnx.ModelProto:
    with scratch_files() as folder:
        target = folder / "model.onnx"
        quantize_dynamic(
            prepared(model),
            target,
            op_types_to_quantize=list(PRODUCTS),
            per_channel=True,
            weight_type=QuantType.QInt8,
            # shape inference stops at fused operators; without this their outputs have no type to quantise from
            extra_options={"DefaultTensorType": TensorProto.FLOAT},
        )
        return onnx.load(target)


def refit(graph: onnx.GraphProto, weights: dict[str, FloatArray]) -> None:
    """Replace the weights and scales that onnxruntime chose by `safe_int8`, in place."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for name, values in weights.items():
        stored = tensors.get(f"{name}_quantized")
        if stored is None:
            continue
        scale = tensors[f"{name}_scale"]
        if tuple(stored.dims) != values.shape or tuple(scale.dims) != values.shape[1:]:
            raise ExportError(f"onnxruntime quantised {name} to {list(stored.dims)}, expected {values.shape}")
        fitted, scales = safe_int8(values)
        stored.CopyFrom(numpy_helper.from_array(fitted, stored.name))
        scale.CopyFrom(numpy_helper.from_array(scales, scale.name))
