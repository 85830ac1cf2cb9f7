"""int8 graphs with scales of activations fixed beforehand: onnxruntime's static quantisation in QDQ form.

A text's vector then does not depend on what stands beside it in a batch, and no scale is computed on the way.
Scales come from texts of the graph itself. Where rounding all products costs too much, those that cost most stay in
float, found by rounding each alone (docs/decisions/int8-static.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from pmd.export.attention import opened_attention
from pmd.export.equalise import equalise, sample
from pmd.export.graph import VECTOR, graph_bytes, tidy
from pmd.export.int8 import matrices, prepared, refit
from pmd.export.lookups import open_lookups, quantise_rows
from pmd.export.quiet import own_logging
from pmd.export.scratch import scratch_files
from pmd.serving.encoder import open_session
from pmd.serving.known import IntArray
from pmd.serving.ranking import FloatArray
from pmd.serving.tokenization import TokenTable

CALIBRATION_TEXTS = 128
SEARCH_TEXTS = 48
ENOUGH = 1e-3
"""Mean of 1 - cosine that rounding may cost before products are kept in float."""
FLOAT_SHARE = 0.5
"""Of the products, at most: beyond that the graph is hardly an int8 one."""


class Texts(CalibrationDataReader):
    """Sample texts one by one, as onnxruntime's calibration asks for them."""

    def __init__(self, texts: TokenTable, at_most: int) -> None:
        self.left = _one_by_one(texts, at_most)[::-1]

    def get_next(self) -> dict[str, IntArray] | None:
        """The next text's inputs; None after the last."""
        return self.left.pop() if self.left else None


def quantise_static(model: onnx.ModelProto, texts: TokenTable) -> onnx.ModelProto:
    """The QDQ graph of a fused float32 graph, its scales chosen on (some of) the texts."""
    with scratch_files() as folder:
        rounding = _Rounding(model, texts, folder)
        return tidy(rounding.graph(to_round(rounding.products, rounding.gap)))


def to_round(products: Sequence[str], gap: Callable[[Sequence[str]], float]) -> list[str]:
    """Which products to round. gap: what rounding some of them costs.

    All of them, if that costs little; else without those that cost most when rounded alone, one by one, until what
    is left costs little or half of them are in float.
    """
    rounded = list(products)
    if gap(rounded) <= ENOUGH:
        return rounded
    alone = {name: gap([name]) for name in products}
    costliest = sorted(products, key=lambda name: -alone[name])
    for kept in range(1, int(FLOAT_SHARE * len(products)) + 1):
        rounded = [name for name in products if name not in costliest[:kept]]
        if gap(rounded) <= ENOUGH:
            break
    return rounded


class _Rounding:
    """A graph, and what rounding some of its products makes of it. folder: for files of ranges and graphs."""

    def __init__(self, model: onnx.ModelProto, texts: TokenTable, folder: Path) -> None:
        self._texts, self._folder = texts, folder
        self._float = _opened(model, texts)
        self._weights = matrices(self._float.graph)
        quantise_rows(self._float.graph)
        self._inputs = _one_by_one(texts, SEARCH_TEXTS)
        self._exact = self._vectors(self._float)

    @property
    def products(self) -> list[str]:
        """Names of the products with a weight."""
        nodes = self._float.graph.node
        return [node.name for node in nodes if node.op_type == "MatMul" and node.input[1] in self._weights]

    def graph(self, products: Sequence[str]) -> onnx.ModelProto:
        """The graph with these products in int8. The first call finds the ranges of activations for all."""
        target = self._folder / "model.onnx"
        with own_logging():
            quantize_static(
                prepared(self._float),
                target,
                Texts(self._texts, CALIBRATION_TEXTS),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["MatMul"],
                nodes_to_quantize=list(products),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                calibration_cache_path=self._folder / "ranges.json",
                extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"], "MatMulConstBOnly": True},
            )
        integer = onnx.load(target)
        refit(integer.graph, self._weights)
        return integer

    def gap(self, products: Sequence[str]) -> float:
        """What rounding these products does to the vectors of some texts: the mean of 1 - cosine."""
        rounded = self._vectors(self.graph(products)).astype(np.float64)
        return float(1 - (rounded * self._exact).sum(axis=1).mean())

    def _vectors(self, model: onnx.ModelProto) -> FloatArray:
        session = open_session(graph_bytes(model))
        return np.concatenate([session.run([VECTOR], one)[0] for one in self._inputs])


def _opened(model: onnx.ModelProto, texts: TokenTable) -> onnx.ModelProto:
    """Activations evened out, attention and look-ups apart, and the type of every tensor that a product reads."""
    opened = opened_attention(equalise(model, texts))
    open_lookups(opened.graph)
    read = {node.input[0] for node in opened.graph.node if node.op_type == "MatMul"}
    # shape inference stops at fused operators, and the quantiser skips what it knows no type of
    opened.graph.value_info.extend(
        onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in sorted(read)
    )
    return opened


def _one_by_one(texts: TokenTable, at_most: int) -> list[dict[str, IntArray]]:
    """Inputs of some of the texts, evenly spread, each alone."""
    return [texts.take(np.array([index])).padded(pad_id=0) for index in sample(len(texts), at_most)]
