"""Towers of real bundles, opened by the tools that Hub users have: all of them see the vectors that pmd sees."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from pmd.export.ortformat import write_ort
from pmd.serving.bundle import ENTITY, QUERY, Bundle
from pmd.serving.encoder import DYNAMIC_PRECISIONS, TowerEncoder
from tests.tiny_exports import PRECISIONS, export_bundles
from tests.tiny_run import MAX_TOKENS

DOCUMENTATION = Path(__file__).parents[1] / "docs" / "hub.md"
TEXTS = [
    "alpha",
    "Beta: big old",
    "never seen before, so unknown",
    "a part of alpha near beta near gamma near delta",
    " ".join(["kappa"] * 50),
]
PAIRS = [
    ("alpha", "is a"),
    ("beta: big old", "part of"),
    (" ".join(["lamda mu"] * 30), "inverse near"),
    ("gamma near delta", " ".join(["part of"] * 30)),
]
DOCUMENTED = "bundles/umls-pmd-grade-3-fp32"
SNIPPETS = re.findall(r"```python\n(.*?)```", DOCUMENTATION.read_text(encoding="utf-8"), re.DOTALL)
ASKED = {ENTITY: TEXTS, QUERY: [*TEXTS, *PAIRS]}
# Padding moves a float vector in its last digits; where activations are rounded, one that stood between two steps
# may take the other. Dynamic int8 is asked one text at a time, which leaves nothing to differ.
TOLERANCE = {"fp32": 1e-5, "fp16": 1e-3, "int8": 1e-5, "int8-static": 1e-3, "int4": 1e-3}
TOWERS = [(precision, tower) for precision in PRECISIONS for tower in (QUERY, ENTITY)]
every_tower = pytest.mark.parametrize(("precision", "tower"), TOWERS)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    return export_bundles(tmp_path_factory.mktemp("exports"))


@pytest.fixture(scope="module")
def vectors(bundles):
    """What pmd says: precision, tower -> vectors of the texts asked, (N, D)."""
    return {
        (precision, tower): TowerEncoder.load(Bundle.open(bundles[precision]), tower, threads=1)(ASKED[tower])
        for precision, tower in TOWERS
    }


@pytest.fixture(autouse=True)
def without_a_hub(monkeypatch):
    """A reader that asks a hub for anything fails."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def batches(precision, texts):
    """The texts together; one at a time where the scale of activations is the batch's."""
    return [[text] for text in texts] if precision in DYNAMIC_PRECISIONS else [texts]


def kinds(texts):
    """Single texts and pairs apart: a batch of a Hub tool holds one kind."""
    single = [text for text in texts if isinstance(text, str)]
    pairs = [text for text in texts if not isinstance(text, str)]
    return [kind for kind in (single, pairs) if kind]


def assert_same(found, expected, precision):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE[precision])


def test_the_texts_tell_towers_apart(vectors):
    """Vectors that are alike would pass whatever a reader does; these differ by far more than the tolerances."""
    for (precision, tower), found in vectors.items():
        gaps = np.abs(found[:, None] - found[None]).max(axis=-1) + np.eye(len(found))
        assert gaps.min() > 20 * TOLERANCE[precision], (precision, tower)


# ---- sentence-transformers ------------------------------------------------------------------------------------


@every_tower
def test_sentence_transformers(bundles, vectors, precision, tower, caplog):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(bundles[precision] / tower), backend="onnx", device="cpu")
    assert model.max_seq_length == MAX_TOKENS
    found = [
        model.encode(batch, show_progress_bar=False)
        for kind in kinds(ASKED[tower])
        for batch in batches(precision, kind)
    ]
    assert_same(np.concatenate(found), vectors[precision, tower], precision)
    assert [record.getMessage() for record in caplog.records if record.levelname not in ("INFO", "DEBUG")] == []


def test_sentence_transformers_says_nothing_to_act_on(bundles, capfd):
    """Warnings are errors in tests, and logged ones fail above; nor does anything reach the terminal."""
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(str(bundles["fp32"] / QUERY), backend="onnx", device="cpu").encode(
        ["alpha"], show_progress_bar=False
    )
    assert capfd.readouterr() == ("", "")


# ---- optimum --------------------------------------------------------------------------------------------------


@every_tower
def test_optimum(bundles, vectors, precision, tower):
    torch = pytest.importorskip("torch")
    from optimum.onnxruntime import ORTModelForFeatureExtraction
    from transformers import AutoTokenizer

    folder = bundles[precision] / tower
    model = ORTModelForFeatureExtraction.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def encode(batch):
        columns = [list(column) for column in zip(*batch, strict=True)] if isinstance(batch[0], tuple) else [batch]
        inputs = tokenizer(*columns, padding=True, truncation=True, return_tensors="pt")
        hidden = model(**inputs).last_hidden_state
        real = inputs["attention_mask"].unsqueeze(-1)
        return torch.nn.functional.normalize((hidden * real).sum(dim=1), dim=1).numpy()

    found = [encode(batch) for kind in kinds(ASKED[tower]) for batch in batches(precision, kind)]
    assert_same(np.concatenate(found), vectors[precision, tower], precision)


# ---- onnxruntime and tokenizers, nothing of ours --------------------------------------------------------------


@every_tower
def test_plain_onnxruntime(bundles, vectors, precision, tower):
    import onnxruntime
    from tokenizers import Tokenizer

    folder = bundles[precision] / tower
    session = onnxruntime.InferenceSession(folder / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id("[PAD]"))

    def encode(batch):
        encodings = tokenizer.encode_batch(batch)
        inputs = {
            "input_ids": [encoding.ids for encoding in encodings],
            "attention_mask": [encoding.attention_mask for encoding in encodings],
            "token_type_ids": [encoding.type_ids for encoding in encodings],
        }
        return session.run(["sentence_embedding"], {name: np.array(rows) for name, rows in inputs.items()})[0]

    found = np.concatenate([encode(batch) for batch in batches(precision, ASKED[tower])])
    assert_same(found, vectors[precision, tower], precision)


# ---- the documentation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", SNIPPETS, ids=range(len(SNIPPETS)))
def test_the_documentations_snippets_run(bundles, block):
    """They work on a made-up bundle; these texts are as good as others."""
    found = {}
    exec(block.replace(DOCUMENTED, str(bundles["fp32"])), found)
    encode = TowerEncoder.load(Bundle.open(bundles["fp32"]), QUERY, threads=1)
    assert_same(np.asarray(found["questions"]), encode([("bacterium", "causes")]), "fp32")


# ---- what else a folder may be --------------------------------------------------------------------------------


def test_narrow_vectors(tmp_path):
    """Readers that pool the hidden states themselves get vectors of the bundle's width too."""
    from sentence_transformers import SentenceTransformer

    bundle = export_bundles(tmp_path, ["fp32"], "--width", "16")["fp32"]
    expected = TowerEncoder.load(Bundle.open(bundle), QUERY, threads=1)(PAIRS)
    assert expected.shape == (len(PAIRS), 16)
    model = SentenceTransformer(str(bundle / QUERY), backend="onnx", device="cpu")
    assert_same(model.encode(PAIRS, show_progress_bar=False), expected, "fp32")


def test_a_file_of_another_format_beside_the_graph(bundles, vectors, tmp_path):
    """`.ort` files do not make Hub tools ask which graph is meant."""
    from sentence_transformers import SentenceTransformer

    folder = shutil.copytree(bundles["fp32"] / QUERY, tmp_path / "tower")
    write_ort(folder)
    model = SentenceTransformer(str(folder), backend="onnx", device="cpu")
    assert_same(model.encode(TEXTS, show_progress_bar=False), vectors["fp32", QUERY][: len(TEXTS)], "fp32")
