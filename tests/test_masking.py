"""Masks hit only real tokens, at the asked rate, and the same for whoever reads the batch."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models

from pmd.encoder import load_encoder, resolve_encoder
from pmd.errors import EncoderError
from pmd.masking import epoch_mask_rate, mask_tokens, rarity, salience, token_weights
from pmd.serving.tokenization import TextTokenizer
from tests.tiny_encoder import WORDS, tiny_tokenizer, write_encoder


@pytest.fixture(scope="module")
def tokenizer():
    return TextTokenizer(tiny_tokenizer().to_str(), 50)


@pytest.fixture(scope="module")
def table(tokenizer):
    rng = np.random.default_rng(1)
    return tokenizer([(" ".join(rng.choice(WORDS, size)), "part of") for size in rng.integers(1, 8, 3000)])


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5])
def test_rate_and_positions(table, tokenizer, rate):
    masked_table, masked = mask_tokens(table, rate, tokenizer, np.random.default_rng(2))
    special = np.isin(table.ids, tokenizer.special_ids)
    assert not (masked & special).any()
    assert masked[~special].mean() == pytest.approx(rate, rel=0.05)
    assert (masked_table.ids[masked] == tokenizer.mask_id).all()
    np.testing.assert_array_equal(masked_table.ids[~masked], table.ids[~masked])
    assert not (table.ids == tokenizer.mask_id).any(), "the unmasked table must stay as it was"


def test_short_texts_are_masked_at_the_rate_too(tokenizer):
    table = tokenizer(["alpha"] * 4000)
    _, masked = mask_tokens(table, 0.2, tokenizer, np.random.default_rng(0))
    assert masked.reshape(-1, 3)[:, 1].mean() == pytest.approx(0.2, abs=0.02)


def test_same_generator_same_masks(table, tokenizer):
    first, second = (mask_tokens(table, 0.2, tokenizer, np.random.default_rng(5))[1] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_rate_zero_masks_nothing(table, tokenizer):
    same, masked = mask_tokens(table, 0.0, tokenizer, np.random.default_rng(0))
    assert same is table
    assert not masked.any()


def test_texts_without_real_tokens_are_left_alone(tokenizer):
    _, masked = mask_tokens(tokenizer(["", "alpha"]), 0.9, tokenizer, np.random.default_rng(0))
    assert not masked[:2].any()


def test_a_tokenizer_without_mask_token_is_refused():
    plain = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer = TextTokenizer(plain.to_str(), 8)
    with pytest.raises(EncoderError, match="mask_rates"):
        mask_tokens(tokenizer(["a"]), 0.5, tokenizer, np.random.default_rng(0))


def test_weights_decide_where_masks_fall(table, tokenizer):
    """Half of the tokens get nine times the weight of the others, and about nine times the first draws."""
    real = ~np.isin(table.ids, tokenizer.special_ids)
    heavy = table.ids % 2 == 0
    weights = np.where(heavy, 9.0, 1.0).astype(np.float32)
    _, masked = mask_tokens(table, 0.2, tokenizer, np.random.default_rng(0), weights)
    assert masked[real].mean() == pytest.approx(0.2, rel=0.05), "weights move masks, they do not add any"
    assert not masked[~real].any()
    assert masked[real & heavy].mean() > 3 * masked[real & ~heavy].mean()
    _, even = mask_tokens(table, 0.2, tokenizer, np.random.default_rng(0), np.ones(len(table.ids), np.float32))
    assert even[real & heavy].mean() == pytest.approx(even[real & ~heavy].mean(), rel=0.1)


@pytest.mark.parametrize(
    ("schedule", "gaps", "wanted"),
    [
        ("fixed", [], [0.2, 0.2, 0.2]),
        ("linear", [], [0.2, 0.1, 0.0]),
        ("gap", [4.0, 1.0], [0.2, 0.2, 0.1]),
        ("gap", [1.0, 9.0], [0.2, 0.2, 0.2]),
        ("gap", [0.0, 0.0], [0.2, 0.2, 0.2]),
    ],
)
def test_rate_over_the_epochs(schedule, gaps, wanted):
    got = [epoch_mask_rate(schedule, 0.2, epoch, 3, gaps[:epoch]) for epoch in range(3)]
    assert got == pytest.approx(wanted)
    assert epoch_mask_rate("linear", 0.2, 0, 1, []) == 0.2, "a single epoch keeps its rate"


def test_rare_tokens_weigh_more(table):
    counts = np.bincount(table.ids)
    weights = rarity(table, counts)
    share = counts[table.ids] / counts.sum()
    np.testing.assert_allclose(weights, -np.log(share), rtol=1e-5)
    order = np.argsort(counts[table.ids], kind="stable")
    assert (np.diff(weights[order]) <= 1e-6).all()


@pytest.mark.parametrize("shared_rows", [True, False])
def test_salience_is_each_tokens_share_of_the_text_vector(tokenizer, tmp_path, monkeypatch, shared_rows):
    model = load_encoder(resolve_encoder(str(write_encoder(tmp_path))), dropout=0.1, temperature=0.05)
    monkeypatch.setattr(type(model), "shares_rows", shared_rows)
    table = tokenizer(["alpha beta gamma", "is", "part of the big old delta", "mu mu small"])
    got = salience(model, "entity", table)
    for index in range(len(table)):
        ids = torch.tensor(table.take(np.array([index])).ids[None].astype(np.int64))
        with torch.no_grad():
            hidden = model.entity(input_ids=ids).last_hidden_state[0]
        total = hidden.sum(0)
        share = (hidden @ (total / total.norm())).numpy()
        own = got[table.offsets[index] : table.offsets[index + 1]]
        np.testing.assert_allclose(own, np.maximum(share, 1e-3 * got.max()), atol=1e-5)
        assert share.sum() == pytest.approx(float(total.norm()), rel=1e-5)


def test_policies_give_weights_for_both_tables(tokenizer, tmp_path):
    model = load_encoder(resolve_encoder(str(write_encoder(tmp_path))), dropout=0.1, temperature=0.05)
    tables = {"query": tokenizer([("alpha beta", "is a")]), "entity": tokenizer(["alpha", "gamma delta"])}
    assert token_weights("uniform", model, tables) is None
    for policy in ("salience", "rarity"):
        weights = token_weights(policy, model, tables)
        assert {side: len(values) for side, values in weights.items()} == {
            side: len(table.ids) for side, table in tables.items()
        }
        assert all((values > 0).all() for values in weights.values())
