"""Random towers of a few thousand parameters, inputs for them, and their graphs in onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from transformers import AutoModel, BertConfig, PretrainedConfig, PreTrainedModel

from pmd.export.graph import HIDDEN, INPUTS, VECTOR, SentenceTower, graph_bytes
from pmd.export.int8 import PAIR_LIMIT
from pmd.grade import without_pooler
from pmd.serving.encoder import open_session
from pmd.serving.tokenization import TokenTable

VOCABULARY, MAX_LENGTH = 80, 40


def tiny_config(**changes) -> BertConfig:
    """A BERT of 2 layers, width 32 and 4 heads."""
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": MAX_LENGTH,
    }
    return BertConfig(**settings | changes)


def tiny_tower(config: PretrainedConfig | None = None, seed: int = 0) -> PreTrainedModel:
    """A tower in eval mode; biases and norms are random too, so that a lost one shows."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tower = without_pooler(AutoModel.from_config(config or tiny_config())).eval()
        for parameter in tower.parameters():
            parameter.data = torch.randn_like(parameter) * 0.3
    return tower


def random_inputs(batch: int, length: int, padding: str = "right", seed: int = 0) -> dict[str, np.ndarray]:
    """Ids, mask and types, int64 (B, L). Every row but the first is padded: right, left, or with holes."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, VOCABULARY, (batch, length))
    mask = np.ones_like(ids)
    for row in range(1, batch):
        real = rng.integers(1, length + 1)
        if padding == "right":
            mask[row, real:] = 0
        elif padding == "left":
            mask[row, : length - real] = 0
        else:
            mask[row] = rng.permutation(np.arange(length) < real)
    return dict(zip(INPUTS, (ids, mask, rng.integers(0, 2, (batch, length))), strict=True))


def in_torch(tower: PreTrainedModel, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """What the tower says: vectors (B, D) and hidden states (B, L, D)."""
    with torch.inference_mode():
        vectors, hidden = SentenceTower(tower).eval()(*(torch.from_numpy(inputs[name]) for name in INPUTS))
    return vectors.numpy(), hidden.numpy()


def in_onnx(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """What the graph says: vectors (B, D) and hidden states (B, L, D)."""
    vectors, hidden = open_session(graph_bytes(model), threads=1).run([VECTOR, HIDDEN], inputs)
    return vectors, hidden


def random_texts(count: int = 40, seed: int = 0) -> TokenTable:
    """A token table of texts of 3 to 20 tokens."""
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(3, 21, count))]).astype(np.int64)
    ids = rng.integers(5, VOCABULARY, offsets[-1]).astype(np.int32)
    return TokenTable(ids, np.zeros_like(ids), offsets)


def assert_safe(weights: np.ndarray) -> None:
    """No product of int8 weights (K, N), K even, can overflow 16 bits on AVX2."""
    assert weights.dtype == np.int8
    pairs = weights.astype(int).reshape(-1, 2, weights.shape[1])
    assert np.maximum(pairs, 0).sum(axis=1).max() <= PAIR_LIMIT
    assert np.maximum(-pairs, 0).sum(axis=1).max() <= PAIR_LIMIT
