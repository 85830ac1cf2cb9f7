"""A vocabulary cut down to a graph: its texts read as before, and no vector of theirs moves."""

import json

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig

from pmd.export.bundle import write_bundle
from pmd.export.errors import ExportError
from pmd.export.graph import INPUTS
from pmd.export.loading import load_stage
from pmd.export.making import Making
from pmd.export.source import Run
from pmd.export.vocabulary import graph_texts, shrunk_tower, trimmed_tokenizer, used_pieces
from pmd.families import first_position
from pmd.serving import Scorer
from pmd.serving.texts import Templates
from pmd.serving.tokenization import TextTokenizer
from tests import tiny_run
from tests.tiny_encoder import mpnet_tokenizer, tiny_graph, tiny_tokenizer
from tests.tiny_exports import export_bundles
from tests.tiny_run import MAX_TOKENS, write_run
from tests.tiny_towers import in_torch, tiny_tower

SENTENCES = (
    "the heart pumps blood through the body",
    "a disorder of the heart muscle",
    "blood vessels carry blood away from the heart",
    "Inflammation of the inner ear, sometimes with dizziness",
    "hormones are made by glands",
    "inverse is part of",
    "naïve café: 12 % of 1,024 cells",
    "immunoglobulins bind antigens; antigens bind receptors",
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lamda mu is a part of near inverse big old",
)
BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
FAIRSEQ_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def word_pieces():
    """As BERT's: longest match, `##` inside words."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=260, special_tokens=BERT_SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def byte_pairs():
    """As RoBERTa's: merges of bytes, a space belongs to the word that follows it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=FAIRSEQ_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def likeliest_pieces():
    """As XLM-RoBERTa's: the likeliest pieces, `▁` before words."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=FAIRSEQ_SPECIAL, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


KINDS = {"WordPiece": word_pieces, "BPE": byte_pairs, "Unigram": likeliest_pieces}


@pytest.fixture(scope="module")
def tokenizers():
    """By kind, as tokenizer.json."""
    return {kind: build().to_str() for kind, build in KINDS.items()}


@pytest.fixture(scope="module")
def few(tokenizers):
    """By kind, what is left of them for one sentence."""
    return {kind: Tokenizer.from_str(trimmed(whole, SENTENCES[4:5])[1]) for kind, whole in tokenizers.items()}


def trimmed(tokenizer_json, texts):
    """The pieces kept for some texts, and the tokenizer of them."""
    kept = used_pieces(tokenizer_json, texts)
    return kept, trimmed_tokenizer(tokenizer_json, kept)


def assert_reads_alike(whole, kept, small, texts):
    """The same pieces, in ids and in words, and the same token types."""
    old, new = Tokenizer.from_str(whole), Tokenizer.from_str(small)
    for before, after in zip(old.encode_batch(texts), new.encode_batch(texts), strict=True):
        assert (after.tokens, after.type_ids) == (before.tokens, before.type_ids)
        assert kept[after.ids].tolist() == before.ids
        assert [new.id_to_token(index) for index in after.ids] == [old.id_to_token(index) for index in before.ids]


# ---- tokenizers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20)
@given(chosen=st.sets(st.sampled_from(SENTENCES), min_size=1))
def test_texts_read_as_before(tokenizers, kind, chosen):
    texts = sorted(chosen)
    kept, small = trimmed(tokenizers[kind], texts)
    assert_reads_alike(tokenizers[kind], kept, small, [*texts, *zip(texts, reversed(texts), strict=True)])


@pytest.mark.parametrize("kind", KINDS)
def test_unused_pieces_are_gone(tokenizers, kind):
    kept, small = trimmed(tokenizers[kind], SENTENCES[:1])
    assert Tokenizer.from_str(small).get_vocab_size() == len(kept)
    assert len(kept) < 0.85 * Tokenizer.from_str(tokenizers[kind]).get_vocab_size()
    assert (np.diff(kept) > 0).all()


@given(st.data())
def test_unseen_words_are_spelled_in_word_pieces(tokenizers, few, data):
    vocabulary = json.loads(tokenizers["WordPiece"])["model"]["vocab"]
    letters = sorted(piece for piece in vocabulary if len(piece) == 1 and f"##{piece}" in vocabulary)
    assert len(letters) > 20
    text = data.draw(st.text(alphabet=[*letters, " "], max_size=30))
    encoding = few["WordPiece"].encode(text)
    assert "[UNK]" not in encoding.tokens
    spelled = "".join(token.removeprefix("##") for token in encoding.tokens[1:-1])
    assert spelled == text.replace(" ", "")


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30))
def test_any_text_survives_byte_pairs(few, text):
    assert few["BPE"].decode(few["BPE"].encode(text).ids) == text


@given(st.data())
def test_unseen_words_are_spelled_in_the_likeliest_pieces(tokenizers, few, data):
    letters = sorted(piece for piece, _ in json.loads(tokenizers["Unigram"])["model"]["vocab"] if len(piece) == 1)
    assert len(letters) > 20
    text = data.draw(st.text(alphabet=letters, max_size=30))
    encoding = few["Unigram"].encode(text)
    assert few["Unigram"].token_to_id("<unk>") not in encoding.ids
    assert "".join(encoding.tokens[1:-1]).replace("▁", "") == text.replace("▁", "")


def test_a_character_never_learned_stays_unknown(tokenizers):
    for kind, unknown in (("WordPiece", "[UNK]"), ("Unigram", "<unk>")):
        small = Tokenizer.from_str(trimmed(tokenizers[kind], ["the heart"])[1])
        assert small.encode("☃").ids[-2] == small.token_to_id(unknown)


def test_unknown_characters_read_as_before(tokenizers):
    texts = ["☃ the heart☃", "body ☃☃ blood"]
    for kind in KINDS:
        kept, small = trimmed(tokenizers[kind], texts)
        assert_reads_alike(tokenizers[kind], kept, small, texts)


@pytest.mark.parametrize(
    "model",
    [
        models.Unigram([("never", -1.0), ("nothing", 0.0), ("ab", -2.0)], unk_id=1, byte_fallback=False),
        models.WordLevel({"never": 0, "nothing": 1, "ab": 2}, unk_token="nothing"),
        models.WordPiece({"never": 0, "nothing": 1, "ab": 2}, unk_token="nothing"),
        models.BPE({"never": 0, "nothing": 1, "a": 2, "b": 3, "ab": 4}, [("a", "b")], unk_token="nothing"),
    ],
    ids=["Unigram", "WordLevel", "WordPiece", "BPE"],
)
def test_the_unknown_token_is_kept_whatever_its_name(model):
    tokenizer = Tokenizer(model)
    kept, small = trimmed(tokenizer.to_str(), ["ab"])
    assert "never" not in Tokenizer.from_str(small).get_vocab()
    assert_reads_alike(tokenizer.to_str(), kept, small, ["ab", "☃"])
    assert Tokenizer.from_str(small).encode("☃").ids == [0]


def test_an_unknown_character_is_as_unlikely_as_before():
    """Its score is 10 below the unlikeliest piece: without `rare`, a + unknown + cd would beat abc + d."""
    pieces = [("<unk>", 0.0), ("a", -1.0), ("abc", -20.0), ("cd", -1.0), ("d", -20.0), ("rare", -60.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    texts = ["abcd", "cd"]
    assert tokenizer.encode("abcd").tokens == ["abc", "d"]
    kept, small = trimmed(tokenizer.to_str(), texts)
    assert_reads_alike(tokenizer.to_str(), kept, small, texts)


def special_last(processor):
    """Words first, so that special tokens are renumbered; `processor` is given their old ids."""
    words = ["never", "used", *"a b c heart blood ##s of".split(), "never2"]
    tokens = {token: index for index, token in enumerate([*words, *BERT_SPECIAL])}
    tokenizer = Tokenizer(models.WordPiece(tokens, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processor(("[SEP]", tokens["[SEP]"]), ("[CLS]", tokens["[CLS]"]))
    return tokenizer


def template(sep, cls):
    return processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[cls, sep]
    )


def sequence(sep, cls):
    return processors.Sequence([processors.ByteLevel(), template(sep, cls)])


@pytest.mark.parametrize(
    "processor",
    [processors.BertProcessing, processors.RobertaProcessing, template, sequence],
    ids=["bert", "roberta", "template", "sequence"],
)
@pytest.mark.parametrize("added", [True, False])
def test_special_tokens_are_renumbered(processor, added):
    tokenizer = special_last(processor)
    if added:
        tokenizer.add_special_tokens(BERT_SPECIAL)
    texts = ["heart of blood", "hearts"]
    kept, small = trimmed(tokenizer.to_str(), texts)
    assert len(kept) == tokenizer.get_vocab_size() - 3  # the words never used
    assert_reads_alike(tokenizer.to_str(), kept, small, [*texts, tuple(texts), ("", ""), "x heart"])
    before, after = tokenizer.encode("hearts", "of"), Tokenizer.from_str(small).encode("hearts", "of")
    assert before.tokens == after.tokens
    assert before.type_ids == after.type_ids
    assert before.special_tokens_mask == after.special_tokens_mask
    for token in json.loads(small)["added_tokens"]:  # other readers take the file at its word
        assert Tokenizer.from_str(small).token_to_id(token["content"]) == token["id"]
    assert after.ids != before.ids, "nothing was renumbered: this test could not fail"


def test_a_token_that_stands_between_the_texts_of_a_pair_is_kept():
    tokenizer = special_last(template)
    between = tokenizer.token_to_id("never2")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A", pair="$A never2 $B", special_tokens=[("never2", between)]
    )
    kept, small = trimmed(tokenizer.to_str(), ["heart"])
    assert_reads_alike(tokenizer.to_str(), kept, small, ["heart", ("heart", "hearts")])


@pytest.mark.parametrize("added", [True, False])
def test_padding_is_renumbered(added):
    tokenizer = special_last(template)
    pad = tokenizer.token_to_id("[PAD]")
    if added:
        tokenizer.add_special_tokens(BERT_SPECIAL)
    tokenizer.enable_padding(pad_id=pad, pad_token="[PAD]")
    small = Tokenizer.from_str(trimmed(tokenizer.to_str(), ["heart"])[1])
    assert small.padding["pad_id"] == small.token_to_id("[PAD]") != pad
    short, long = small.encode_batch(["heart", "heart of blood"])
    assert short.ids[-2:] == [small.token_to_id("[PAD]")] * 2
    assert len(short.ids) == len(long.ids)


def test_padding_under_another_name_is_kept():
    tokenizer = special_last(template)
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id("never2"), pad_token="never2")
    small = Tokenizer.from_str(trimmed(tokenizer.to_str(), ["heart"])[1])
    assert small.padding["pad_id"] == small.token_to_id("never2")


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_added_beyond_the_vocabulary_are_kept(tokenizers, kind):
    """As DeBERTa's [MASK], which is no piece of its model."""
    tokenizer = Tokenizer.from_str(tokenizers[kind])
    tokenizer.add_special_tokens([AddedToken("<first>", special=True)])
    tokenizer.add_tokens(["myocardium", "<third>"])
    texts = ["the heart <third> blood", "a myocardium"]
    kept, small = trimmed(tokenizer.to_str(), texts)
    assert kept[-3:].tolist() == [tokenizer.token_to_id(token) for token in ("<first>", "myocardium", "<third>")]
    assert_reads_alike(tokenizer.to_str(), kept, small, [*texts, "<first><third>"])


def test_the_names_of_special_tokens_are_kept_whether_or_not_they_were_added():
    """Padding and the mask are in no text; the embeddings' padding row and Hub tools want them."""
    for tokenizer, special in ((tiny_tokenizer(), BERT_SPECIAL), (mpnet_tokenizer(), FAIRSEQ_SPECIAL)):
        small = Tokenizer.from_str(trimmed(tokenizer.to_str(), ["alpha"])[1])
        for token in set(special) & set(tokenizer.get_vocab()):
            assert small.token_to_id(token) is not None


def test_whole_words():
    """A WordLevel tokenizer: what is not a word of the texts is unknown from now on."""
    tokenizer = tiny_tokenizer()
    texts = ["alpha: big", "Beta is a part of old"]
    kept, small = trimmed(tokenizer.to_str(), texts)
    assert_reads_alike(tokenizer.to_str(), kept, small, [*texts, tuple(texts)])
    assert len(kept) < tokenizer.get_vocab_size()
    assert Tokenizer.from_str(small).encode("gamma of").tokens == ["[CLS]", "[UNK]", "of", "[SEP]"]


@pytest.mark.parametrize(("prefix", "suffix"), [("", "</w>"), ("##", ""), ("##", "</w>")])
def test_byte_pairs_of_characters(prefix, suffix):
    """The first BPE tokenizers: signs inside or at the end of words are part of the pieces that are merged."""
    tokenizer = Tokenizer(
        models.BPE(unk_token="<unk>", continuing_subword_prefix=prefix, end_of_word_suffix=suffix)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=250,
        special_tokens=["<unk>"],
        show_progress=False,
        continuing_subword_prefix=prefix,
        end_of_word_suffix=suffix,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    texts = [*SENTENCES[:2]]
    kept, small = trimmed(tokenizer.to_str(), texts)
    assert len(kept) < tokenizer.get_vocab_size()
    assert_reads_alike(tokenizer.to_str(), kept, small, texts)
    last = [
        letter for letter in "abcdefghijklmnopqrstuvwxyz" if f"{prefix}{letter}{suffix}" in tokenizer.get_vocab()
    ]
    assert len(last) > 8
    assert "<unk>" not in Tokenizer.from_str(small).encode(" ".join(f"t{letter}" for letter in last)).tokens


@pytest.mark.parametrize("kind", ["WordPiece", "BPE"])
def test_a_model_that_does_not_say_its_type(tokenizers, kind):
    """As old files on the Hub: the tokenizers library tells them apart by what they hold."""
    old = json.loads(tokenizers[kind])
    del old["model"]["type"]
    if kind == "BPE":
        old["model"]["merges"] = [" ".join(pair) for pair in old["model"]["merges"]]
    kept, small = trimmed(json.dumps(old), SENTENCES[:2])
    assert_reads_alike(tokenizers[kind], kept, small, SENTENCES[:2])


@pytest.mark.parametrize("vocabulary", [None, "vocab.txt"])
def test_a_vocabulary_of_another_kind_is_refused(tokenizers, vocabulary):
    strange = json.loads(tokenizers["WordPiece"])
    strange["model"] = {"type": "Syllables", "vocab": vocabulary}
    with pytest.raises(ExportError, match="of a Syllables tokenizer cannot be trimmed; export it without --trim-v"):
        used_pieces(json.dumps(strange), SENTENCES)


# ---- texts of a graph -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("neighbours", [0, 1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_every_question_and_entity_of_a_graph_reads_as_before(tokenizers, kind, neighbours):
    """Hidden answers make room for neighbours that no entity's text shows."""
    builder = tiny_graph().texts(Templates(neighbours=neighbours))
    heads, relations = (part.ravel() for part in np.meshgrid(np.arange(12), np.arange(6)))
    texts = [*builder.queries(heads, relations), *builder.entities()]
    texts += [builder.wording(*row) for row in zip(builder.names, builder.descriptions, strict=True)]
    kept, small = trimmed(tokenizers[kind], graph_texts(builder))
    assert_reads_alike(tokenizers[kind], kept, small, texts)


# ---- towers ---------------------------------------------------------------------------------------------------

TOWERS = {
    "bert": (word_pieces, {}),
    "electra": (word_pieces, {"embedding_size": 16}),
    "distilbert": (word_pieces, {}),
    "roberta": (byte_pairs, {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}),
    "xlm-roberta": (likeliest_pieces, {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}),
    "mpnet": (mpnet_tokenizer, {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}),
}


def tower_of(family, tokenizer, **settings):
    """A random tower with a row for every piece, and a few more, as published encoders have."""
    inner = "hidden_dim" if family == "distilbert" else "intermediate_size"
    names = ("dim", "n_heads", "n_layers", inner)
    if family != "distilbert":
        names = ("hidden_size", "num_attention_heads", "num_hidden_layers", inner)
    sizes = dict(zip(names, (32, 2, 2, 64), strict=True)) | {"vocab_size": tokenizer.get_vocab_size() + 6}
    return tiny_tower(AutoConfig.for_model(family, **sizes | {"max_position_embeddings": 64} | settings))


def vectors(tower, tokenizer_json, texts):
    tokenizer = TextTokenizer(tokenizer_json, MAX_TOKENS)
    return in_torch(tower, tokenizer(texts).padded(tokenizer.pad_id))


@pytest.mark.parametrize("family", TOWERS)
def test_no_vector_of_the_graphs_texts_moves(family):
    build, settings = TOWERS[family]
    tokenizer = build()
    tower = tower_of(family, tokenizer, **settings)
    before = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
    texts = [*SENTENCES[:4], (SENTENCES[5], SENTENCES[4]), SENTENCES[0] + " " + SENTENCES[1]]
    kept, small = trimmed(tokenizer.to_str(), SENTENCES)
    twin = shrunk_tower(tower, MAX_TOKENS, kept)
    for ours, theirs in zip(vectors(twin, small, texts), vectors(tower, tokenizer.to_str(), texts), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert twin.get_input_embeddings().weight.shape[0] == twin.config.vocab_size == len(kept)
    assert len(kept) < tower.config.vocab_size
    assert not twin.training
    for name, tensor in tower.state_dict().items():  # the tower itself is left alone
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("family", TOWERS)
def test_positions_are_cut_to_the_longest_text(family):
    build, settings = TOWERS[family]
    tower = tower_of(family, build(), **settings)
    twin = shrunk_tower(tower, MAX_TOKENS)
    rows = MAX_TOKENS + first_position(tower.config)
    assert len(twin.embeddings.position_embeddings.weight) == twin.config.max_position_embeddings == rows
    assert (rows, tower.config.max_position_embeddings) == ((22 if settings.get("pad_token_id") else 20), 64)
    assert twin.config.vocab_size == tower.config.vocab_size
    rng = np.random.default_rng(0)
    ids = rng.integers(5, tower.config.vocab_size, (3, MAX_TOKENS))
    inputs = dict(zip(INPUTS, (ids, np.ones_like(ids), np.zeros_like(ids)), strict=True))
    for ours, theirs in zip(in_torch(twin, inputs), in_torch(tower, inputs), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_fewer_positions_than_the_longest_text_are_all_kept():
    twin = shrunk_tower(tower_of("bert", word_pieces(), max_position_embeddings=16), MAX_TOKENS)
    assert twin.config.max_position_embeddings == 16


def test_the_config_names_special_tokens_by_their_new_ids():
    tokenizer = special_last(template)
    ids = {role: tokenizer.token_to_id(f"[{role.upper()}]") for role in ("pad", "cls", "sep")}
    tower = tower_of("bert", tokenizer, **{f"{role}_token_id": index for role, index in ids.items()})
    kept, small = trimmed(tokenizer.to_str(), ["heart"])
    config = shrunk_tower(tower, MAX_TOKENS, kept).config
    for role in ids:
        new = Tokenizer.from_str(small).token_to_id(f"[{role.upper()}]")
        assert getattr(config, f"{role}_token_id") == new != ids[role]


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta", "mpnet"])
def test_padding_that_positions_are_counted_from_does_not_move(family):
    tokenizer = special_last(processors.RobertaProcessing)
    tower = tower_of(family, tokenizer, pad_token_id=tokenizer.token_to_id("[PAD]"))
    kept = used_pieces(tokenizer.to_str(), ["heart"])
    said = f"padding token of this {family} encoder would move from 10 to 5.*export it without --trim-vocabulary"
    with pytest.raises(ExportError, match=said):
        shrunk_tower(tower, MAX_TOKENS, kept)


def test_padding_that_is_dropped_is_refused_where_positions_are_counted_from_it():
    tokenizer = special_last(processors.RobertaProcessing)
    tower = tower_of("roberta", tokenizer, pad_token_id=tokenizer.token_to_id("never2"))
    with pytest.raises(ExportError, match="without --trim-vocabulary"):
        shrunk_tower(tower, MAX_TOKENS, used_pieces(tokenizer.to_str(), ["heart"]))


# ---- bundles --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The tiny run, with a tokenizer that has many pieces its graph never uses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_run, "tiny_tokenizer", word_pieces)
        return write_run(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def loaded(run):
    source = Run.open(run)
    return load_stage(source, source.students[2], source.graph())


@pytest.fixture(scope="module")
def whole(loaded, tmp_path_factory):
    root, ready = tmp_path_factory.mktemp("whole"), loaded.ready()
    for precision in ("fp32", "int8"):
        write_bundle(ready, Making(precision), root / precision)
    return {precision: root / precision for precision in ("fp32", "int8")}


@pytest.fixture(scope="module")
def small(run, tmp_path_factory):
    return export_bundles(tmp_path_factory.mktemp("small"), ["fp32", "int8"], "--trim-vocabulary", run=run)


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def questions():
    return (part.ravel() for part in np.meshgrid(np.arange(12), np.arange(6)))


def test_a_loaded_grade_is_trimmed_when_asked(loaded):
    ready = loaded.ready(trim_vocabulary=True)
    pieces = ready.grade.model.query.config.vocab_size
    assert pieces < loaded.grade.model.query.config.vocab_size
    assert loaded.ready().grade.tokenizer_json == loaded.grade.tokenizer_json
    for name, texts in loaded.texts.items():
        ours, theirs = (
            vectors(getattr(grade.model, name), grade.tokenizer_json, texts)[0]
            for grade in (ready.grade, loaded.grade)
        )
        np.testing.assert_array_equal(ours, theirs)
        assert ready.grade.tokenizer(texts).ids.max() < pieces


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_trimmed_bundle_answers_like_the_whole_one(whole, small, precision):
    ours, theirs = (Scorer.load(bundles[precision], threads=1, verify=True) for bundles in (small, whole))
    gap = np.abs(ours.score_queries(*questions()) - theirs.score_queries(*questions())).max()
    assert gap < (1e-6 if precision == "fp32" else 1e-3)
    for head in ours.entity_ids:
        for relation in ours.relation_ids:
            found, wanted = (
                [answer.entity for answer in scorer.top_tails(head, relation, k=5)] for scorer in (ours, theirs)
            )
            assert found == wanted


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_manifest_counts_pieces(whole, small, precision):
    of = word_pieces().get_vocab_size()
    assert manifest(whole[precision])["vocabulary"] == {"pieces": of, "of": of}
    counted = manifest(small[precision])["vocabulary"]
    assert counted["of"] == of
    for tower in ("query", "entity"):
        folder = small[precision] / tower
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        assert tokenizer.get_vocab_size() == counted["pieces"] < of
        config = json.loads((folder / "config.json").read_text())
        assert config["vocab_size"] == counted["pieces"]
        graph = onnx.load(folder / "onnx" / "model.onnx").graph
        assert counted["pieces"] in {weight.dims[0] for weight in graph.initializer if len(weight.dims) == 2}
        assert of not in {dimension for weight in graph.initializer for dimension in weight.dims}


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_name_and_the_files(whole, small, precision):
    assert small[precision].name == f"tiny-pmd-grade-2-{precision}-trimmed"
    for file in ("query/onnx/model.onnx", "entity/onnx/model.onnx", "query/tokenizer.json"):
        ours, theirs = ((bundles[precision] / file).stat().st_size for bundles in (small, whole))
        assert ours < theirs
    assert manifest(small[precision])["parity"]["mrr_kept"] == manifest(whole[precision])["parity"]["mrr_kept"]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_heads_in_unseen_words_are_answered(small, precision):
    scorer = Scorer.load(small[precision], threads=1)
    text = "hormones from glands"
    tokenizer = Tokenizer.from_file(str(small[precision] / "query" / "tokenizer.json"))
    tokens = tokenizer.encode(text).tokens
    assert "[UNK]" not in tokens
    assert not {"hormones", "from", "glands"} & set(tokens)
    answers = scorer.top_tails(text, "isa", k=12, head_is_text=True)
    assert len(answers) == 12
    other = scorer.top_tails("dizziness", "isa", k=12, head_is_text=True)
    assert [answer.score for answer in answers] != [answer.score for answer in other]
    scorer.add_entity("new", name="inner ear", description="with hormones")
    assert "new" in [answer.entity for answer in scorer.top_tails("e1", "isa", k=13)]
