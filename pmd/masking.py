"""Masking of token tables: the same masked ids go to teacher and student (PMD, arXiv 2401.12997)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pmd.errors import EncoderError
from pmd.serving.known import IntArray, spread
from pmd.serving.tokenization import TextTokenizer, TokenTable


def mask_tokens(
    table: TokenTable, rate: float, tokenizer: TextTokenizer, rng: np.random.Generator
) -> tuple[TokenTable, IntArray]:
    """A copy of the table with `rate` of each text's real tokens replaced by the mask token.

    Real tokens are all but the special ones (CLS, SEP, padding). A text with n real tokens gets rate * n masks,
    rounded up or down at random so that the rate holds on average even for texts of one token; positions are
    drawn without replacement. Returns the masked table and masked, bool (T,). Raises EncoderError if the
    tokenizer has no mask token.
    """
    masked = np.zeros(len(table.ids), dtype=bool)
    if rate == 0.0:
        return table, masked
    if tokenizer.mask_id is None:
        raise EncoderError("the encoder's tokenizer has no mask token; set mask_rates to 0 for every grade")
    real = np.flatnonzero(~np.isin(table.ids, tokenizer.special_ids))
    owner = np.searchsorted(table.offsets, real, side="right") - 1
    count = np.bincount(owner, minlength=len(table))
    wanted = np.floor(rate * count + rng.random(len(table)))
    order = np.lexsort((rng.random(len(real)), owner))  # a random order inside each text
    _, place = spread(np.zeros_like(count), count)
    masked[real[order[place < wanted[owner[order]]]]] = True
    return replace(table, ids=np.where(masked, np.int32(tokenizer.mask_id), table.ids)), masked
