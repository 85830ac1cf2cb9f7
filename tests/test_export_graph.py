"""A tower's graph is the tower: same vectors, fully fused, and the same bytes every time."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from transformers import RobertaConfig

from pmd.export import graph as graph_module
from pmd.export.errors import ExportError
from pmd.export.graph import HIDDEN, INPUTS, VECTOR, SentenceTower, count_ops, export_tower, graph_bytes, trace
from pmd.model import run_tower
from pmd.packing import pack
from tests.tiny_towers import (
    MAX_LENGTH,
    VOCABULARY,
    in_onnx,
    in_torch,
    random_inputs,
    random_texts,
    tiny_config,
    tiny_tower,
)

ATOL = 1e-5


@pytest.fixture(scope="module")
def tower():
    return tiny_tower()


@pytest.fixture(scope="module")
def exported(tower):
    return export_tower(tower)


@pytest.mark.parametrize("batch", [1, 7, 64])
@pytest.mark.parametrize("length", [1, 2, 7, 23, MAX_LENGTH])
def test_graph_is_the_tower_at_every_shape(tower, exported, batch, length):
    inputs = random_inputs(batch, length)
    (vectors, hidden), (want_vectors, want_hidden) = in_onnx(exported.model, inputs), in_torch(tower, inputs)
    assert vectors.shape == (batch, 32)
    assert hidden.shape == (batch, length, 32)
    np.testing.assert_allclose(vectors, want_vectors, rtol=0, atol=ATOL)
    real = inputs["attention_mask"] > 0
    np.testing.assert_allclose(hidden[real], want_hidden[real], rtol=0, atol=ATOL)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=0, atol=ATOL)


@pytest.mark.parametrize("padding", ["right", "left", "holes"])
def test_padding_may_be_anywhere(tower, exported, padding):
    """A mask given as a length, which the optimiser prefers, would be right for right padding alone."""
    inputs = random_inputs(9, 12, padding)
    np.testing.assert_allclose(in_onnx(exported.model, inputs)[0], in_torch(tower, inputs)[0], rtol=0, atol=ATOL)


def test_padding_does_not_move_a_vector(exported):
    inputs = random_inputs(1, 9)
    longer = {name: np.pad(value, ((0, 0), (0, 20))) for name, value in inputs.items()}
    np.testing.assert_allclose(
        in_onnx(exported.model, longer)[0], in_onnx(exported.model, inputs)[0], rtol=0, atol=ATOL
    )


def test_graph_gives_what_training_gives(tower, exported):
    """The trainer packs texts into shared rows and pools by index; the graph has a row a text and a mask."""
    texts = random_texts()
    with torch.inference_mode():
        trained = run_tower(tower, pack(texts)).vectors.numpy()
    np.testing.assert_allclose(in_onnx(exported.model, texts.padded(0))[0], trained, rtol=0, atol=ATOL)


def test_every_layer_fuses(exported):
    assert exported.fused == {
        "EmbedLayerNormalization": 1, "Attention": 2, "SkipLayerNormalization": 4, "BiasGelu": 2,
    }  # fmt: skip
    assert exported.complete
    assert not {"Softmax", "Erf", "LayerNormalization", "Transpose"} & set(count_ops(exported.model))


def test_bert_base_fuses():
    """The architecture of BERT-base, narrower."""
    tower = tiny_tower(
        tiny_config(num_hidden_layers=12, num_attention_heads=12, hidden_size=48, intermediate_size=96)
    )
    exported = export_tower(tower)
    assert exported.fused == {
        "EmbedLayerNormalization": 1, "Attention": 12, "SkipLayerNormalization": 24, "BiasGelu": 12,
    }  # fmt: skip
    inputs = random_inputs(3, 11)
    np.testing.assert_allclose(in_onnx(exported.model, inputs)[0], in_torch(tower, inputs)[0], rtol=0, atol=ATOL)


def test_a_bert_that_does_not_fuse_is_refused(tower, monkeypatch):
    original = graph_module.FusionOptions

    def without_attention(kind):
        options = original(kind)
        options.enable_attention = False
        return options

    monkeypatch.setattr(graph_module, "FusionOptions", without_attention)
    with pytest.raises(ExportError, match=r"2 layers fused to .*'Attention': 0.*expected .*'Attention': 2"):
        export_tower(tower)


def test_another_family_exports_and_says_what_fused():
    config = RobertaConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=MAX_LENGTH,
    )  # fmt: skip
    tower = tiny_tower(config)
    exported = export_tower(tower)
    assert exported.fused["Attention"] == 2
    assert not exported.complete
    inputs = random_inputs(5, 9)
    np.testing.assert_allclose(in_onnx(exported.model, inputs)[0], in_torch(tower, inputs)[0], rtol=0, atol=ATOL)


def test_names_and_shapes_of_the_contract(exported):
    def described(values):
        return {
            value.name: (
                value.type.tensor_type.elem_type,
                [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
            )
            for value in values
        }

    tensor = onnx.TensorProto
    assert described(exported.model.graph.input) == {name: (tensor.INT64, ["batch", "tokens"]) for name in INPUTS}
    assert described(exported.model.graph.output) == {
        VECTOR: (tensor.FLOAT, ["batch", 32]),
        HIDDEN: (tensor.FLOAT, ["batch", "tokens", 32]),
    }
    assert {(entry.domain, entry.version) for entry in exported.model.opset_import} == {
        ("", 17),
        ("com.microsoft", 1),
    }


def test_export_leaves_the_tower_as_it_was(tower):
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    attention = tower.config._attn_implementation
    export_tower(tower)
    assert not tower.training
    assert tower.config._attn_implementation == attention
    assert all(torch.equal(value, before[name]) for name, value in tower.state_dict().items())


def test_dropout_is_off_even_if_the_tower_is_in_training(tower, exported):
    training = tiny_tower().train()
    assert graph_bytes(export_tower(training).model) == graph_bytes(exported.model)


def test_same_weights_same_bytes(exported):
    assert graph_bytes(export_tower(tiny_tower()).model) == graph_bytes(exported.model)


@pytest.mark.slow  # another process loads torch anew
def test_same_bytes_in_another_process(exported, tmp_path):
    """No clock, path, hash seed or counter of this process may reach the file."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pmd.export.graph import export_tower, graph_bytes\n"
        "from tests.tiny_towers import tiny_tower, tiny_config\n"
        "export_tower(tiny_tower(tiny_config(num_hidden_layers=1)))\n"
        "open(sys.argv[2], 'wb').write(graph_bytes(export_tower(tiny_tower()).model))\n"
    )
    root = str(Path(__file__).resolve().parents[1])
    target = tmp_path / "model.onnx"
    subprocess.run([sys.executable, "-c", code, root, str(target)], check=True, env={"PYTHONHASHSEED": "77"})
    assert target.read_bytes() == graph_bytes(exported.model)


def test_nothing_in_the_file_says_where_it_was_made(exported):
    model = exported.model
    assert (model.producer_name, model.doc_string, list(model.metadata_props)) == ("pmd-kgc", "", [])
    assert not any(node.doc_string for node in model.graph.node)
    assert b"/tmp" not in graph_bytes(model)


def test_a_tower_that_cannot_be_traced_is_one_line(tower, monkeypatch):
    def refuse(*_args, **_options):
        raise RuntimeError("operator of the day is not supported\nmore\nlines")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    with pytest.raises(ExportError) as caught:
        trace(tower)
    assert str(caught.value) == "torch cannot export a bert tower: operator of the day is not supported"


def test_pooling_ignores_padding(tower):
    """The test above all compares with SentenceTower itself, so its pooling is checked by hand here."""
    inputs = random_inputs(4, 8)
    with torch.inference_mode():
        vectors, hidden = SentenceTower(tower)(*(torch.from_numpy(inputs[name]) for name in INPUTS))
    for row, real in enumerate(inputs["attention_mask"].astype(bool)):
        mean = hidden[row].numpy()[real].mean(axis=0)
        np.testing.assert_allclose(vectors[row].numpy(), mean / np.linalg.norm(mean), rtol=0, atol=ATOL)
