"""int4 graphs: weights and word embeddings in blocks of 4-bit numbers, activations in float.

onnxruntime's own block quantiser makes MatMulNBits and GatherBlockQuantized; its kernels round a row of activations
to 8 bits per block as they multiply (accuracy level 4). What block size, symmetry and rounding are worth is in
docs/decisions/int4-blocks.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from pmd.export.attention import opened_attention
from pmd.export.graph import tidy
from pmd.export.int8 import refuse_float_products
from pmd.export.lookups import open_lookups, quantise_rows, tables
from pmd.export.quiet import own_logging
from pmd.serving.tokenization import TokenTable

BITS = 4
BLOCK = 32
MIN_WORDS = 4096  # a table with fewer rows is small enough as int8 rows, which lose less
ACTIVATIONS_IN_INT8 = 4
"""MatMulNBits' accuracy level: products of 4-bit weights with activations rounded to 8 bits."""
INT4_IR = 10  # the first file format with 4-bit tensors, read by onnxruntime since 1.18


def quantise_int4(model: onnx.ModelProto, texts: TokenTable) -> onnx.ModelProto:
    """The int4 graph of a fused float32 graph. Raises ExportError if a product kept its float weights."""
    opened = opened_attention(model)
    open_lookups(opened.graph)
    blocks = _in_blocks(
        opened, [name for name, table in tables(opened.graph).items() if table.dims[0] >= MIN_WORDS]
    )
    quantise_rows(blocks.graph)
    refuse_float_products(blocks)
    return tidy(blocks, ir_version=INT4_IR)


def _in_blocks(model: onnx.ModelProto, words: Sequence[str]) -> onnx.ModelProto:
    """`model` with every MatMul by a weight, and the look-ups in the tables `words`, in 4-bit blocks."""
    with own_logging():  # the module sets up the root logger as it is imported, and reports every node
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        others = [node.name for node in model.graph.node if node.op_type == "Gather" and node.input[0] not in words]
        quantiser = MatMulNBitsQuantizer(
            model,
            bits=BITS,
            block_size=BLOCK,
            is_symmetric=True,
            accuracy_level=ACTIVATIONS_IN_INT8,
            nodes_to_exclude=others,
            op_types_to_quantize=("MatMul", "Gather"),
            quant_axes=(("MatMul", 0), ("Gather", 1)),
        )
        quantiser.process()
    return quantiser.model.model
