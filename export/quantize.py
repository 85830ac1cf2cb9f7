"""Precisions a bundle can have, and how a fused float32 graph becomes each of them.

int8 is onnxruntime's dynamic quantisation: weights are int8 with a scale per output channel, activations uint8 with
a scale chosen as they come. Three things are done differently from its defaults, each measured in
docs/decisions/int8-weights.md: activations are evened out first, embedding tables get a scale per row, and weights
are as large as an AVX2 processor can multiply without overflow, and no larger.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from pmd.export.embeddings import quantise_embeddings
from pmd.export.equalise import equalise
from pmd.export.errors import ExportError
from pmd.export.graph import tidy
from pmd.serving.known import IntArray
from pmd.serving.ranking import FloatArray
from pmd.serving.tokenization import TokenTable
from pmd.serving.vectors import INT8_MAX, VectorTable

PAIR_LIMIT = 128
"""Largest sum of two neighbouring weights of one sign: 255 * 128 is the most that 16 bits hold."""
PRODUCTS = ("MatMul", "Attention")
PREPARED = ("onnx.quant.pre_process", "onnxruntime.quant")  # says that the graph is optimised, which it is


@dataclass(frozen=True)
class Precision:
    """How a bundle stores its numbers."""

    name: str
    build: Callable[[onnx.ModelProto, TokenTable], onnx.ModelProto]
    """(fused float32 graph, texts it will read) -> the graph of this precision."""
    table: Callable[[FloatArray], VectorTable]
    """Entity vectors (E, D) -> the stored table."""


def quantise_int8(model: onnx.ModelProto, texts: TokenTable) -> onnx.ModelProto:
    """The int8 graph of a fused float32 graph. `texts` are samples of what it reads.

    Raises ExportError if a product kept its float weights.
    """
    balanced = equalise(model, texts)
    weights = {w.name: numpy_helper.to_array(w) for w in balanced.graph.initializer if len(w.dims) == 2}
    quantise_embeddings(balanced.graph)
    integer = _quantise_products(balanced)
    _refit(integer.graph, weights)
    if left := float_products(integer):
        raise ExportError(f"{len(left)} products kept float weights after quantisation, the first is {left[0]}")
    return tidy(integer)


def float_products(model: onnx.ModelProto) -> list[str]:
    """Names of the products that multiply by float weights."""
    floats = {w.name for w in model.graph.initializer if w.data_type == TensorProto.FLOAT and len(w.dims) == 2}
    return [
        node.name for node in model.graph.node if node.op_type in (*PRODUCTS, "Gemm") and floats & set(node.input)
    ]


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
    scales = np.maximum(np.abs(exact).max(axis=0) / INT8_MAX, pairs / (PAIR_LIMIT - 1))
    scales = np.where(scales > 0, scales, 1.0).astype(np.float32)
    return np.rint(exact / scales).clip(-INT8_MAX, INT8_MAX).astype(np.int8), scales


def _quantise_products(model: onnx.ModelProto) -> onnx.ModelProto:
    prepared = copy.deepcopy(model)
    onnx.helper.set_model_props(prepared, dict([PREPARED]))
    with tempfile.TemporaryDirectory(prefix="pmd-export-") as folder:
        target = Path(folder) / "model.onnx"
        quantize_dynamic(
            prepared,
            target,
            op_types_to_quantize=list(PRODUCTS),
            per_channel=True,
            weight_type=QuantType.QInt8,
            # shape inference stops at fused operators; without this their outputs have no type to quantise from
            extra_options={"DefaultTensorType": TensorProto.FLOAT},
        )
        return onnx.load(target)


def _refit(graph: onnx.GraphProto, weights: dict[str, FloatArray]) -> None:
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


PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("fp32", lambda model, texts: model, VectorTable),
        Precision("int8", quantise_int8, VectorTable.quantised),
    )
}
"""Every precision that pmd-export can write."""
