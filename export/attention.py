"""A fused Attention as a product, a split and a MultiHeadAttention: the same values, with a product to quantise.

onnxruntime's Attention holds the weights of queries, keys and values itself, so its quantisers for static int8 and
for 4-bit blocks, which look for MatMul, leave it in float. MultiHeadAttention takes the three ready-made.
"""

from __future__ import annotations

import copy

import onnx
from onnx import helper

from pmd.export.graph import CONTRIB
from pmd.export.lookups import replace

FUSED, HEADS = "Attention", "MultiHeadAttention"
KEPT = ("num_heads", "mask_filter_value", "scale")
"""Attributes that both operators have."""
BIAS, MASK, PAST, EXTRA = 2, 3, 4, 5
"""Inputs of Attention after its activations and weights; MultiHeadAttention has the first two and the last too."""


def opened_attention(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` whose every Attention has its weights in a MatMul before it."""
    opened = copy.deepcopy(model)
    for node in [node for node in opened.graph.node if node.op_type == FUSED]:
        replace(opened.graph, node, _parts(node))
    return opened


def _parts(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The three nodes that stand in for one Attention."""
    name, given = node.name, [*node.input, "", "", "", ""]
    packed, query, key, value = (f"{name}_{part}" for part in ("packed", "query", "key", "value"))
    heads = helper.make_node(
        HEADS, [query, key, value, given[BIAS], given[MASK], given[EXTRA]], [node.output[0]], f"{name}_heads"
    )
    heads.domain = CONTRIB
    heads.attribute.extend(attribute for attribute in node.attribute if attribute.name in KEPT)
    while not heads.input[-1]:
        del heads.input[-1]
    return [
        helper.make_node("MatMul", [given[0], given[1]], [packed], packed),
        helper.make_node("Split", [packed], [query, key, value], f"{name}_split", axis=-1),
        heads,
    ]
