"""Cutting layers, loading grades, and encoding whole tables."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pmd.encoder import load_encoder, resolve_encoder
from pmd.errors import GradeError, RecipeError
from pmd.grade import GradeInfo, load_grade, save_grade
from pmd.model import ENCODE_TOKENS, encode_table, even_layers, layer_stack
from pmd.serving.texts import Templates
from pmd.serving.tokenization import TextTokenizer
from tests.tiny_encoder import WORDS, tiny_tokenizer, write_encoder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    files = resolve_encoder(str(write_encoder(tmp_path_factory.mktemp("encoder"), layers=4)))
    return load_encoder(files, dropout=0.1, temperature=0.05)


@pytest.fixture
def grade(model, tmp_path):
    save_grade(tmp_path, model, tiny_tokenizer().to_str(), GradeInfo("grade-4", "tiny", 50, Templates()))
    return tmp_path


@pytest.mark.parametrize(
    ("source", "target", "layers"),
    [(6, 3, (1, 3, 5)), (6, 4, (0, 2, 3, 5)), (12, 6, (1, 3, 5, 7, 9, 11)), (6, 6, tuple(range(6))), (3, 1, (2,))],
)
def test_even_layers(source, target, layers):
    assert even_layers(source, target) == layers


def test_a_grade_deeper_than_its_source_is_refused():
    with pytest.raises(RecipeError, match="8 layers cannot be cut from 6"):
        even_layers(6, 8)


def test_cut_copies_the_layers_asked_for(model):
    student = model.cut((1, 3))
    assert student.depth == 2
    for new, old in enumerate((1, 3)):
        for name in ("query", "entity"):
            theirs = layer_stack(getattr(model, name))[old].state_dict()
            for key, tensor in layer_stack(getattr(student, name))[new].state_dict().items():
                assert tensor.equal(theirs[key])
                assert tensor.data_ptr() != theirs[key].data_ptr(), "a student must not share its teacher's memory"
    assert model.depth == 4


@pytest.mark.parametrize("layers", [(), (3, 1), (1, 1), (0, 4)])
def test_bad_layer_maps_are_refused(model, layers):
    with pytest.raises(RecipeError, match="rising numbers from 0 to 3"):
        model.cut(layers)


def test_chunked_encoding_equals_whole(model, monkeypatch):
    rng = np.random.default_rng(0)
    table = TextTokenizer(tiny_tokenizer().to_str(), 50)([" ".join(rng.choice(WORDS, n)) for n in range(1, 30)])
    whole = encode_table(model, "entity", table)
    monkeypatch.setitem(ENCODE_TOKENS, "cpu", 20)
    torch.testing.assert_close(encode_table(model, "entity", table), whole, rtol=0, atol=2e-6)
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(len(table)), rtol=0, atol=1e-6)


def test_saved_equals_loaded(model, grade):
    loaded = load_grade(grade)
    for name, tensor in model.state_dict().items():
        assert loaded.model.state_dict()[name].equal(tensor)
    assert loaded.info == GradeInfo("grade-4", "tiny", 50, Templates())
    assert loaded.model.query.config.hidden_dropout_prob == 0.1


def _edit(change):
    def edit(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return edit


NAME = "query.encoder.layer.1.output.dense.weight"
DAMAGE = {
    "missing": (_edit(lambda t: t.pop(NAME)), f"tensor {NAME} is missing"),
    "renamed": (_edit(lambda t: t.update({"query.other": t.pop(NAME)})), "is missing|is unexpected"),
    "shape": (_edit(lambda t: t.update({NAME: t[NAME][:, :5].contiguous()})), "has shape"),
    "nan": (_edit(lambda t: t[NAME].fill_(float("nan"))), "NaN"),
    "truncated": (lambda f: (f / "model.safetensors").write_bytes(b"\x10" * 100), "cannot be read as safetensors"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "missing tokenizer.json"),
    "config not JSON": (lambda f: (f / "config.json").write_text("{"), "not a grade's config"),
    "newer schema": (lambda f: (f / "config.json").write_text('{"schema": "pmd-grade/9"}'), "pmd-grade/9"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_grade_is_named(grade, kind):
    damage, message = DAMAGE[kind]
    damage(grade)
    with pytest.raises(GradeError, match=message):
        load_grade(grade)
