"""The two graphs of `pmd.serving.scan`, made with onnx; `python -m tests.scan_graphs` writes them anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FOLDER = Path(__file__).parents[1] / "serving/graphs"
OPSET, IR = 14, 8  # what onnxruntime 1.20 and all later ones read


def scan_graphs() -> dict[str, bytes]:
    """Name of the file -> its bytes."""
    return {"int8.onnx": _int8().SerializeToString(), "float32.onnx": _float32().SerializeToString()}


def _int8() -> onnx.ModelProto:
    nodes = [
        # query = steps * whole + what is left
        helper.make_node("Abs", ["queries"], ["sizes"]),
        helper.make_node("ReduceMax", ["sizes"], ["largest"], axes=[1], keepdims=1),
        helper.make_node("Max", ["largest", "tiny"], ["peaks"]),
        helper.make_node("Div", ["peaks", "levels"], ["steps"]),
        helper.make_node("Div", ["queries", "steps"], ["stretched"]),
        helper.make_node("Round", ["stretched"], ["whole"]),
        helper.make_node("Mul", ["whole", "steps"], ["rounded"]),
        helper.make_node("Sub", ["queries", "rounded"], ["left"]),
        helper.make_node("ReduceL2", ["left"], ["rest"], axes=[1], keepdims=0),
        helper.make_node("ReduceL2", ["queries"], ["lengths"], axes=[1], keepdims=0),
        # unsigned, for the kernel that is fast; the shift is taken off the products
        helper.make_node("Add", ["levels", "one"], ["zero"]),
        helper.make_node("Add", ["whole", "zero"], ["shifted"]),
        helper.make_node("Cast", ["shifted"], ["bytes"], to=TensorProto.UINT8),
        helper.make_node("MatMulInteger", ["bytes", "entities"], ["products"]),
        helper.make_node("Sub", ["products", "shift"], ["dots"]),
        helper.make_node("Cast", ["dots"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["numbers", "scales"], ["stored"]),
        helper.make_node("Mul", ["stored", "steps"], ["scores"]),
    ]
    inputs = {
        "queries": (TensorProto.FLOAT, ["Q", "D"]),
        "entities": (TensorProto.INT8, ["D", "E"]),
        "scales": (TensorProto.FLOAT, ["E"]),
        "levels": (TensorProto.FLOAT, []),
        "shift": (TensorProto.INT32, ["E"]),
    }
    outputs = {
        "scores": (TensorProto.FLOAT, ["Q", "E"]),
        "rest": (TensorProto.FLOAT, ["Q"]),
        "lengths": (TensorProto.FLOAT, ["Q"]),
        "products": (TensorProto.INT32, ["Q", "E"]),
    }
    constants = {"tiny": np.array(1e-30, np.float32), "one": np.array(1, np.float32)}
    return _model("pmd-scan-int8", nodes, inputs, outputs, constants)


def _float32() -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["queries", "entities"], ["scores"])]
    inputs = {"queries": (TensorProto.FLOAT, ["Q", "D"]), "entities": (TensorProto.FLOAT, ["D", "E"])}
    return _model("pmd-scan-float32", nodes, inputs, {"scores": (TensorProto.FLOAT, ["Q", "E"])})


def _model(
    name: str,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[str | int]]],
    outputs: dict[str, tuple[int, list[str | int]]],
    constants: dict[str, np.ndarray] | None = None,
) -> onnx.ModelProto:
    given, made = (
        [helper.make_tensor_value_info(key, kind, shape) for key, (kind, shape) in part.items()]
        for part in (inputs, outputs)
    )
    weights = [numpy_helper.from_array(value, key) for key, value in (constants or {}).items()]
    graph = helper.make_graph(nodes, name, given, made, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    onnx.checker.check_model(model)
    return model


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file, data in scan_graphs().items():
        (FOLDER / file).write_bytes(data)
