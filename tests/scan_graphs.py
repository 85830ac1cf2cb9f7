"""The two graphs of `pmd.serving.scan`, made with onnx; `python -m tests.scan_graphs` writes them anew."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

FOLDER = Path(__file__).parents[1] / "serving/graphs"
OPSET, IR = 14, 8  # what onnxruntime 1.20 and all later ones read


def scan_graphs() -> dict[str, bytes]:
    """Name of the file -> its bytes."""
    return {"int8.onnx": _int8().SerializeToString(), "float32.onnx": _float32().SerializeToString()}


def _int8() -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMulInteger", ["queries", "entities"], ["raw"]),
        helper.make_node("Sub", ["raw", "shift"], ["dots"]),
        helper.make_node("Cast", ["dots"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["numbers", "scales"], ["stored"]),
        helper.make_node("Mul", ["stored", "steps"], ["scores"]),
    ]
    inputs = {
        "queries": (TensorProto.UINT8, ["Q", "D"]),
        "entities": (TensorProto.INT8, ["D", "E"]),
        "shift": (TensorProto.INT32, ["E"]),
        "scales": (TensorProto.FLOAT, ["E"]),
        "steps": (TensorProto.FLOAT, ["Q", 1]),
    }
    outputs = {"dots": (TensorProto.INT32, ["Q", "E"]), "scores": (TensorProto.FLOAT, ["Q", "E"])}
    return _model("pmd-scan-int8", nodes, inputs, outputs)


def _float32() -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["queries", "entities"], ["scores"])]
    inputs = {"queries": (TensorProto.FLOAT, ["Q", "D"]), "entities": (TensorProto.FLOAT, ["D", "E"])}
    return _model("pmd-scan-float32", nodes, inputs, {"scores": (TensorProto.FLOAT, ["Q", "E"])})


def _model(
    name: str,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[str | int]]],
    outputs: dict[str, tuple[int, list[str | int]]],
) -> onnx.ModelProto:
    given, made = (
        [helper.make_tensor_value_info(key, kind, shape) for key, (kind, shape) in part.items()]
        for part in (inputs, outputs)
    )
    graph = helper.make_graph(nodes, name, given, made)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    onnx.checker.check_model(model)
    return model


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file, data in scan_graphs().items():
        (FOLDER / file).write_bytes(data)
