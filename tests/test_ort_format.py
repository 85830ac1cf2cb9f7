"""`.ort` files: what they answer, that they are the same bytes every time, and what is refused."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from pmd.export import ortbytes, ortformat
from pmd.export.errors import ExportError, TargetError
from pmd.export.ortbytes import in_one_order, kernel_types
from pmd.export.ortformat import OPERATORS, ORT, write_ort
from pmd.export.scratch import scratch_files
from pmd.serving.bundle import ENTITY, MODEL, QUERY, Bundle
from pmd.serving.encoder import TowerEncoder
from pmd.serving.storage import StorageError
from tests.tiny_exports import PRECISIONS, export_bundles

CONVERTED = tuple(name for name in PRECISIONS if name != "fp16")
TEXTS = ["alpha", "beta: big old", "a part of alpha near beta", ("alpha", "is a"), ("gamma near delta", "part of")]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    return export_bundles(tmp_path_factory.mktemp("exports"), CONVERTED)


@pytest.fixture(scope="module")
def towers(bundles, tmp_path_factory):
    """Query towers with `.ort` files, by precision."""
    root = tmp_path_factory.mktemp("towers")
    folders = {name: shutil.copytree(bundles[name] / QUERY, root / name) for name in CONVERTED}
    for folder in folders.values():
        write_ort(folder)
    return folders


def encoder(bundle, model):
    tokenizer = Bundle.open(bundle).tokenizer(QUERY)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return TowerEncoder(session, tokenizer, width=32, texts_per_run=1)


@pytest.mark.parametrize("precision", CONVERTED)
def test_the_same_vectors(bundles, towers, precision):
    ours, theirs = (encoder(bundles[precision], towers[precision] / name)(TEXTS) for name in (ORT, MODEL))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    assert (towers[precision] / ORT).read_bytes()[4:8] == b"ORTM"


@pytest.mark.parametrize("precision", CONVERTED)
def test_the_same_bytes_every_time(bundles, towers, tmp_path, precision):
    """Whatever the folder; onnxruntime itself writes another order each time."""
    again = shutil.copytree(bundles[precision] / QUERY, tmp_path / "another place")
    assert write_ort(again) == [again / ORT, again / OPERATORS]
    for name in (ORT, OPERATORS):
        assert (again / name).read_bytes() == (towers[precision] / name).read_bytes()


def test_the_same_bytes_in_another_process(bundles, towers, tmp_path):
    again = shutil.copytree(bundles["int8"] / QUERY, tmp_path / "tower")
    code = "import sys, pathlib, pmd.export.ortformat as o; o.write_ort(pathlib.Path(sys.argv[1]))"
    child = subprocess.run([sys.executable, "-c", code, str(again)], capture_output=True, text=True)
    assert (child.returncode, child.stdout, child.stderr) == (0, "", "")
    assert hashlib.sha256((again / ORT).read_bytes()).hexdigest() == (
        hashlib.sha256((towers["int8"] / ORT).read_bytes()).hexdigest()
    )


@pytest.mark.parametrize("precision", CONVERTED)
def test_sorting_keeps_what_the_file_says(bundles, tmp_path, precision):
    target = tmp_path / "model.ort"
    ortformat._convert(bundles[precision] / QUERY / MODEL, target)
    before = target.read_bytes()
    after = in_one_order(before)
    assert kernel_types(after) == sorted(kernel_types(before))
    assert in_one_order(after) == after
    model = ortbytes.InferenceSession.InferenceSession.GetRootAs(before).Model()
    assert after.endswith(before[model._tab.Pos :])


def test_operators_are_those_of_the_graph_and_name_no_path(towers):
    text = (towers["fp32"] / OPERATORS).read_text()
    assert text.splitlines()[-1] == "com.microsoft;1;Attention,BiasGelu,EmbedLayerNormalization"
    assert all(line.split(";")[0] in ("ai.onnx", "com.microsoft") for line in text.splitlines())
    assert "DynamicQuantizeMatMul" in (towers["int8"] / OPERATORS).read_text()


def test_it_is_quiet(bundles, tmp_path, capfd):
    handlers = logging.getLogger().handlers[:]
    write_ort(shutil.copytree(bundles["int8"] / ENTITY, tmp_path / "tower"))
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger().handlers == handlers


def test_half_precision_is_refused(bundles, tmp_path):
    """Its `.ort` file would depend on whether this processor multiplies halves."""
    folder = shutil.copytree(bundles["fp32"] / QUERY, tmp_path / "query")
    model = onnx.load(folder / MODEL)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((2, 2), np.float16), "half"))
    onnx.save(model, folder / MODEL)
    with pytest.raises(TargetError, match="the query tower holds half-precision weights"):
        write_ort(folder)
    assert not (folder / ORT).exists()


def four_bit_tower():
    """A tower that looks its vectors up in a table of 4-bit numbers."""
    names = ("input_ids", "attention_mask", "token_type_ids")
    nodes = [
        helper.make_node("DequantizeLinear", ["steps", "scale"], ["table"]),
        helper.make_node("Gather", ["table", "input_ids"], ["tokens"]),
        helper.make_node("ReduceMax", ["tokens", "axis"], ["sentence_embedding"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "tower",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"]) for name in names],
        [helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["batch", 2])],
        [
            helper.make_tensor("steps", TensorProto.UINT4, [40, 2], np.arange(80) % 16),
            numpy_helper.from_array(np.array(0.5, np.float32), "scale"),
            numpy_helper.from_array(np.array([1], np.int64), "axis"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_what_the_format_cannot_hold_is_refused(bundles, tmp_path, monkeypatch):
    """onnxruntime writes 4-bit tensors, as int4 has for a large table of words, and does not read them again."""
    monkeypatch.setattr(ortformat, "LEVEL", onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)  # keep the tensor
    folder = shutil.copytree(bundles["fp32"] / QUERY, tmp_path / "query")
    onnx.save(four_bit_tower(), folder / MODEL)
    with pytest.raises(ExportError, match="the query tower cannot be used") as raised:
        write_ort(folder)
    assert "\n" not in str(raised.value)
    assert not (folder / ORT).exists()


def test_other_vectors_are_refused(bundles, tmp_path, monkeypatch):
    folder = shutil.copytree(bundles["fp32"] / QUERY, tmp_path / "query")
    convert = ortformat._convert
    monkeypatch.setattr(ortformat, "_convert", lambda _, target: convert(bundles["fp32"] / ENTITY / MODEL, target))
    with pytest.raises(
        ExportError, match=r"the \.ort file of the query tower differs from its model\.onnx by 0\.\d"
    ):
        write_ort(folder)
    assert not (folder / ORT).exists()


def test_a_graph_that_does_not_load_is_refused(bundles, tmp_path):
    folder = shutil.copytree(bundles["fp32"] / QUERY, tmp_path / "query")
    model = onnx.load(folder / MODEL)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, folder / MODEL)
    with pytest.raises(ExportError, match=r"cannot convert a graph to the \.ort format") as raised:
        write_ort(folder)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("damage", ["identifier", "no types", "another slot"])
def test_an_unknown_layout_is_refused(towers, damage, monkeypatch):
    data = bytearray((towers["fp32"] / ORT).read_bytes())
    if damage == "identifier":
        data[4:8] = b"ORTX"
    elif damage == "no types":
        monkeypatch.setattr(ortbytes.InferenceSession.InferenceSession, "KernelTypeStrResolver", lambda self: None)
    else:
        monkeypatch.setattr(ortbytes, "SLOTS", 3)
    with pytest.raises(ExportError, match="unknown layout"):
        in_one_order(bytes(data))


def test_pmd_export_adds_them_if_asked(tmp_path):
    bundle = export_bundles(tmp_path, ["int8"], "--ort")["int8"]
    listed = Bundle.open(bundle, verify=True).manifest["files"]
    assert {f"{tower}/{name}" for tower in (QUERY, ENTITY) for name in (ORT, OPERATORS)} <= set(listed)


def test_a_full_disk_is_not_taken_for_a_graph_that_cannot_be_converted(tmp_path, monkeypatch):
    def refuse(*_arguments, **_options):
        raise RuntimeError("SaveToOrtFormat Failed to save ORT format model to file")

    def full(*_arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "model.onnx").write_bytes(b"graph")
    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(ExportError, match="cannot convert a graph"):
        ortformat._convert(tmp_path / "model.onnx", tmp_path / "model.ort")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match=r"cannot be written: No space left .* with the variable TMPDIR$"):
        with scratch_files() as folder:
            ortformat._convert(tmp_path / "model.onnx", folder / "model.ort")
