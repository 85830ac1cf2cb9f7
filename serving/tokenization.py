"""Texts to token ids with the `tokenizers` library alone, the same in training and on the edge."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from tokenizers import Tokenizer

from pmd.serving.errors import PmdError
from pmd.serving.known import IntArray, spread

Text: TypeAlias = str | tuple[str, str]
MASK_TOKENS = ("[MASK]", "<mask>")
TEXT_CHARACTERS = 20_000  # 50 tokens never need more; a 10 MB description would take seconds to tokenise


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
        except Exception as error:  # the Rust side raises bare Exception for every malformed file
            raise TokenizerError(f"tokenizer.json cannot be read: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)  # longest first: a long head never pushes the relation out
        self.max_tokens = max_tokens
        self.fingerprint = hashlib.sha256(f"{max_tokens}\0{tokenizer_json}".encode()).hexdigest()
        self.special_ids = np.unique(self._tokenizer.encode("", "").ids)
        self.pad_id = next((i for t in ("[PAD]", "<pad>") if (i := self._tokenizer.token_to_id(t)) is not None), 0)
        self.mask_id = next((i for t in MASK_TOKENS if (i := self._tokenizer.token_to_id(t)) is not None), None)

    def __call__(self, texts: Sequence[Text]) -> TokenTable:
        """Tokens of texts or text pairs, each cut to `max_tokens`."""
        encodings = self._tokenizer.encode_batch([_clipped(text) for text in texts])
        lengths = [len(encoding.ids) for encoding in encodings]
        return TokenTable(
            ids=np.array([i for encoding in encodings for i in encoding.ids], dtype=np.int32),
            types=np.array([i for encoding in encodings for i in encoding.type_ids], dtype=np.int32),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        )

    def single(self, text: Text) -> dict[str, IntArray]:
        """One text as the usual three inputs, int64 (1, L): what `TokenTable.padded` gives for it, sooner."""
        clipped = _clipped(text)
        pair = (clipped, None) if isinstance(clipped, str) else clipped
        encoding = self._tokenizer.encode(*pair)
        ids = np.array([encoding.ids], dtype=np.int64)
        types = np.array([encoding.type_ids], dtype=np.int64)
        return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": types}


def _clipped(text: Text) -> Text:
    if isinstance(text, str):
        return text[:TEXT_CHARACTERS]
    return text[0][:TEXT_CHARACTERS], text[1][:TEXT_CHARACTERS]
