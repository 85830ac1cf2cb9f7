"""Every precision and how a fused float32 graph becomes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import onnx

from pmd.export.half import to_half
from pmd.export.int4 import quantise_int4
from pmd.export.int8 import quantise_int8
from pmd.export.static import quantise_static
from pmd.serving.ranking import FloatArray
from pmd.serving.tokenization import TokenTable
from pmd.serving.vectors import VectorTable

Build: TypeAlias = Callable[[onnx.ModelProto, TokenTable], onnx.ModelProto]
"""(fused float32 graph, sample texts that it will read) -> the graph of a precision."""


def unchanged(model: onnx.ModelProto, texts: TokenTable) -> onnx.ModelProto:
    """The float32 graph as it is."""
    return model


BUILDS: Mapping[str, Build] = {
    "fp32": unchanged,
    "fp16": to_half,
    "int8": quantise_int8,
    "int8-static": quantise_static,
    "int4": quantise_int4,
}
TABLES: Mapping[str, Callable[[FloatArray], VectorTable]] = {
    "float32": VectorTable,
    "int8": VectorTable.quantised,
}
"""How entity vectors (E, D) are stored, by type."""
