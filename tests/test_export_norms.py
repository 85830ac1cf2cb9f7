"""Norms that stand as a sum and a plain norm: the same values, and no session of ours fuses them again."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pmd.export.graph import count_ops
from pmd.export.norms import open_norms
from pmd.serving import encoder as encoder_module
from pmd.serving.encoder import open_session

WIDTH = 8


def graph(inputs: list[str], outputs: list[str] | None = None) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal(WIDTH).astype(np.float32), name)
        for name in ("gamma", "beta", "bias")
    ]
    node = helper.make_node(
        "SkipLayerNormalization", inputs, outputs or ["out"], "norm", domain="com.microsoft", epsilon=0.5
    )
    shape = ["batch", "tokens", WIDTH]
    value = helper.make_tensor_value_info
    parts = helper.make_graph(
        [node],
        "norms",
        [value(name, TensorProto.FLOAT, shape) for name in ("x", "skip")],
        [value(name, TensorProto.FLOAT, shape) for name in (outputs or ["out"]) if name],
        weights,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(parts, opset_imports=opsets, ir_version=8)


@pytest.mark.parametrize("bias", [["bias"], [""], []])
def test_the_parts_give_the_values_of_the_whole(bias):
    fused = graph(["x", "skip", "gamma", "beta", *bias])
    opened = open_norms(fused)
    assert "SkipLayerNormalization" not in count_ops(opened)
    assert count_ops(opened)["Add"] == (2 if bias == ["bias"] else 1)
    assert count_ops(fused)["SkipLayerNormalization"] == 1, "the model itself is left as it was"
    rng = np.random.default_rng(1)
    inputs = {name: rng.standard_normal((2, 3, WIDTH)).astype(np.float32) for name in ("x", "skip")}
    whole, parts = (open_session(model.SerializeToString()).run(None, inputs)[0] for model in (fused, opened))
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [(["x", "skip", "gamma"], None), (["x", "skip", "gamma", "beta"], ["out", "", "", "sum"])],
)
def test_what_the_parts_cannot_say_stays_fused(inputs, outputs):
    assert count_ops(open_norms(graph(inputs, outputs)))["SkipLayerNormalization"] == 1


def test_our_sessions_do_not_fuse_them_again(tmp_path, monkeypatch):
    """onnxruntime would: without being told not to, it writes the fused operator."""
    import onnxruntime

    model = open_norms(graph(["x", "skip", "gamma", "beta", "bias"])).SerializeToString()
    plain = onnxruntime.SessionOptions

    def written(name: str):
        path = tmp_path / name

        def options():
            made = plain()
            made.optimized_model_filepath = str(path)
            made.log_severity_level = 3  # it warns that such a file is of this machine
            return made

        monkeypatch.setattr(onnxruntime, "SessionOptions", options)
        open_session(model)
        return count_ops(onnx.load(path))

    assert written("ours.onnx")["SkipLayerNormalization"] == 0
    monkeypatch.setattr(encoder_module, "SLOW_FUSIONS", [])
    assert written("theirs.onnx")["SkipLayerNormalization"] == 1
