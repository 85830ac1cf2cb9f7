"""torch on the weights that the bundle was made from, with no framework around it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pmd.benchmarks.peers.material import Encode, Material, Pair
from pmd.benchmarks.sides import Side
from pmd.families import token_types
from pmd.grade import load_grade
from pmd.model import unit_length
from pmd.serving.ranking import FloatArray


def eager(request: dict[str, Any], material: Material) -> Side:
    """The query tower as torch runs it by itself. request: `stage`, the weights' folder; `threads`."""
    return material.by_cosine(_encoder(request, lambda module: module))


def compiled(request: dict[str, Any], material: Material) -> Side:
    """The same after torch.compile, for any length of text; the untimed questions pay for compiling."""
    return material.by_cosine(_encoder(request, lambda module: torch.compile(module, dynamic=True)))


class _Tower(torch.nn.Module):
    """The mean of one text's last hidden states, of unit length: token ids and types (1, L) -> (1, D)."""

    def __init__(self, tower: torch.nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
        """One text has no padding, so its mean is over all of it."""
        given = {"input_ids": ids, "attention_mask": mask, **token_types(self.tower, types)}  # type: ignore[arg-type]
        return unit_length(self.tower(**given).last_hidden_state.mean(dim=1))


def _encoder(request: dict[str, Any], prepared: Callable[[torch.nn.Module], Callable[..., Any]]) -> Encode:
    torch.set_num_threads(request["threads"])
    grade = load_grade(Path(request["stage"]))
    tower, tokenizer = prepared(_Tower(grade.model.query).eval()), grade.tokenizer

    def encode(pair: Pair) -> FloatArray:
        given = tokenizer.single(pair)
        inputs = [torch.from_numpy(given[name]) for name in ("input_ids", "attention_mask", "token_type_ids")]
        with torch.inference_mode():
            vector: FloatArray = tower(*inputs)[0].numpy()
        return vector

    return encode
