"""The bytes of an `.ort` file in one order: onnxruntime writes a part of it in the order of a random hash.

An `.ort` file is a FlatBuffer of three parts: a version, the model, and which types each operator's kernel is
chosen by. The last is a hash map, written as it is iterated, so two conversions of one graph differ. In the file it
comes before the model: here it is cut off and written again, sorted, in front of the same model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from pmd.export.errors import ExportError
from pmd.export.quiet import own_logging

with own_logging():  # it sets up the root logger as it is imported
    import flatbuffers
    from onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs import (
        ArgTypeAndIndex,
        InferenceSession,
        KernelTypeStrArgsEntry,
        KernelTypeStrResolver,
        OpIdKernelTypeStrArgsEntry,
    )

IDENTIFIER = b"ORTM"
ALIGNMENT = 64  # of the whole file; no part of it asks for more
ROOM = 1 << 16  # for the part written anew; the builder takes more if that is not enough
OFFSET_BYTES = 4
SLOTS = 4  # of the root table: version, model, one that is no longer used, kernel types

Places: TypeAlias = list[tuple[int, int]]
"""Input or output, and its index."""
KernelTypes: TypeAlias = list[tuple[bytes, list[tuple[bytes, Places]]]]
"""Operator -> type parameter -> where its type is read from."""


def in_one_order(data: bytes) -> bytes:
    """The `.ort` file `data` with its kernel types sorted: the same content, and the same bytes every time.

    Raises ExportError for a layout that this version of onnxruntime is not known to write.
    """
    root = InferenceSession.InferenceSession.GetRootAs(data)
    model, resolver = root.Model(), root.KernelTypeStrResolver()
    if not _is_known(data, root, model, resolver):
        raise ExportError("onnxruntime wrote an .ort file of an unknown layout; use another version of it")
    start = min(model._tab.Pos, _vtable(model))
    builder = flatbuffers.Builder(0)
    builder.Bytes, builder.head = bytearray(ROOM) + data[start:], ROOM
    builder.minalign = ALIGNMENT  # so that all that follows stays aligned as it was
    version = builder.CreateString(root.OrtVersion())
    types = _write(builder, sorted(kernel_types(data)))
    InferenceSession.InferenceSessionStart(builder)
    InferenceSession.AddOrtVersion(builder, version)
    InferenceSession.AddModel(builder, len(data) - model._tab.Pos)  # counted from the end, which has not moved
    InferenceSession.AddKernelTypeStrResolver(builder, types)
    builder.Finish(InferenceSession.InferenceSessionEnd(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def kernel_types(data: bytes) -> KernelTypes:
    """What an `.ort` file says about kernels, operators in the file's order and parameters sorted."""
    resolver = InferenceSession.InferenceSession.GetRootAs(data).KernelTypeStrResolver()
    operators = [resolver.OpKernelTypeStrArgs(index) for index in range(resolver.OpKernelTypeStrArgsLength())]
    return [(operator.OpId(), sorted(_parameters(operator))) for operator in operators]


def _parameters(operator: Any) -> list[tuple[bytes, Places]]:
    entries = [operator.KernelTypeStrArgs(index) for index in range(operator.KernelTypeStrArgsLength())]
    return [
        (
            entry.KernelTypeStr(),
            [(arg.ArgType(), arg.Index()) for arg in map(entry.Args, range(entry.ArgsLength()))],
        )
        for entry in entries
    ]


def _is_known(data: bytes, root: Any, model: Any, resolver: Any) -> bool:
    """Whether the file has the parts that are copied, no others, and the kernel types before the model."""
    if data[OFFSET_BYTES : 2 * OFFSET_BYTES] != IDENTIFIER or model is None or resolver is None:
        return False
    slots = (int.from_bytes(data[_vtable(root) : _vtable(root) + 2], "little") - 4) // 2
    unused = root._tab.Offset(8)
    return slots <= SLOTS and not unused and resolver._tab.Pos < min(model._tab.Pos, _vtable(model))


def _vtable(table: Any) -> int:
    """Where a table's own description is; it stands right before the table or, if shared, after it."""
    return int(table._tab.Pos - table._tab.Get(flatbuffers.number_types.SOffsetTFlags, table._tab.Pos))


def _write(builder: Any, types: KernelTypes) -> int:
    resolver = KernelTypeStrResolver
    operators = _vector(builder, [_write_operator(builder, *operator) for operator in types])
    resolver.KernelTypeStrResolverStart(builder)
    resolver.AddOpKernelTypeStrArgs(builder, operators)
    return int(resolver.KernelTypeStrResolverEnd(builder))


def _write_operator(builder: Any, operator: bytes, parameters: list[tuple[bytes, Places]]) -> int:
    entry = OpIdKernelTypeStrArgsEntry
    vector = _vector(builder, [_write_parameter(builder, *parameter) for parameter in parameters])
    name = builder.CreateString(operator)
    entry.OpIdKernelTypeStrArgsEntryStart(builder)
    entry.AddOpId(builder, name)
    entry.AddKernelTypeStrArgs(builder, vector)
    return int(entry.OpIdKernelTypeStrArgsEntryEnd(builder))


def _write_parameter(builder: Any, parameter: bytes, places: Places) -> int:
    entry = KernelTypeStrArgsEntry
    vector = _vector(builder, [_write_place(builder, *place) for place in places])
    name = builder.CreateSharedString(parameter)
    entry.KernelTypeStrArgsEntryStart(builder)
    entry.AddKernelTypeStr(builder, name)
    entry.AddArgs(builder, vector)
    return int(entry.KernelTypeStrArgsEntryEnd(builder))


def _write_place(builder: Any, kind: int, index: int) -> int:
    ArgTypeAndIndex.ArgTypeAndIndexStart(builder)
    ArgTypeAndIndex.AddArgType(builder, kind)
    ArgTypeAndIndex.AddIndex(builder, index)
    return int(ArgTypeAndIndex.ArgTypeAndIndexEnd(builder))


def _vector(builder: Any, offsets: Sequence[int]) -> int:
    """A vector of tables already written."""
    builder.StartVector(OFFSET_BYTES, len(offsets), OFFSET_BYTES)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())
