"""The bi-encoder: two transformer towers and a learned temperature. Teacher and student are roles it plays."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pmd.errors import EncoderError, RecipeError
from pmd.families import (
    SHARED_ROW_FAMILIES,
    block_mask,
    cut_config,
    first_position,
    layer_stack,
    token_types,
)
from pmd.packing import PackedTexts, pack
from pmd.serving.tokenization import TokenTable

ENCODE_TOKENS = {"cpu": 1_536}
"""Tokens encoded at once outside training, by kind of device: what fits a processor's cache (docs/log.md)."""
MANY_TOKENS = 16_384  # on every other kind


class TowerOutput(NamedTuple):
    """What a tower says of N texts.

    vectors: (N, D), unit length. masked: (M, D), last hidden states at masked positions. masked_text: int64 (M,),
    the text each of them is of. states: (N, I, D), unit length, pooled states of the inner layers asked for.
    """

    vectors: Tensor
    masked: Tensor
    masked_text: Tensor
    states: Tensor


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
    def sharing(self) -> str:
        """What the towers share: `none`, `embeddings` or `all`."""
        if self.entity is self.query:
            return "all"
        own, other = (getattr(tower, "embeddings", None) for tower in (self.query, self.entity))
        return "embeddings" if own is not None and own is other else "none"

    @property
    def num_parameters(self) -> int:
        """Parameters of both towers, shared ones once, and the temperature."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.log_inverse_temperature.device

    @property
    def shares_rows(self) -> bool:
        """Whether several texts may share a row of this encoder."""
        return self.query.config.model_type in SHARED_ROW_FAMILIES

    def tower(self, side: str) -> PreTrainedModel:
        """The tower of a side, `query` or `entity`."""
        return {"query": self.query, "entity": self.entity}[side]

    def cut(self, layers: Sequence[int]) -> BiEncoder:
        """A copy that keeps the given layers, 0-based and rising, and everything outside the stack."""
        if not layers or list(layers) != sorted(set(layers)) or not 0 <= layers[0] <= layers[-1] < self.depth:
            raise RecipeError(
                f"layer map {list(layers)} does not fit an encoder of {self.depth} layers; "
                f"use rising numbers from 0 to {self.depth - 1}"
            )
        clone = copy.deepcopy(self)  # one copy of both: what the towers share they go on sharing
        towers = {id(tower): tower for tower in (clone.query, clone.entity)}.values()
        for tower, stack in [(tower, layer_stack(tower)) for tower in towers]:  # they may share a config
            kept = [stack[index] for index in layers]
            del stack[:]
            stack.extend(kept)
            cut_config(tower.config, layers)
        return clone


def share_towers(model: BiEncoder, sharing: str) -> BiEncoder:
    """The same model, its entity tower taking the query tower's embeddings, or all of it, or nothing.

    Raises EncoderError where a family keeps its embeddings elsewhere.
    """
    if sharing == "all":
        model.entity = model.query
    elif sharing == "embeddings":
        if getattr(model.query, "embeddings", None) is None:
            raise EncoderError(
                f"a {model.query.config.model_type} encoder has no embeddings to share; "
                "set share_towers to none or all"
            )
        model.entity.embeddings = model.query.embeddings
    return model


def unique_state(model: BiEncoder) -> dict[str, Tensor]:
    """The model's tensors by name, each shared one once, under the query tower's name."""
    first: dict[tuple[int, int], str] = {}
    state = model.state_dict()
    for name, tensor in state.items():
        first.setdefault((tensor.data_ptr(), tensor.numel()), name)
    return {name: state[name] for name in first.values()}


def run_tower(tower: PreTrainedModel, texts: PackedTexts, inner: Sequence[int] = ()) -> TowerOutput:
    """Mean of each text's last hidden states, scaled to unit length, and the states at masked positions.

    inner: layers, 0-based, whose pooled states are wanted too.
    """
    inputs = {"input_ids": texts.ids, "output_hidden_states": bool(inner)}
    inputs |= token_types(tower, texts.types)
    if texts.shared_rows:
        inputs |= {"position_ids": texts.positions + first_position(tower.config)}
        inputs |= {"attention_mask": block_mask(tower, texts.text)}
    else:
        inputs |= {"attention_mask": (texts.text >= 0).long()}
    output = tower(**inputs)
    hidden = output.last_hidden_state
    states = [_pooled(output.hidden_states[1 + layer], texts) for layer in inner]
    vectors = _pooled(hidden, texts)
    return TowerOutput(
        vectors=vectors,
        masked=hidden[texts.masked],
        masked_text=texts.text[texts.masked],
        states=torch.stack(states, dim=1) if states else vectors.new_zeros(len(vectors), 0, vectors.shape[1]),
    )


def _pooled(hidden: Tensor, texts: PackedTexts) -> Tensor:
    """(R, L, D) -> (N, D): the mean's divisor cancels in the unit length."""
    real = texts.text >= 0
    sums = hidden.new_zeros(texts.num_texts, hidden.shape[-1])
    return unit_length(sums.index_add(0, texts.text[real], hidden[real]))


def unit_length(vectors: Tensor) -> Tensor:
    """Rows scaled to length 1; written with rsqrt, which every exporter and quantiser takes. (N, D) -> (N, D)."""
    return vectors * torch.rsqrt(vectors.square().sum(dim=-1, keepdim=True).clamp_min(1e-12))


@torch.no_grad()
def encode_table(model: BiEncoder, tower: str, table: TokenTable) -> Tensor:
    """Vectors of all texts of a table by one tower ("query" or "entity"), without masks or dropout. (N, D)."""
    vectors = torch.empty(len(table), model.width, device=model.device)
    for texts, output in encode_chunks(model, tower, table):
        vectors[texts] = output.vectors.float()
    return vectors


@torch.no_grad()
def encode_chunks(
    model: BiEncoder, tower: str, table: TokenTable, inner: Sequence[int] = ()
) -> Iterator[tuple[Tensor, TowerOutput]]:
    """A table's texts through a tower, chunk by chunk: the chunk's places in the table, and what the tower says."""
    was_training = model.training
    model.eval()
    try:
        for chunk in table_chunks(table, model.device):
            packed = pack(table.take(chunk), shared_rows=model.shares_rows).to(model.device)
            yield torch.from_numpy(chunk).to(model.device), run_tower(model.tower(tower), packed, inner)
    finally:
        model.train(was_training)


def even_layers(source: int, target: int) -> tuple[int, ...]:
    """`target` evenly spaced layers of `source`, the last one always kept: 6 -> 3 gives (1, 3, 5)."""
    if not 1 <= target <= source:
        raise RecipeError(f"a grade of {target} layers cannot be cut from {source} layers")
    return tuple((index + 1) * source // target - 1 for index in range(target))


def table_chunks(table: TokenTable, device: torch.device) -> Iterator[np.ndarray]:
    """Text indices in chunks of similar length, each of about as many tokens as the device reads at once."""
    order = np.argsort(table.lengths, kind="stable")
    block = np.cumsum(table.lengths[order]) // ENCODE_TOKENS.get(device.type, MANY_TOKENS)
    for number in np.unique(block):
        yield order[block == number]
