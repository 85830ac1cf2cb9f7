"""Texts to token ids, their table, and padding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_bundle import MAX_TOKENS, tokenizer_json
from tokenizers import Tokenizer

from pmd.serving.tokenization import TextTokenizer, TokenizerError

TEXTS = ["pain", "a drug against pain and fever", ("heart", "part of"), ""]


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(tokenizer_json(), MAX_TOKENS)


def test_texts_and_pairs_have_the_usual_marks_and_segments(tokenizer):
    table = tokenizer([("heart", "part of"), "heart"])
    cls, heart, sep = tokenizer(["heart"]).ids
    assert table.ids[:3].tolist() == [cls, heart, sep]
    assert table.types[: table.lengths[0]].tolist() == [0, 0, 0, 1, 1, 1]
    assert table.types[table.lengths[0] :].tolist() == [0, 0, 0]
    assert {cls, sep} == set(tokenizer.special_ids.tolist())


def test_a_long_head_never_pushes_the_relation_out(tokenizer):
    table = tokenizer([(" ".join(["pain"] * 100), "part of")])
    assert table.lengths.tolist() == [MAX_TOKENS]
    assert table.types.sum() == 3  # "part", "of" and the last mark


@given(st.integers(0, 40), st.integers(0, 40))
def test_texts_are_cut_as_the_library_cuts_them(first, second):
    """The library itself keeps every pair of the pieces that it cuts off, which is gigabytes for two long texts."""
    library = Tokenizer.from_str(tokenizer_json())
    library.enable_truncation(MAX_TOKENS)
    pair = " ".join(["pain", "fever", "of"] * 14)[: 4 * first], " ".join(["heart", "part"] * 21)[: 4 * second]
    for text in (pair, pair[0]):
        expected = library.encode(*((text,) if isinstance(text, str) else text))
        found = TextTokenizer(tokenizer_json(), MAX_TOKENS)([text])
        assert (found.ids.tolist(), found.types.tolist()) == (expected.ids, expected.type_ids)


@given(st.permutations(range(len(TEXTS))))
def test_taking_texts_equals_tokenising_them(order):
    tokenizer = TextTokenizer(tokenizer_json(), MAX_TOKENS)
    taken = tokenizer(TEXTS).take(np.array(order))
    direct = tokenizer([TEXTS[index] for index in order])
    for name in ("ids", "types", "offsets"):
        np.testing.assert_array_equal(getattr(taken, name), getattr(direct, name))


def test_padding_is_masked_and_marked(tokenizer):
    table = tokenizer(["pain", "a drug against pain"])
    batch = table.padded(tokenizer.pad_id)
    assert batch["input_ids"].shape == (2, 6)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0], [1] * 6]
    assert batch["input_ids"][0, 3:].tolist() == [tokenizer.pad_id] * 3
    assert all(array.dtype == np.int64 for array in batch.values())
    np.testing.assert_array_equal(batch["input_ids"][batch["attention_mask"] == 1], table.ids)


def test_no_texts_make_an_empty_table(tokenizer):
    table = tokenizer([])
    assert len(table) == 0
    assert table.padded(0)["input_ids"].shape == (0, 1)


def test_a_file_that_is_no_tokenizer_is_refused():
    with pytest.raises(TokenizerError, match=r"tokenizer\.json cannot be read"):
        TextTokenizer("{}", MAX_TOKENS)


def test_ten_megabytes_of_text_are_no_trouble(tokenizer):
    assert tokenizer(["pain " * 2_000_000]).lengths.tolist() == [MAX_TOKENS]
