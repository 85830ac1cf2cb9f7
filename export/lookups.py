"""Embedding look-ups apart from the layer norm that onnxruntime fuses them with, so that tables can be small.

EmbedLayerNormalization takes float tables only, and its quantised form gives a whole table one scale
(docs/decisions/int8-weights.md). Apart, they are a Gather of words, a Slice of positions, a Gather of types, their
sum and one SkipLayerNormalization.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pmd.export.graph import CONTRIB
from pmd.serving.vectors import VectorTable

EMBED = "EmbedLayerNormalization"
LOOKUPS = ("Gather", "Slice")
MIN_ROWS = 16  # smaller tables, such as the two rows of token types, are not worth the extra nodes


def open_lookups(graph: onnx.GraphProto) -> None:
    """Replace every EmbedLayerNormalization of `graph` by its parts, in place."""
    for node in [node for node in graph.node if node.op_type == EMBED]:
        replace(graph, node, _parts(node))


def tables(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    """The float embedding tables that look-ups of `graph` read, by name; small ones left out."""
    looked_up = {node.input[0] for node in graph.node if node.op_type in LOOKUPS}
    return {
        weight.name: weight
        for weight in graph.initializer
        if weight.name in looked_up
        and weight.data_type == TensorProto.FLOAT
        and len(weight.dims) == 2
        and weight.dims[0] >= MIN_ROWS
    }


def quantise_rows(graph: onnx.GraphProto) -> None:
    """Store every embedding table of `graph` as int8 rows and a scale for each, in place."""
    for name, table in tables(graph).items():
        for node in [node for node in graph.node if node.op_type in LOOKUPS and node.input[0] == name]:
            replace(graph, node, _scaled_rows(node))
        graph.initializer.extend(_quantised(name, table))
    drop_unused(graph)


def replace(graph: onnx.GraphProto, node: onnx.NodeProto, parts: list[onnx.NodeProto]) -> None:
    """Put `parts` where `node` was."""
    place = list(graph.node).index(node)
    graph.node.remove(node)
    for offset, part in enumerate(parts):
        graph.node.insert(place + offset, part)


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


def _parts(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The nodes that stand in for one EmbedLayerNormalization: same inputs, same first output."""
    name, (ids, types, words, positions, type_table, gamma, beta) = node.name, node.input[:7]
    epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-12)
    word, position, both, kind, zero, length = (
        f"{name}_{part}" for part in ("word", "position", "sum", "type", "zero", "length")
    )
    return [
        helper.make_node("Gather", [words, ids], [word], word),
        helper.make_node("Constant", [], [zero], zero, value_ints=[0]),
        helper.make_node("Shape", [ids], [length], length, start=1, end=2),
        helper.make_node("Slice", [positions, zero, length, zero], [position], position),
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


def _scaled_rows(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The same look-up in a table's int8 rows and in their scales, and the product of the two."""
    table, *where = node.input
    steps, scales, floats = (f"{node.name}_{part}" for part in ("steps", "scales", "floats"))
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return [
        helper.make_node(node.op_type, [f"{table}_int8", *where], [steps], steps, **attributes),
        helper.make_node(node.op_type, [f"{table}_scale", *where], [scales], scales, **attributes),
        helper.make_node("Cast", [steps], [floats], floats, to=TensorProto.FLOAT),
        helper.make_node("Mul", [floats, scales], [node.output[0]], f"{node.name}_rows"),
    ]


def _quantised(name: str, table: TensorProto) -> list[TensorProto]:
    """int8 rows (N, D) and float32 scales (N, 1) of a table."""
    stored = VectorTable.quantised(numpy_helper.to_array(table))
    scales = np.asarray(stored.scales, np.float32)[:, None]
    return [
        numpy_helper.from_array(stored.values, f"{name}_int8"),
        numpy_helper.from_array(scales, f"{name}_scale"),
    ]
