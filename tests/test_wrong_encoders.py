"""Folders that are no usable encoder: each is refused in one line that says what to do, and nothing is trained."""

import json
import re

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from transformers import AlbertConfig, AlbertModel, GPT2Config, GPT2Model, T5Config

from pmd.cli import main
from pmd.encoder import load_encoder, resolve_encoder
from tests.tiny_encoder import roberta_tokenizer, write_encoder, write_graph, write_recipe

NAME = "encoder.layer.1.output.dense.weight"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_graph(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture
def folder(tmp_path):
    return write_encoder(tmp_path / "encoder", layers=2)


def train(data, folder, tmp_path, *extra):
    recipe = write_recipe(tmp_path / "toy.yaml", data, folder, grades=[1], mask_rates=[0.0], epochs=1)
    arguments = ["--recipe", recipe, "--encoder", folder, "--out", tmp_path / "run", "--quiet", *extra]
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def tensors(change):
    def edit(folder):
        found = load_file(folder / "model.safetensors")
        change(found)
        save_file(found, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


def config(**changes):
    def edit(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes), encoding="utf-8")

    return edit


def model(build):
    return lambda folder: build().save_pretrained(folder)


def rename(target):
    return lambda folder: (folder / "model.safetensors").rename(folder / target)


def gpt2():
    return GPT2Model(GPT2Config(vocab_size=40, n_embd=8, n_layer=2, n_head=2, n_positions=64))


def t5():
    return T5Config(vocab_size=40, d_model=8, d_ff=8, num_layers=2, num_heads=2)


def albert():
    size = {"vocab_size": 40, "embedding_size": 8, "hidden_size": 8, "intermediate_size": 8}
    return AlbertModel(AlbertConfig(num_hidden_layers=2, num_attention_heads=2, **size))


NO_CODE = {"model_type": "bert_of_ours", "auto_map": {"AutoConfig": "ours.Config", "AutoModel": "ours.Model"}}
WRONG = {
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), r"lacks tokenizer\.json; it needs"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"lacks model\.safetensors; it needs"),
    "pickle alone": (rename("pytorch_model.bin"), "is a pickle, which can run code, and is not read"),
    "weights in parts": (rename("model.safetensors.index.json"), "weights in several files are not read"),
    "GPT-2": (model(gpt2), "gpt2 model is not a bidirectional encoder; use an encoder"),
    "T5": (
        model(t5),
        "t5 model is an encoder with a decoder; use an encoder",
    ),
    "BART": (config(model_type="bart", classifier_dropout=0.0), "bart model is an encoder with a decoder"),
    "a setting of another type": (config(hidden_size="wide"), "cannot be loaded as an encoder"),
    "BERT as a decoder": (config(is_decoder=True), "bert model is not a bidirectional encoder"),
    "ALBERT": (model(albert), "no stack of 2 layers found in a albert encoder"),
    "a tensor is missing": (tensors(lambda t: t.pop(NAME)), f"lacks 1 tensors of its config, the first is {NAME}"),
    "all are another's": (
        tensors(lambda t: [t.update({f"other.{name}": t.pop(name)}) for name in list(t)]),
        "lacks 37 tensors of its config",
    ),
    "more layers than counted": (config(num_hidden_layers=1), "tensors of layers that its config does not count"),
    "fewer layers than counted": (config(num_hidden_layers=3), r"lacks 16 tensors .* encoder\.layer\.2\."),
    "another width": (config(hidden_size=16), "cannot be loaded as an encoder"),
    "NaN": (tensors(lambda t: t[NAME].view(-1)[3].fill_(float("nan"))), f"tensor {NAME} holds NaN or infinity"),
    "cut short": (lambda f: (f / "model.safetensors").write_bytes(b"\x10" * 99), "cannot be loaded as an encoder"),
    "config not JSON": (lambda f: (f / "config.json").write_text("{"), "cannot be loaded as an encoder"),
    "unknown family": (config(model_type="never_heard_of"), "cannot be loaded as an encoder"),
    "code of its own": (config(**NO_CODE), "cannot be loaded as an encoder"),
    "another's tokenizer": (
        lambda f: (f / "tokenizer.json").write_text(roberta_tokenizer().to_str(), encoding="utf-8"),
        r"ids up to \d+, but the encoder embeds 30",
    ),
    "tokenizer not JSON": (lambda f: (f / "tokenizer.json").write_text("{"), r"tokenizer\.json cannot be read"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_it_is_refused_in_one_line(data, folder, tmp_path, kind):
    spoil, message = WRONG[kind]
    spoil(folder)
    result = train(data, folder, tmp_path)
    assert result.exit_code == 2, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert len(lines[0]) < 600
    assert re.search(message, lines[0]), lines[0]
    assert not (tmp_path / "run").exists()


def test_a_dry_run_refuses_a_decoder_too(data, folder, tmp_path):
    gpt2().save_pretrained(folder)
    result = train(data, folder, tmp_path, "--dry-run")
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert "not a bidirectional encoder" in result.stderr


def test_texts_longer_than_the_encoders_positions_are_refused(data, folder, tmp_path):
    result = train(data, folder, tmp_path, "--set", "max_tokens=65")
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert "max_tokens is 65, but encoder has 64 positions" in result.stderr


def test_a_masked_language_model_is_an_encoder_with_a_head_to_drop(folder):
    """Hub folders of BERT-base hold the head of its pretraining, names under `bert.`, and no pooler."""
    found = load_file(folder / "model.safetensors")
    kept = {f"bert.{name}": tensor for name, tensor in found.items() if not name.startswith("pooler.")}
    head = {"cls.predictions.bias": torch.zeros(32)}
    save_file(kept | head, folder / "model.safetensors", metadata={"format": "pt"})
    config(architectures=["BertForMaskedLM"])(folder)
    model = load_encoder(resolve_encoder(str(folder)), dropout=0.1, temperature=0.05)
    state = model.query.state_dict()
    assert set(state) == {name.removeprefix("bert.") for name in kept}
    assert all(tensor.equal(found[name]) for name, tensor in state.items())
