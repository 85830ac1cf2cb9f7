"""Masks hit only real tokens, at the asked rate, and the same for whoever reads the batch."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from pmd.errors import EncoderError
from pmd.masking import mask_tokens
from pmd.serving.tokenization import TextTokenizer
from tests.tiny_encoder import WORDS, tiny_tokenizer


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
