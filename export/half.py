"""fp16 graphs: half the size, for GPUs, browsers with WebGPU, and storage.

On a processor without half-precision products onnxruntime turns the weights back into float32 as it opens the
graph: half the file, no faster, and the same memory. `pmd-export` says so (docs/decisions/fp16.md).
"""

from __future__ import annotations

import copy

import onnx
from onnx import TensorProto
from onnxruntime.transformers.float16 import convert_float_to_float16

from pmd.export.graph import HIDDEN, tidy
from pmd.serving.tokenization import TokenTable


def to_half(model: onnx.ModelProto, texts: TokenTable) -> onnx.ModelProto:
    """The fp16 graph of a fused float32 graph. Inputs and outputs stay as they were; `texts` are not needed.

    The layers are converted. Pooling and unit length stay in float32: a sum of squares over hundreds of channels
    leaves half precision's range.
    """
    layers, rest = copy.deepcopy(model), copy.deepcopy(model.graph)
    inner = _before(model.graph, HIDDEN)
    _keep(layers.graph, inner)
    _keep(rest, {node.name for node in model.graph.node} - inner)
    del layers.graph.output[:]
    layers.graph.output.extend(output for output in model.graph.output if output.name == HIDDEN)
    half = convert_float_to_float16(layers, keep_io_types=True, disable_shape_infer=True)  # fused nodes stop it
    half.graph.node.extend(rest.node)
    half.graph.initializer.extend(rest.initializer)
    del half.graph.output[:]
    half.graph.output.extend(model.graph.output)
    return tidy(half)


def float_weights(model: onnx.ModelProto) -> list[str]:
    """Names of the matrices that are still float32."""
    return [
        weight.name
        for weight in model.graph.initializer
        if weight.data_type == TensorProto.FLOAT and len(weight.dims) == 2
    ]


def _before(graph: onnx.GraphProto, name: str) -> set[str]:
    """Names of the nodes that `name` is computed by."""
    wanted, found = {name}, set()
    for node in reversed(graph.node):  # they are in topological order
        if wanted & set(node.output):
            wanted |= set(node.input)
            found.add(node.name)
    return found


def _keep(graph: onnx.GraphProto, names: set[str]) -> None:
    """Leave only the named nodes and what they read of the weights, in place."""
    nodes = [node for node in graph.node if node.name in names]
    read = {name for node in nodes for name in node.input}
    weights = [weight for weight in graph.initializer if weight.name in read]
    del graph.node[:]
    del graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(weights)
