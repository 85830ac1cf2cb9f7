"""Even out a graph's activations before they become 8 bits wide, without changing what it computes.

Dynamic int8 gives a whole activation one scale, so its largest value decides how many steps are left for the rest.
In these encoders one or two channels of every layer norm are ten times as large as the others, and after the GELU
a few tokens are. Two exact rewrites, each where it is needed:

- after a norm, channels: each is divided by a factor, and the weights' row is multiplied by it. SmoothQuant
  (arXiv 2211.10438).
- after a GELU, tokens: each is divided by its largest value, and the product multiplied by it again.

What they gained and cost, together and apart, is in docs/decisions/int8-weights.md.
"""

from __future__ import annotations

import copy
from collections import Counter

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pmd.serving.encoder import open_session
from pmd.serving.known import IntArray
from pmd.serving.ranking import FloatArray
from pmd.serving.tokenization import TokenTable

STRENGTH = 0.6
"""Share of the channels' unevenness that moves from activations to weights, 0 to 1. Measured at 0.3 to 1."""
SAMPLE_TEXTS = 256
SMALLEST = 1e-5  # neither an unused channel nor an empty token may ask for an endless factor
FLOOR = "smallest_token"  # the name of SMALLEST in the graph
GELUS = ("BiasGelu", "FastGelu", "Gelu")


def equalise(model: onnx.ModelProto, texts: TokenTable, *, strength: float = STRENGTH) -> onnx.ModelProto:
    """A copy of `model` with the same outputs and evener activations, judged on (at most 256 of) the texts."""
    balanced = copy.deepcopy(model)
    by_channel, by_token = _products(balanced.graph)
    largest = _largest_activations(model, [node.input[0] for node in by_channel], texts)
    for node in by_channel:
        _divide_channels(balanced.graph, node, largest[node.input[0]], strength)
    for node in by_token:
        _divide_tokens(balanced.graph, node)
    if by_token:
        balanced.graph.initializer.append(numpy_helper.from_array(np.array(SMALLEST, np.float32), FLOOR))
    return balanced


def sample(count: int, at_most: int = SAMPLE_TEXTS) -> IntArray:
    """Evenly spread indices below `count`, at most so many, the same every time. int64."""
    return np.unique(np.linspace(0, count - 1, min(count, at_most)).round().astype(np.int64))


def _products(graph: onnx.GraphProto) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]]:
    """Products with a weight of their own to even out by channel and by token; attention's output needs neither."""
    weights = {weight.name for weight in graph.initializer if len(weight.dims) == 2}
    makers = {output: node.op_type for node in graph.node for output in node.output}
    readers = Counter(name for node in graph.node for name in node.input)
    by_channel, by_token = [], []
    for node in graph.node:
        if node.op_type not in ("MatMul", "Attention") or node.input[1] not in weights:
            continue
        maker = makers.get(node.input[0])
        if node.op_type == "MatMul" and maker in GELUS:
            by_token.append(node)
        elif (
            maker != "Attention" and readers[node.input[1]] == 1
        ):  # layers that share a weight cannot each scale it
            by_channel.append(node)
    return by_channel, by_token


def _largest_activations(model: onnx.ModelProto, names: list[str], texts: TokenTable) -> dict[str, FloatArray]:
    """Largest absolute value of each channel of the named tensors over sample texts: name -> (channels,)."""
    probe = copy.deepcopy(model)
    wanted = list(dict.fromkeys(names))
    probe.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in wanted)
    session = open_session(probe.SerializeToString())
    largest: dict[str, FloatArray] = {}
    for index in sample(len(texts)):
        values = session.run(wanted, texts.take(np.array([index])).padded(pad_id=0))
        for name, value in zip(wanted, values, strict=True):
            peak = np.abs(value).max(axis=tuple(range(value.ndim - 1)))
            largest[name] = np.maximum(largest.get(name, peak), peak)
    return largest


def _factors(activations: FloatArray, weights: FloatArray, strength: float) -> FloatArray:
    """What each channel is divided by, float32 (channels,), with a geometric mean of 1."""
    logs = strength * np.log(np.maximum(activations, SMALLEST).astype(np.float64))
    logs -= (1 - strength) * np.log(np.maximum(weights, SMALLEST).astype(np.float64))
    return np.exp(logs - logs.mean()).astype(np.float32)


def _divide_channels(graph: onnx.GraphProto, node: onnx.NodeProto, peaks: FloatArray, strength: float) -> None:
    """Let `node` read its input divided by a factor a channel, and scale its weights to match, in place."""
    weight = next(weight for weight in graph.initializer if weight.name == node.input[1])
    values = numpy_helper.to_array(weight)
    factors = _factors(peaks, np.abs(values).max(axis=1), strength)
    weight.CopyFrom(numpy_helper.from_array(values * factors[:, None], weight.name))
    even, inverse = f"{node.name}_even", f"{node.name}_factors"
    graph.initializer.append(numpy_helper.from_array(1 / factors, inverse))
    _insert_before(graph, node, helper.make_node("Mul", [node.input[0], inverse], [even], even))
    node.input[0] = even


def _divide_tokens(graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
    """Let `node` read each token divided by its largest value, and multiply that back after it, in place."""
    size, peak, token, level, product = (
        f"{node.name}_{part}" for part in ("size", "peak", "token", "level", "product")
    )
    for new in (
        helper.make_node("Abs", [node.input[0]], [size], size),
        helper.make_node("ReduceMax", [size], [peak], peak, axes=[-1], keepdims=1),
        helper.make_node("Max", [peak, FLOOR], [token], token),
        helper.make_node("Div", [node.input[0], token], [level], level),
    ):
        _insert_before(graph, node, new)
    after = helper.make_node("Mul", [product, token], [node.output[0]], product)
    graph.node.insert(list(graph.node).index(node) + 1, after)
    node.input[0], node.output[0] = level, product


def _insert_before(graph: onnx.GraphProto, node: onnx.NodeProto, new: onnx.NodeProto) -> None:
    graph.node.insert(list(graph.node).index(node), new)
