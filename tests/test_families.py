"""Encoder families: each is read, cut, trained, saved and exported as a BERT is, or refused in one line."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pmd.encoder import load_encoder, resolve_encoder
from pmd.errors import EncoderError
from pmd.families import layer_stack
from pmd.grade import GradeInfo, check_survives_saving, load_grade, save_grade
from pmd.ladder import train_ladder
from pmd.masking import mask_tokens
from pmd.model import encode_table, run_tower
from pmd.packing import pack, padding_share
from pmd.recipe import load_recipe
from pmd.serving.texts import Templates
from pmd.serving.tokenization import TextTokenizer, TokenTable
from tests.tiny_encoder import FAMILIES, WORDS, tiny_graph, write_encoder, write_family, write_recipe

CPU = torch.device("cpu")
ROWS_OF_THEIR_OWN = ("distilbert", "modernbert")
CUTS = [(0,), (0, 1), (0, 3), (0, 1, 3), (0, 1, 2, 3), (1, 3), (2,)]
ALIKE = ("bert", "bert with one token type", "electra", "xlm-roberta")  # train as what other tests train
MAPS = {"modernbert": {2: [0, 3]}}
TOKENS = {"[CLS]", "[SEP]", "<s>", "</s>"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    return {family: write_family(root / family.replace(" ", "-"), family) for family in FAMILIES}


@pytest.fixture(scope="module")
def models(folders):
    return {family: load(folder).eval() for family, folder in folders.items()}


@pytest.fixture(scope="module")
def tables(folders):
    """60 texts of 1 to 20 words, half of them pairs, as each family's tokenizer reads them."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, size)) for size in rng.integers(1, 21, 60)]
    texts = [*texts[:30], *((text, "is a") for text in texts[30:])]
    return {family: tokenizer_of(folder)(texts) for family, folder in folders.items()}


def load(folder, **settings):
    return load_encoder(resolve_encoder(str(folder)), **{"dropout": 0.1, "temperature": 0.05} | settings)


def tokenizer_of(folder):
    return TextTokenizer((folder / "tokenizer.json").read_text(encoding="utf-8"), 50)


def alone(model, table, index):
    """The vector of one text by transformers' own call: no padding, no positions, no mask but ones."""
    names = ["input_ids", "attention_mask"]
    if getattr(model.query.config, "type_vocab_size", 0) > 1 and model.query.config.model_type != "mpnet":
        names.append("token_type_ids")
    inputs = table.take(np.array([index])).padded(0)
    hidden = model.query(**{name: torch.from_numpy(inputs[name]) for name in names}).last_hidden_state[0]
    return torch.nn.functional.normalize(hidden.mean(dim=0), dim=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_in_a_batch_has_the_vector_it_has_alone(models, tables, family):
    model, table = models[family], tables[family]
    assert model.shares_rows == (family not in ROWS_OF_THEIR_OWN)
    with torch.inference_mode():
        wanted = torch.stack([alone(model, table, index) for index in range(0, len(table), 3)])
        for shared in {False, model.shares_rows}:
            vectors = run_tower(model.query, pack(table, shared_rows=shared)).vectors[::3]
            torch.testing.assert_close(vectors, wanted, rtol=0, atol=2e-6, msg=f"shared rows: {shared}")
    assert (wanted[0] - wanted[1]).norm() > 0.1, "vectors that are all alike would prove nothing"


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_hit_real_tokens_only(tables, folders, family):
    tokenizer, table = tokenizer_of(folders[family]), tables[family]
    masked_table, masked = mask_tokens(table, 0.999, tokenizer, np.random.default_rng(0))
    file = tokenizer._tokenizer
    names = np.array([file.id_to_token(int(index)) for index in table.ids])
    special = np.isin(names, list(TOKENS))
    assert special.sum() == 2 * 30 + (4 if "</s>" in names else 3) * 30
    assert not masked[special].any()
    assert masked[~special].mean() > 0.99
    assert {file.id_to_token(int(index)) for index in masked_table.ids[masked]} <= {"[MASK]", "<mask>"}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layers", CUTS)
def test_a_cut_is_the_same_once_rebuilt_or_refused(models, tables, tmp_path, family, layers):
    cut = models[family].cut(layers)
    if family == "modernbert" and layers[0] != 0:  # its first layer, and only that, has no norm before attention
        with pytest.raises(EncoderError, match=r"modernbert .* cannot be rebuilt .* layer 0 first"):
            check_survives_saving(cut)
        return
    check_survives_saving(cut)
    if layers in {(0, 3), (2,)}:
        save_grade(tmp_path, cut, tokenizer_json_of(family), GradeInfo("grade", family, 50, Templates()))
        for side in ("query", "entity"):
            again = encode_table(load_grade(tmp_path).model, side, tables[family])
            torch.testing.assert_close(again, encode_table(cut, side, tables[family]), rtol=0, atol=1e-6)


def tokenizer_json_of(family):
    return FAMILIES[family][1]().to_str()


def test_a_layer_of_another_kind_is_noticed(tmp_path):
    """Local attention beside global: what a rebuilt layer sees is another text from the window's edge on."""
    rope = {"global_rope_theta": 10_000.0, "local_rope_theta": 10_000.0}
    model = load(write_family(tmp_path, "modernbert", **rope))
    cut = model.cut((0, 2, 3))  # global, local, global
    check_survives_saving(cut)
    config = cut.query.config
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[0], *config.layer_types[:0:-1]]
    else:
        config.global_attn_every_n_layers = 3
    with pytest.raises(EncoderError, match="another one once it is rebuilt"):
        check_survives_saving(cut)


@pytest.mark.parametrize(
    "family", [pytest.param(family, marks=pytest.mark.slow if family in ALIKE else ()) for family in FAMILIES]
)
def test_a_ladder_trains_every_layer_of_both_towers(folders, tmp_path, family):
    recipe = load_recipe(
        str(write_recipe(tmp_path / "toy.yaml", tmp_path, folders[family])),
        {"grades": [2], "mask_rates": [0.3], "epochs": 1, "batch_size": 16, "layer_maps": MAPS.get(family, {})},
    )
    ladder, done = train_ladder(
        recipe, tiny_graph(), tmp_path / "run", device=CPU, resume=False, time_limit=None, progress=False
    )
    assert done
    assert [stage["stage"] for stage in ladder["stages"]] == ["teacher", "grade-2"]
    start = load(folders[family])
    for stage in ladder["stages"]:
        assert np.isfinite(stage["valid"]["mrr"])
        model = load_grade(tmp_path / "run" / stage["stage"]).model
        for side in ("query", "entity"):
            before = [layer_stack(start.tower(side))[index] for index in stage["layers"]]
            for old, new in zip(before, layer_stack(model.tower(side)), strict=True):
                changed = [not a.equal(b) for a, b in zip(old.parameters(), new.parameters(), strict=True)]
                assert all(changed), (stage["stage"], side)
        start = model


def test_a_cut_that_does_not_survive_is_refused_before_anything_trains(folders, tmp_path):
    recipe = load_recipe(
        str(write_recipe(tmp_path / "toy.yaml", tmp_path, folders["modernbert"])), {"grades": [4, 2]}
    )
    with pytest.raises(EncoderError, match="layer 0 first"):
        train_ladder(
            recipe, tiny_graph(), tmp_path / "run", device=CPU, resume=False, time_limit=None, progress=False
        )
    assert not (tmp_path / "run").exists()


def test_the_papers_ladder_cuts_bert_base(tmp_path):
    """12 layers to 9, 6 and 3: the layer maps of the paper's code (arXiv 2401.12997) straight from the encoder."""
    model = load(write_encoder(tmp_path, layers=12, width=16))
    maps = {9: (0, 2, 3, 5, 6, 7, 9, 10, 11), 6: (1, 3, 5, 7, 9, 11), 3: (2, 6, 10)}
    for grade, layers in maps.items():
        cut = model.cut(layers)
        check_survives_saving(cut)
        assert cut.depth == grade
        for new, old in enumerate(layers):
            for side in ("query", "entity"):
                kept = layer_stack(cut.tower(side))[new].state_dict()
                assert all(
                    t.equal(kept[name]) for name, t in layer_stack(model.tower(side))[old].state_dict().items()
                )


LENGTHS = {
    "UMLS": lambda rng: rng.integers(5, 18, 270),
    "names": lambda rng: np.clip(rng.lognormal(1.9, 0.4, 1000), 3, 50),
    "descriptions": lambda rng: np.clip(rng.lognormal(3.1, 0.5, 1500), 5, 50),
    "long descriptions": lambda rng: np.full(512, 50),
}


@pytest.mark.parametrize("kind", LENGTHS)
def test_texts_in_rows_of_their_own_hold_little_padding(kind):
    lengths = LENGTHS[kind](np.random.default_rng(0)).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.ones(offsets[-1], np.int32)
    sheets = pack(TokenTable(ids, np.zeros_like(ids), offsets), shared_rows=False).sheets()
    assert padding_share(sheets) < 0.10
    assert len(sheets) <= 25
    assert sum(sheet.num_texts for sheet in sheets) == len(lengths)


@pytest.mark.parametrize(
    "family",
    [pytest.param(family, marks=() if family == "electra" else pytest.mark.slow) for family in FAMILIES],
)
def test_the_exported_graph_gives_what_training_gives(models, tables, folders, family):
    pytest.importorskip("onnxruntime")
    from pmd.export.graph import export_tower, graph_bytes
    from pmd.export.precisions import BUILDS
    from pmd.serving.encoder import open_session

    model, table = models[family], tables[family]
    graph = export_tower(model.query).model
    inputs = table.padded(tokenizer_of(folders[family]).pad_id)
    wanted = encode_table(model, "query", table).numpy()
    closest = {"fp32": 1 - 1e-6, "fp16": 0.999, "int8": 0.98, "int8-static": 0.98, "int4": 0.7}
    for precision, build in BUILDS.items():
        vectors = open_session(graph_bytes(build(graph, table))).run(None, inputs)[0]
        assert (vectors * wanted).sum(axis=1).min() > closest[precision], precision


def test_half_precision_weights_load_as_float32(tmp_path):
    folder = write_encoder(tmp_path)
    from transformers import AutoModel

    AutoModel.from_pretrained(folder).half().save_pretrained(folder)
    assert load_file(folder / "model.safetensors")["embeddings.word_embeddings.weight"].dtype == torch.float16
    model = load(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    save_grade(folder / "grade", model, tokenizer_json_of("bert"), GradeInfo("grade-4", "half", 50, Templates()))
    for name, tensor in load_grade(folder / "grade").model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert tensor.equal(model.state_dict()[name])
