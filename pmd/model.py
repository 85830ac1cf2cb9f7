"""The bi-encoder: two transformer towers and a learned temperature. Teacher and student are roles it plays."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from pmd.errors import EncoderError, RecipeError
from pmd.packing import PackedTexts, pack
from pmd.serving.tokenization import TokenTable

SHARED_ROW_FAMILIES = frozenset({"bert"})
"""Encoders that take position_ids and a block mask; the others get a row per text."""
ENCODE_TOKENS = 16_384  # tokens encoded at once outside training; bounds memory, never changes a vector's text


class TowerOutput(NamedTuple):
    """vectors: (N, D) float, unit length. masked_features: (M, D) last hidden states at masked positions."""

    vectors: Tensor
    masked_features: Tensor


class BiEncoder(nn.Module):
    """Query tower, entity tower and temperature (SimKGC, arXiv 2203.02167)."""

    def __init__(self, query: PreTrainedModel, entity: PreTrainedModel, temperature: float) -> None:
        super().__init__()
        self.query = query
        self.entity = entity
        self.log_inverse_temperature = nn.Parameter(torch.tensor(-math.log(temperature)))

    @property
    def depth(self) -> int:
        """Layers of each tower."""
        return len(layer_stack(self.query))

    @property
    def width(self) -> int:
        """D, the width of hidden states and vectors."""
        return int(self.query.config.hidden_size)

    @property
    def num_parameters(self) -> int:
        """Parameters of both towers and the temperature."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.log_inverse_temperature.device

    @property
    def shares_rows(self) -> bool:
        """Whether several texts may share a row of this encoder."""
        return self.query.config.model_type in SHARED_ROW_FAMILIES

    def encode_queries(self, texts: PackedTexts) -> TowerOutput:
        """Vectors and masked features of query texts."""
        return run_tower(self.query, texts)

    def encode_entities(self, texts: PackedTexts) -> TowerOutput:
        """Vectors and masked features of entity texts."""
        return run_tower(self.entity, texts)

    def cut(self, layers: Sequence[int]) -> BiEncoder:
        """A copy that keeps the given layers, 0-based and rising, and everything outside the stack."""
        if not layers or list(layers) != sorted(set(layers)) or not 0 <= layers[0] <= layers[-1] < self.depth:
            raise RecipeError(
                f"layer map {list(layers)} does not fit an encoder of {self.depth} layers; "
                f"use rising numbers from 0 to {self.depth - 1}"
            )
        return BiEncoder(
            cut_tower(self.query, layers),
            cut_tower(self.entity, layers),
            temperature=math.exp(-float(self.log_inverse_temperature.detach())),
        ).to(self.device)


def run_tower(tower: PreTrainedModel, texts: PackedTexts) -> TowerOutput:
    """Mean of each text's last hidden states, scaled to unit length, and the states at masked positions."""
    real = texts.text >= 0
    if texts.shared_rows:
        hidden = tower(
            input_ids=texts.ids,
            token_type_ids=texts.types,
            position_ids=texts.positions,
            attention_mask=_block_mask(texts.text),
        ).last_hidden_state
    else:
        hidden = tower(input_ids=texts.ids, attention_mask=real.long()).last_hidden_state
    sums = hidden.new_zeros(texts.num_texts, hidden.shape[-1]).index_add(0, texts.text[real], hidden[real])
    return TowerOutput(unit_length(sums), hidden[texts.masked])  # the mean's divisor cancels in the unit length


def unit_length(vectors: Tensor) -> Tensor:
    """Rows scaled to length 1; written with rsqrt, which every exporter and quantiser takes. (N, D) -> (N, D)."""
    return vectors * torch.rsqrt(vectors.square().sum(dim=-1, keepdim=True).clamp_min(1e-12))


@torch.inference_mode()
def encode_table(model: BiEncoder, tower: str, table: TokenTable) -> Tensor:
    """Vectors of all texts of a table by one tower ("query" or "entity"), without masks or dropout. (N, D)."""
    was_training = model.training
    model.eval()
    vectors = torch.empty(len(table), model.width, device=model.device)
    encode = model.encode_queries if tower == "query" else model.encode_entities
    for chunk in _chunks(table):
        packed = pack(table.take(chunk), shared_rows=model.shares_rows).to(model.device)
        vectors[torch.from_numpy(chunk).to(model.device)] = encode(packed).vectors.float()
    model.train(was_training)
    return vectors


def layer_stack(tower: PreTrainedModel) -> nn.ModuleList:
    """The transformer layers of a tower, whatever its family calls them. Raises EncoderError if unclear."""
    depth = tower.config.num_hidden_layers
    stacks = [m for m in tower.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if not stacks:
        raise EncoderError(f"no stack of {depth} layers found in a {tower.config.model_type} encoder")
    return stacks[0]


def cut_tower(tower: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """A deep copy of a tower with only the given layers."""
    clone = copy.deepcopy(tower)
    stack = layer_stack(clone)
    kept = [stack[index] for index in layers]
    del stack[:]
    stack.extend(kept)
    clone.config.num_hidden_layers = len(kept)
    return clone


def even_layers(source: int, target: int) -> tuple[int, ...]:
    """`target` evenly spaced layers of `source`, the last one always kept: 6 -> 3 gives (1, 3, 5)."""
    if not 1 <= target <= source:
        raise RecipeError(f"a grade of {target} layers cannot be cut from {source} layers")
    return tuple((index + 1) * source // target - 1 for index in range(target))


def _block_mask(text: Tensor) -> Tensor:
    """Attention only inside a text (padding attends to padding, and is dropped after)."""
    same = text[:, :, None] == text[:, None, :]
    if int(transformers.__version__.split(".")[0]) >= 5:
        return same[:, None]  # transformers 5 passes a four-dimensional bool mask through
    return same.float()  # transformers 4 turns (R, L, L) ones and zeros into its additive mask


def _chunks(table: TokenTable) -> Iterator[np.ndarray]:
    """Text indices in chunks of similar length, each of about ENCODE_TOKENS tokens."""
    order = np.argsort(table.lengths, kind="stable")
    block = np.cumsum(table.lengths[order]) // ENCODE_TOKENS
    for number in np.unique(block):
        yield order[block == number]
