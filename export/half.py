"""fp16 graphs: half the size, for GPUs, browsers with WebGPU, and storage.

On a processor without half-precision products onnxruntime turns the weights back into float32 as it opens the
graph: half the file, no faster, and the same memory. `pmd-export` says so (docs/decisions/fp16.md).
"""

from __future__ import annotations

import copy

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16

from pmd.export.graph import HIDDEN, tidy
from pmd.export.lookups import drop_unused
from pmd.serving.tokenization import TokenTable


def to_half(model: onnx.ModelProto, texts: TokenTable) -> onnx.ModelProto:
    """The fp16 graph of a fused float32 graph. Inputs and outputs stay as they were; `texts` are not needed.

    The layers are converted. Pooling and unit length stay in float32: a sum of squares over hundreds of channels
    leaves half precision's range.
    """
    layers = copy.deepcopy(model)
    del layers.graph.output[:]
    layers.graph.output.extend(output for output in model.graph.output if output.name == HIDDEN)
    drop_unused(layers.graph)
    inner = {node.name for node in layers.graph.node}
    rest = [node for node in model.graph.node if node.name not in inner]
    read = {name for node in rest for name in node.input}
    half = convert_float_to_float16(layers, keep_io_types=True, disable_shape_infer=True)  # fused nodes stop it
    half.graph.node.extend(rest)
    half.graph.initializer.extend(weight for weight in model.graph.initializer if weight.name in read)
    del half.graph.output[:]
    half.graph.output.extend(model.graph.output)
    return tidy(half)
