"""Texts to token ids with the `tokenizers` library alone, the same in training and on the edge."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from tokenizers import Encoding, Tokenizer

from pmd.serving.errors import PmdError
from pmd.serving.known import IntArray, spread

Text: TypeAlias = str | tuple[str, str]
MASK_TOKENS = ("[MASK]", "<mask>")
TEXT_CHARACTERS = 20_000  # 50 tokens never need more; a 10 MB description would take seconds to tokenise


FAILED = "the tokenizer failed on a text"
REASON_CHARACTERS = 300  # of what the library says
MOST_GROWTH = 1000  # times the length of a text; a normaliser that decomposes letters makes 18 of one
MOST_WORD_CHARACTERS = 1000  # of WordPiece, which takes the cube of a word's length; usual is 100


class TokenizerError(PmdError):
    """A tokenizer file cannot be read or used."""


@dataclass(frozen=True)
class TokenTable:
    """Tokens of many texts, flat: ids int32 (T,), types int32 (T,), offsets int64 (N + 1,)."""

    ids: IntArray
    types: IntArray
    offsets: IntArray

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> IntArray:
        """Tokens of each text, int64 (N,)."""
        return np.diff(self.offsets)

    def take(self, texts: IntArray) -> TokenTable:
        """The table of the given texts, in the given order."""
        offsets = np.concatenate([[0], np.cumsum(self.lengths[texts])]).astype(np.int64)
        place = self.places(texts)
        return TokenTable(self.ids[place], self.types[place], offsets)

    def places(self, texts: IntArray) -> IntArray:
        """Where the tokens of the given texts stand in the flat arrays, text after text."""
        return spread(self.offsets[:-1][texts], self.lengths[texts])[1]

    def padded(self, pad_id: int) -> dict[str, IntArray]:
        """The texts as one padded batch of the usual three inputs, int64 (N, L)."""
        real = np.arange(self.lengths.max(initial=1)) < self.lengths[:, None]
        ids, types = np.full(real.shape, pad_id, np.int64), np.zeros(real.shape, np.int64)
        ids[real], types[real] = self.ids, self.types
        return {"input_ids": ids, "attention_mask": real.astype(np.int64), "token_type_ids": types}


class TextTokenizer:
    """A `tokenizer.json` with truncation to `max_tokens`; padding is the caller's choice."""

    def __init__(self, tokenizer_json: str, max_tokens: int) -> None:
        """Raises TokenizerError if the JSON is not a tokenizer."""
        try:
            self._tokenizer = Tokenizer.from_str(tokenizer_json)
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()  # see _cut
            _check_sizes(self._tokenizer, max_tokens)
            self.special_ids = np.unique(self._tokenizer.encode("", "").ids)
        except TokenizerError:
            raise
        except BaseException as error:
            raise _of_the_library(error, "tokenizer.json cannot be read") from error
        self.max_tokens = max_tokens
        self.fingerprint = hashlib.sha256(f"{max_tokens}\0{tokenizer_json}".encode()).hexdigest()
        self.pad_id = next((i for t in ("[PAD]", "<pad>") if (i := self._tokenizer.token_to_id(t)) is not None), 0)
        self.mask_id = next((i for t in MASK_TOKENS if (i := self._tokenizer.token_to_id(t)) is not None), None)

    def __call__(self, texts: Sequence[Text]) -> TokenTable:
        """Tokens of texts or text pairs, each cut to `max_tokens`. Raises TokenizerError where that fails."""
        try:
            encodings = self._tokenizer.encode_batch([_clipped(text) for text in texts])
        except BaseException as error:
            raise _of_the_library(error, FAILED) from error
        cut = [self._cut(encoding) for encoding in encodings]
        return TokenTable(
            ids=np.array([token for ids, _ in cut for token in ids], dtype=np.int32),
            types=np.array([kind for _, types in cut for kind in types], dtype=np.int32),
            offsets=np.concatenate([[0], np.cumsum([len(ids) for ids, _ in cut])]).astype(np.int64),
        )

    def single(self, text: Text) -> dict[str, IntArray]:
        """One text as the usual three inputs, int64 (1, L): what `TokenTable.padded` gives for it, sooner."""
        clipped = _clipped(text)
        pair = (clipped, None) if isinstance(clipped, str) else clipped
        try:
            encoding = self._tokenizer.encode(*pair)
        except BaseException as error:
            raise _of_the_library(error, FAILED) from error
        ids, types = (np.array([row], dtype=np.int64) for row in self._cut(encoding))
        return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": types}

    def _cut(self, encoding: Encoding) -> tuple[list[int], list[int]]:
        """Ids and types of at most `max_tokens` tokens, as the library would cut them.

        The library keeps what it cuts off, every piece of the first text with every piece of the second: gigabytes
        for two long texts.
        """
        ids, types = encoding.ids, encoding.type_ids
        if len(ids) <= self.max_tokens:
            return ids, types
        sides = encoding.sequence_ids  # None for special tokens, which stay
        room = self.max_tokens - sides.count(None)
        left = dict(enumerate(_longest_first(sides.count(0), sides.count(1), room)))
        kept = []
        for place, side in enumerate(sides):
            if side is None or left[side] > 0:
                kept.append(place)
            if side is not None:
                left[side] -= 1
        return [ids[place] for place in kept], [types[place] for place in kept]


def _longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of two texts stay in `room`: a long head never pushes the relation out, nor the other way."""
    short, long = sorted((first, second))
    if short + long > room:
        long = max(short, room - short)
    if short + long > room:
        short, long = room // 2, room - room // 2
    return (short, long) if first <= second else (long, short)


def _check_sizes(tokenizer: Tokenizer, max_tokens: int) -> None:
    """Raise TokenizerError for a tokenizer that makes much of a little: memory or hours of a short text."""
    if tokenizer.normalizer is not None and _growth(json.loads(tokenizer.normalizer.__getstate__())) > MOST_GROWTH:
        raise TokenizerError(f"its normaliser may make a text more than {MOST_GROWTH} times as long")
    if getattr(tokenizer.model, "max_input_chars_per_word", 0) > MOST_WORD_CHARACTERS:
        raise TokenizerError(f"max_input_chars_per_word is above {MOST_WORD_CHARACTERS}")
    if tokenizer.num_special_tokens_to_add(True) > max_tokens:
        raise TokenizerError(f"it adds more special tokens than the {max_tokens} tokens of a text")


def _growth(part: dict[str, Any]) -> float:
    """How many times as long a normaliser, as its JSON says it, may make a text."""
    if part.get("type") == "Sequence":
        return math.prod(_growth(each) for each in part["normalizers"])
    if part.get("type") == "Prepend":
        return 1.0 + len(part["prepend"])
    if part.get("type") == "Replace":  # a regular expression, or an empty text, may match everywhere
        return 1.0 + len(part["content"]) / max(1, len(part["pattern"].get("String", "")))
    return 1.0


def _of_the_library(error: BaseException, what: str) -> BaseException:
    """The TokenizerError for what the Rust side raises: bare Exception, or a panic, which is none; others as is."""
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
        return TokenizerError(f"{what}: {' '.join(str(error).split())[:REASON_CHARACTERS]}")
    return error


def _clipped(text: Text) -> Text:
    if isinstance(text, str):
        return text[:TEXT_CHARACTERS]
    return text[0][:TEXT_CHARACTERS], text[1][:TEXT_CHARACTERS]
