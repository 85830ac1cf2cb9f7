"""A tower's folder as Hub tools know it: sentence-transformers, optimum, transformers.js open it as it stands."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import onnx
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from pmd.export.graph import graph_bytes
from pmd.grade import Grade
from pmd.serving.bundle import CONFIG, MODEL, TOKENIZER

TOKENIZER_CONFIG, SPECIAL_TOKENS = "tokenizer_config.json", "special_tokens_map.json"
MODULES, SENTENCE_BERT, POOLING = "modules.json", "sentence_bert_config.json", "1_Pooling/config.json"
SPECIAL = {
    "cls_token": ("[CLS]", "<s>"),
    "sep_token": ("[SEP]", "</s>"),
    "pad_token": ("[PAD]", "<pad>"),
    "unk_token": ("[UNK]", "<unk>"),
    "mask_token": ("[MASK]", "<mask>"),
}
"""Roles of special tokens and the names that encoders give them."""


def write_tower(folder: Path, model: onnx.ModelProto, grade: Grade, tower: PreTrainedModel, width: int) -> None:
    """Write a tower's graph, tokenizer and configurations into a new folder. width: numbers per vector."""
    (folder / MODEL).parent.mkdir(parents=True)
    (folder / MODEL).write_bytes(graph_bytes(model))
    max_tokens = grade.info.max_tokens
    tokens = special_tokens(grade.tokenizer_json)
    config = copy.deepcopy(tower.config)
    config.architectures = [type(tower).__name__]
    files: dict[str, Any] = {
        CONFIG: json.loads(config.to_json_string()),
        TOKENIZER_CONFIG: tokenizer_config(grade.tokenizer_json, config.model_type, max_tokens) | tokens,
        SPECIAL_TOKENS: tokens,
        SENTENCE_BERT: {"max_seq_length": max_tokens, "do_lower_case": False},
        MODULES: _modules(),
        POOLING: {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True},
    }
    (folder / TOKENIZER).write_text(
        json.dumps(cut_to(grade.tokenizer_json, max_tokens), ensure_ascii=False, separators=(",", ":")), "utf-8"
    )
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(_json(content), encoding="utf-8")


def cut_to(tokenizer_json: str, max_tokens: int) -> dict[str, Any]:
    """The tokenizer that cuts texts as training did and leaves padding to the caller."""
    tokenizer: dict[str, Any] = json.loads(tokenizer_json)
    tokenizer["truncation"] = {
        "direction": "Right",
        "max_length": max_tokens,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    tokenizer["padding"] = None
    return tokenizer


def special_tokens(tokenizer_json: str) -> dict[str, str]:
    """The special tokens that this tokenizer has, by role."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    found = {
        role: next((name for name in names if tokenizer.token_to_id(name) is not None), None)
        for role, names in SPECIAL.items()
    }
    return {role: name for role, name in found.items() if name is not None}


def tokenizer_config(tokenizer_json: str, model_type: str, max_tokens: int) -> dict[str, Any]:
    """How Hub tools build the tokenizer around tokenizer.json."""
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_tokens}
    normalizer = json.loads(tokenizer_json).get("normalizer") or {}
    if model_type == "bert" and normalizer.get("type") == "BertNormalizer":
        # transformers' BERT tokenizer sets these three anew from its configuration, whatever tokenizer.json says
        config |= {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": normalizer["lowercase"],
            "strip_accents": normalizer["strip_accents"],
            "tokenize_chinese_chars": normalizer["handle_chinese_chars"],
        }
    return config


def _modules() -> list[dict[str, Any]]:
    """sentence-transformers' pipeline; it pools and normalises `last_hidden_state` as the graph itself does."""
    steps = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    return [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(steps.items())
    ]


def _json(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
