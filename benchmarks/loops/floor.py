"""The floor under a step's time: the products that it cannot do without, at the rate this machine makes them."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from typing import Any

import torch
from torch import nn

from pmd.benchmarks.loops.sides import StepSize
from pmd.families import layer_stack
from pmd.model import BiEncoder


def stack_parameters(model: BiEncoder) -> int:
    """Parameters of one tower's layers: all that a token goes through but the embeddings."""
    return sum(parameter.numel() for parameter in layer_stack(model.query).parameters())


def floor_flops(size: StepSize, parameters: int, teacher_parameters: int) -> int:
    """Operations of a step: 2 a parameter and token forward, 4 backward; the teacher's forward where it reads."""
    return 6 * parameters * size.tokens + 2 * teacher_parameters * size.taught_tokens


def product_shapes(model: BiEncoder) -> Counter[tuple[int, int]]:
    """How often a tower's layers multiply by a matrix of which (in, out) widths."""
    layers = [m for m in layer_stack(model.query).modules() if isinstance(m, nn.Linear)]
    return Counter((layer.in_features, layer.out_features) for layer in layers)


def matmul_rate(model: BiEncoder, tokens: int, *, bf16: bool, laps: int = 7) -> dict[str, Any]:
    """Operations a second of the towers' products with `tokens` rows; medians over laps.

    forward: Y = X W, what the floor is reckoned with; input_gradient: dX = dY W'; weight_gradient: dW = X' dY.
    """
    dtype = torch.bfloat16 if bf16 else torch.float32
    kinds = ("forward", "input_gradient", "weight_gradient")
    seconds, flops = dict.fromkeys(kinds, 0.0), 0
    for (width_in, width_out), times in product_shapes(model).items():
        rows, weight = torch.randn(tokens, width_in).to(dtype), torch.randn(width_out, width_in).to(dtype)
        back = torch.randn(tokens, width_out).to(dtype)
        pairs = ((rows, weight.T), (back, weight), (back.T, rows))
        for kind, (one, other) in zip(kinds, pairs, strict=True):
            seconds[kind] += times * _median_seconds(one, other, laps)
        flops += times * 2 * tokens * width_in * width_out
    return {"tokens": tokens, "dtype": str(dtype).removeprefix("torch.")} | {
        k: flops / s for k, s in seconds.items()
    }


def _median_seconds(one: torch.Tensor, other: torch.Tensor, laps: int) -> float:
    with torch.no_grad():
        torch.mm(one, other)
        found = []
        for _ in range(laps):
            begin = time.perf_counter()
            torch.mm(one, other)
            found.append(time.perf_counter() - begin)
    return statistics.median(found)
