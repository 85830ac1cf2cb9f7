"""What an ONNX file may hold, read from its protobuf before onnxruntime sees it.

A tower is a plain graph: no loop or branch, no function of its own, no operator from outside ONNX and onnxruntime,
and all its numbers in the file. So it cannot run for ever, read another file (old versions of onnxruntime follow
any path that a tensor names), or claim numbers that are not there. What its operators allocate while they run
follows from the shapes and cannot be told beforehand. Field numbers are those of onnx.proto.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeAlias

from pmd.serving.archive import ByteArray
from pmd.serving.errors import BundleError

Value: TypeAlias = int | memoryview

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # wire types; groups are long gone from protobuf
VARINT_BYTES = 10
MODEL_GRAPH, MODEL_FUNCTIONS = 7, 25
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_SPARSE = 1, 5, 15
NODE_OP, NODE_ATTRIBUTE, NODE_DOMAIN = 4, 5, 7
ATTRIBUTE_TENSOR, ATTRIBUTE_TENSORS = 5, 10
ATTRIBUTE_GRAPH, ATTRIBUTE_GRAPHS, ATTRIBUTE_SPARSE, ATTRIBUTE_SPARSES = 6, 11, 22, 23
TENSOR_DIMS, TENSOR_EXTERNAL, TENSOR_LOCATION = 1, 13, 14
DOMAINS = ("", "ai.onnx", "com.microsoft")
"""Whose operators run: ONNX's and onnxruntime's own."""
MOST_NODES = 100_000  # a tower of 24 layers has some 2,000; onnxruntime takes minutes over millions
ELEMENTS_PER_BYTE = 4  # of the smallest type there is, two bits


def check_model(data: ByteArray) -> None:
    """Raise BundleError unless a file's bytes, uint8 (bytes,), are an ONNX graph as the module describes it."""
    graphs = 0
    for field, value in _fields(data.data):
        if field == MODEL_FUNCTIONS:
            raise BundleError("the graph defines functions of its own; export it with plain operators")
        if field == MODEL_GRAPH:
            graphs += 1
            _check_graph(_message(value))
    if graphs != 1:
        raise BundleError(f"it is not an ONNX model: it has {graphs} graphs, expected one")


def _check_graph(graph: memoryview) -> None:
    nodes = 0
    for field, value in _fields(graph):
        if field == GRAPH_NODE:
            nodes += 1
            _check_node(_message(value))
        elif field == GRAPH_INITIALIZER:
            _check_tensor(_message(value))
        elif field == GRAPH_SPARSE:
            raise BundleError("the graph holds sparse tensors; export it with plain ones")
    if nodes > MOST_NODES:
        raise BundleError(f"the graph has {nodes:,} nodes, expected at most {MOST_NODES:,}")


def _check_node(node: memoryview) -> None:
    operator, domain = "", ""
    for field, value in _fields(node):
        if field == NODE_OP:
            operator = _text(value)
        elif field == NODE_DOMAIN:
            domain = _text(value)
        elif field == NODE_ATTRIBUTE:
            _check_attribute(_message(value))
    if domain not in DOMAINS:
        raise BundleError(
            f"the graph needs the operator {operator!r} of {domain!r}; expected ONNX's or onnxruntime's"
        )


def _check_attribute(attribute: memoryview) -> None:
    for field, value in _fields(attribute):
        if field in (ATTRIBUTE_GRAPH, ATTRIBUTE_GRAPHS):
            raise BundleError("the graph has a loop or a branch; export it with plain operators")
        if field in (ATTRIBUTE_SPARSE, ATTRIBUTE_SPARSES):
            raise BundleError("the graph holds sparse tensors; export it with plain ones")
        if field in (ATTRIBUTE_TENSOR, ATTRIBUTE_TENSORS):
            _check_tensor(_message(value))


def _check_tensor(tensor: memoryview) -> None:
    sizes: list[int] = []
    for field, value in _fields(tensor):
        if field == TENSOR_DIMS:
            sizes += [value] if isinstance(value, int) else _packed(value)
        elif field == TENSOR_EXTERNAL or (field == TENSOR_LOCATION and value != 0):
            raise BundleError("the graph keeps numbers in another file; export it with all of them inside")
    if math.prod(sizes) > ELEMENTS_PER_BYTE * len(tensor):
        raise BundleError(f"a tensor of the graph claims the shape {sizes[:8]} and holds {len(tensor)} bytes")


def _fields(message: memoryview) -> Iterator[tuple[int, Value]]:
    """Field numbers and values of a message: whole numbers, or the bytes of what has a length."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        kind, value = tag & 7, 0
        if kind == VARINT:
            value, place = _varint(message, place)
            yield tag >> 3, value
            continue
        if kind == LENGTH:
            size, place = _varint(message, place)
        elif kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
        else:
            raise _damaged()
        if place + size > len(message):
            raise _damaged()
        yield tag >> 3, message[place : place + size]
        place += size


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """A whole number from `place` on, unsigned 64 bits, and where it ends."""
    if place < len(message) and message[place] < 128:  # as nearly all are
        return message[place], place + 1
    value = 0
    for shift, byte in enumerate(message[place : place + VARINT_BYTES]):
        value |= (byte & 127) << (7 * shift)
        if byte < 128:
            return value & (2**64 - 1), place + shift + 1
    raise _damaged()


def _packed(message: memoryview) -> list[int]:
    numbers, place = [], 0
    while place < len(message):
        number, place = _varint(message, place)
        numbers.append(number)
    return numbers


def _message(value: Value) -> memoryview:
    if isinstance(value, int):
        raise _damaged()
    return value


def _text(value: Value) -> str:
    return _message(value).tobytes().decode("utf-8", errors="replace")[:60]


def _damaged() -> BundleError:
    return BundleError("it is not an ONNX model, or damaged")
