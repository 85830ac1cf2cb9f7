"""Texts packed into rows, so that a step pays for real tokens and not for padding.

Several texts share a row; attention is held inside each text by a block mask and every text counts its
positions from 0, so a packed text has the same hidden states as when encoded alone (tested). On the UMLS
texts, 5 to 17 tokens long, this made a step 3 times faster than one call per length.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pmd.serving.known import IntArray
from pmd.serving.tokenization import TokenTable

ROW_TOKENS = 64  # shorter rows waste more, longer ones pay for attention: 64 to 256 differed by under 15 %
ROW_TEXTS = 3  # a row holds at least this many of the longest texts, so that little of it stays empty


@dataclass(frozen=True)
class PackedTexts:
    """N texts in R rows of L tokens. ids, types, positions, text: int64 (R, L); masked: bool (R, L).

    text[r, l] is the index (0 … N-1) of the text a token belongs to, -1 on padding.
    """

    ids: Tensor
    types: Tensor
    positions: Tensor
    text: Tensor
    masked: Tensor
    num_texts: int
    shared_rows: bool

    def to(self, device: torch.device) -> PackedTexts:
        """The same on another device."""
        ids, types, positions, text, masked = (
            sheet.to(device) for sheet in (self.ids, self.types, self.positions, self.text, self.masked)
        )
        return PackedTexts(ids, types, positions, text, masked, self.num_texts, self.shared_rows)

    @property
    def padding_share(self) -> float:
        """Share of the rows' tokens that are padding, 0 to 1."""
        return float((self.text < 0).float().mean())


def pack(table: TokenTable, masked: IntArray | None = None, *, shared_rows: bool = True) -> PackedTexts:
    """Pack every text of a token table; `masked` is bool (T,), aligned with `table.ids`.

    With `shared_rows=False` each text has a row of its own (encoders whose positions cannot restart).
    """
    lengths = table.lengths
    longest = int(lengths.max(initial=1))
    capacity = max(ROW_TOKENS, ROW_TEXTS * longest) if shared_rows else longest
    row, start, num_rows = _assign(lengths, capacity, shared_rows)
    width = int((start + lengths).max(initial=1))
    owner = np.repeat(np.arange(len(table)), lengths)
    within = np.arange(len(owner)) - np.repeat(table.offsets[:-1], lengths)
    place = (np.repeat(row, lengths), np.repeat(start, lengths) + within)

    def laid_out(values: IntArray, empty: int) -> Tensor:
        sheet = np.full((num_rows, width), empty, dtype=np.int64)
        sheet[place] = values
        return torch.from_numpy(sheet)

    flags = np.zeros(len(owner), dtype=np.int64) if masked is None else masked
    return PackedTexts(
        ids=laid_out(table.ids, 0),
        types=laid_out(table.types, 0),
        positions=laid_out(within, 0),
        text=laid_out(owner, -1),
        masked=laid_out(flags, 0).bool(),
        num_texts=len(table),
        shared_rows=shared_rows,
    )


def _assign(lengths: IntArray, capacity: int, shared_rows: bool) -> tuple[IntArray, IntArray, int]:
    """Row and start of each text: best-fit decreasing, deterministic. (N,), (N,), number of rows."""
    if not shared_rows:
        return np.arange(len(lengths)), np.zeros(len(lengths), np.int64), len(lengths)
    row, start = np.zeros(len(lengths), np.int64), np.zeros(len(lengths), np.int64)
    rows_with: list[list[int]] = [[] for _ in range(capacity + 1)]  # rows by the space left in them
    num_rows = 0
    for text in np.argsort(-lengths, kind="stable"):
        need = int(lengths[text])
        space = next((s for s in range(need, capacity + 1) if rows_with[s]), capacity)
        if rows_with[space]:
            row[text] = rows_with[space].pop()
        else:
            row[text], num_rows = num_rows, num_rows + 1
        start[text] = capacity - space
        rows_with[space - need].append(int(row[text]))
    return row, start, num_rows
