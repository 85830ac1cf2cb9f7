"""Masking of token tables: the same masked ids go to teacher and student (PMD, arXiv 2401.12997).

The paper masks a fixed share of tokens, drawn evenly, and leaves open whether rate and positions can be chosen
better. Positions here: `uniform`, `salience` (tokens that carry the teacher's vector), `rarity` (rare tokens).
Rates over a stage's epochs: `fixed`, `linear` (falling to 0), `gap` (falling as the student nears its teacher).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from pmd.errors import EncoderError
from pmd.model import BiEncoder, run_tower, table_chunks
from pmd.packing import pack
from pmd.serving.known import IntArray, spread
from pmd.serving.tokenization import TextTokenizer, TokenTable

WeightArray: TypeAlias = NDArray[np.float32]
LEAST_WEIGHT = 1e-3  # of the largest: every real token can be drawn


def mask_tokens(
    table: TokenTable,
    rate: float,
    tokenizer: TextTokenizer,
    rng: np.random.Generator,
    weights: WeightArray | None = None,
) -> tuple[TokenTable, IntArray]:
    """A copy of the table with `rate` of each text's real tokens replaced by the mask token.

    Real tokens are all but the special ones (CLS, SEP, padding). A text with n real tokens gets rate * n masks,
    rounded up or down at random so that the rate holds on average even for texts of one token; positions are
    drawn without replacement, evenly or in proportion to `weights`, float32 (T,), > 0. Returns the masked table
    and masked, bool (T,). Raises EncoderError if the tokenizer has no mask token.
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
    draw = rng.random(len(real))
    if weights is not None:  # the k smallest of exponentials with these rates: k draws without replacement
        draw = -np.log1p(-draw) / weights[real]
    order = np.lexsort((draw, owner))  # a random order inside each text
    _, place = spread(np.zeros_like(count), count)
    masked[real[order[place < wanted[owner[order]]]]] = True
    return replace(table, ids=np.where(masked, np.int32(tokenizer.mask_id), table.ids)), masked


def epoch_mask_rate(schedule: str, rate: float, epoch: int, epochs: int, gaps: Sequence[float]) -> float:
    """The mask rate of an epoch (from 0) of a stage of `epochs` epochs that is to start at `rate`.

    `fixed` keeps it; `linear` falls to 0 in the last epoch; `gap` follows how far the student's scores are from
    its teacher's: rate * sqrt(last gap / first gap), never above `rate`. gaps: the mean squared score gap of
    each epoch before this one.
    """
    if schedule == "linear":
        return rate * (1.0 - epoch / (epochs - 1)) if epochs > 1 else rate
    if schedule == "gap" and gaps and gaps[0] > 0.0:
        return rate * min(1.0, math.sqrt(gaps[-1] / gaps[0]))
    return rate


def rarity(table: TokenTable, counts: IntArray) -> WeightArray:
    """Weights (T,) of a table's tokens: the log of one over the share of all tokens that are this one.

    counts: how often each id occurs in the graph's texts, (vocabulary,).
    """
    share = counts[table.ids] / counts.sum()
    return _floored(-np.log(np.clip(share, 1e-12, 1.0)))


@torch.no_grad()
def salience(model: BiEncoder, side: str, table: TokenTable) -> WeightArray:
    """Weights (T,) of a table's tokens: what each adds to its text's vector in the (teacher) model's tower.

    A text's vector v is the sum of its last hidden states h over their common length, so h . v are exact shares
    of that length. Tokens that point away from the text get the least weight.
    """
    weights = np.zeros(len(table.ids))
    model.eval()
    for chunk in table_chunks(table, model.device):
        part = table.take(chunk)
        packed = pack(part, np.ones(len(part.ids), bool), shared_rows=model.shares_rows).to(model.device)
        output = run_tower(model.tower(side), packed)  # all tokens flagged: all hidden states come back
        share = (output.masked * output.vectors[output.masked_text]).sum(dim=1).float().cpu().numpy()
        text, position = output.masked_text.cpu().numpy(), packed.positions[packed.masked].cpu().numpy()
        weights[table.offsets[chunk[text]] + position] = share
    return _floored(weights)


def token_weights(policy: str, teacher: BiEncoder, tables: dict[str, TokenTable]) -> dict[str, WeightArray] | None:
    """Weights of every token of the query and entity tables under a policy; None where positions are uniform."""
    if policy == "salience":
        return {side: salience(teacher, side, table) for side, table in tables.items()}
    if policy == "rarity":
        size = 1 + max(int(table.ids.max(initial=0)) for table in tables.values())
        counts = np.sum([np.bincount(table.ids, minlength=size) for table in tables.values()], axis=0)
        return {side: rarity(table, counts) for side, table in tables.items()}
    return None


def _floored(weights: NDArray[np.floating]) -> WeightArray:
    peak = float(weights.max(initial=0.0))
    return np.maximum(weights, LEAST_WEIGHT * (peak if peak > 0.0 else 1.0)).astype(np.float32)
