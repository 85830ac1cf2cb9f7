"""Embedding tables as int8 with a scale for every row.

onnxruntime's own QEmbedLayerNormalization gives a whole table one scale, and the norm's weights too; rows differ in
size, so it costs accuracy that a scale per row does not (docs/decisions/int8-weights.md). Here a look-up becomes
Gather (int8), Cast and Mul by the row's scale, and the fused node's additions and norm one SkipLayerNormalization.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pmd.export.graph import CONTRIB
from pmd.serving.vectors import VectorTable

EMBED = "EmbedLayerNormalization"
MIN_ROWS = 16  # smaller tables, such as the two rows of token types, are not worth the extra nodes


def quantise_embeddings(graph: onnx.GraphProto) -> None:
    """Replace every embedding table of `graph` by int8 rows and their scales, in place."""
    tables = {
        weight.name: weight
        for weight in graph.initializer
        if weight.data_type == TensorProto.FLOAT and len(weight.dims) == 2 and weight.dims[0] >= MIN_ROWS
    }
    used: dict[str, TensorProto] = {}
    for node in list(graph.node):
        if node.op_type == EMBED and {node.input[2], node.input[3]} <= set(tables):
            new, names = _fused_lookup(node), [node.input[2], node.input[3]]
        elif node.op_type == "Gather" and node.input[0] in tables:
            new, names = _rows(node.name, node.input[0], node.input[1], node.output[0]), [node.input[0]]
        else:
            continue
        used |= {name: tables[name] for name in names}
        place = list(graph.node).index(node)
        graph.node.remove(node)
        for offset, part in enumerate(new):
            graph.node.insert(place + offset, part)
    for name, table in used.items():
        graph.initializer.extend(_quantised(name, table))
    drop_unused(graph)


def drop_unused(graph: onnx.GraphProto) -> None:
    """Remove nodes and initialisers that nothing reads, in place."""
    outputs = {output.name for output in graph.output}
    while True:
        read = outputs | {name for node in graph.node for name in node.input}
        dead = [node for node in graph.node if not read & set(node.output)]
        if not dead:
            break
        for node in dead:
            graph.node.remove(node)
    for weight in [weight for weight in graph.initializer if weight.name not in read]:
        graph.initializer.remove(weight)


def _quantised(name: str, table: TensorProto) -> list[TensorProto]:
    """int8 rows (N, D) and float32 scales (N, 1) of a table."""
    stored = VectorTable.quantised(numpy_helper.to_array(table))
    scales = np.ones(len(stored), np.float32) if stored.scales is None else stored.scales
    return [
        numpy_helper.from_array(stored.values, f"{name}_int8"),
        numpy_helper.from_array(scales[:, None], f"{name}_scale"),
    ]


def _rows(name: str, table: str, ids: str, output: str) -> list[onnx.NodeProto]:
    """Nodes that give a quantised table's float rows at `ids`."""
    return [
        helper.make_node("Gather", [f"{table}_int8", ids], [f"{name}_steps"], f"{name}_steps"),
        helper.make_node("Gather", [f"{table}_scale", ids], [f"{name}_scales"], f"{name}_scales"),
        *_scaled(name, output),
    ]


def _first_rows(name: str, table: str, ids: str, output: str) -> list[onnx.NodeProto]:
    """Nodes that give a quantised table's first L float rows, (L, D), for ids of shape (B, L)."""
    length = helper.make_node("Shape", [ids], [f"{name}_length"], f"{name}_length", start=1, end=2)
    zero = helper.make_node("Constant", [], [f"{name}_zero"], f"{name}_zero", value_ints=[0])
    ends = [f"{name}_zero", f"{name}_length", f"{name}_zero"]
    return [
        length,
        zero,
        helper.make_node("Slice", [f"{table}_int8", *ends], [f"{name}_steps"], f"{name}_steps"),
        helper.make_node("Slice", [f"{table}_scale", *ends], [f"{name}_scales"], f"{name}_scales"),
        *_scaled(name, output),
    ]


def _scaled(name: str, output: str) -> list[onnx.NodeProto]:
    floats = f"{name}_floats"
    return [
        helper.make_node("Cast", [f"{name}_steps"], [floats], floats, to=TensorProto.FLOAT),
        helper.make_node("Mul", [floats, f"{name}_scales"], [output], f"{name}_rows"),
    ]


def _fused_lookup(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The nodes that stand in for one EmbedLayerNormalization: same inputs, same first output."""
    name, (ids, types, words, positions, type_table, gamma, beta) = node.name, node.input[:7]
    epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-12)
    word, position, both, kind = (f"{name}_{part}" for part in ("word", "position", "sum", "type"))
    return [
        *_rows(word, words, ids, word),
        *_first_rows(position, positions, ids, position),
        helper.make_node("Gather", [type_table, types], [kind], kind),
        helper.make_node("Add", [word, position], [both], both),
        helper.make_node(
            "SkipLayerNormalization",
            [both, kind, gamma, beta],
            [node.output[0]],
            f"{name}_norm",
            domain=CONTRIB,
            epsilon=epsilon,
        ),
    ]
