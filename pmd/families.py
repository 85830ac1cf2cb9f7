"""What differs between families of encoders: rows, positions, token types, attention, and how layers are kept."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
import transformers
from huggingface_hub import errors as hub_errors
from torch import Tensor, nn
from transformers import MODEL_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from pmd.errors import EncoderError

POSITIONS_AFTER_PADDING = frozenset({"roberta", "xlm-roberta", "camembert", "mpnet"})
"""Families that count positions from the padding token's id plus 1 (fairseq's numbering)."""
SHARED_ROW_FAMILIES = frozenset({"bert", "electra"}) | POSITIONS_AFTER_PADDING
"""Encoders that take position_ids and a block mask (tested); the others get a row per text."""

LONGEST = 512
_STRICT: type[Exception] = getattr(hub_errors, "StrictDataclassError", ValueError)  # not in old versions
BUILD_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, _STRICT)
"""What transformers raises for a config it cannot read or a model it cannot build."""
LOWEST = torch.finfo(torch.float32).min


def check_is_encoder(config: PretrainedConfig) -> None:
    """Raise EncoderError for a model that is no bidirectional encoder of text: a decoder, or one with a decoder."""
    family = config.model_type
    if config.is_encoder_decoder:
        kind = "an encoder with a decoder"
    elif family not in MODEL_FOR_MASKED_LM_MAPPING_NAMES or getattr(config, "is_decoder", False):
        kind = "not a bidirectional encoder"
    else:
        return
    raise EncoderError(
        f"a {family} model is {kind}; use an encoder trained on masked tokens: BERT, MPNet, RoBERTa, ModernBERT, …"
    )


def as_plain_config(config: PretrainedConfig) -> PretrainedConfig:
    """The config for building float32 models here: no half precision, no code from a hub, no compiling unasked.

    Raises EncoderError for a config of no model at all.
    """
    if getattr(config, "num_attention_heads", 1) < 1:
        raise EncoderError(
            f"num_attention_heads is {config.num_attention_heads}, expected 1 or more; correct config.json"
        )
    setattr(config, "dtype" if hasattr(config, "dtype") else "torch_dtype", torch.float32)  # by transformers' age
    for name, value in {"auto_map": None, "reference_compile": False}.items():
        if hasattr(config, name):
            setattr(config, name, value)
    return config


def attention_of(config: PretrainedConfig) -> str:
    """The attention to build a model with: torch's fused one, if the family has it. Raises KeyError if unknown."""
    return "sdpa" if getattr(MODEL_MAPPING[type(config)], "_supports_sdpa", False) else "eager"


def first_position(config: PretrainedConfig) -> int:
    """The position of a text's first token. Raises EncoderError if that follows from a padding token not given."""
    if config.model_type not in POSITIONS_AFTER_PADDING:
        return 0
    if config.pad_token_id is None:
        raise EncoderError(
            f"a {config.model_type} encoder counts positions from pad_token_id; name it in config.json"
        )
    return config.pad_token_id + 1


def longest_text(config: PretrainedConfig) -> int:
    """Tokens of the longest text there are positions for, or what recipes allow where none are counted."""
    return int(getattr(config, "max_position_embeddings", LONGEST)) - first_position(config)


def token_types(tower: PreTrainedModel, types: Tensor) -> dict[str, Tensor]:
    """The token types to give a tower, as a keyword: none where the family reads none, 0 where it knows but one.

    types: int64 (R, L), the tokenizer's. Without any, some families look them up in a table as long as a text.
    """
    known = getattr(tower.config, "type_vocab_size", 0)
    if not known or "token_type_ids" not in inspect.signature(tower.forward).parameters:
        return {}
    return {"token_type_ids": types if known > 1 else torch.zeros_like(types)}


def block_mask(tower: PreTrainedModel, text: Tensor) -> Tensor:
    """The attention mask of shared rows: only inside a text (padding attends to padding, and is dropped after).

    text: int64 (R, L), the text a token belongs to, -1 on padding.
    """
    same = text[:, :, None] == text[:, None, :]
    if int(transformers.__version__.split(".")[0]) < 5:
        return same.float()  # transformers 4 turns (R, L, L) ones and zeros into its additive mask
    if tower.config._attn_implementation == "sdpa":
        return same[:, None]  # transformers 5 passes a four-dimensional mask through …
    return torch.zeros_like(same, dtype=torch.float32).masked_fill(~same, LOWEST)[:, None]  # … and eager adds it


def layer_stack(tower: PreTrainedModel) -> nn.ModuleList:
    """The transformer layers of a tower, whatever its family calls them. Raises EncoderError if unclear."""
    return _named_stack(tower)[1]


def stack_name(tower: PreTrainedModel) -> str:
    """What a tower calls its layers, as in `encoder.layer`. Raises EncoderError if unclear."""
    return _named_stack(tower)[0]


def _named_stack(tower: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    depth = tower.config.num_hidden_layers
    for name, module in tower.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return name, module
    raise EncoderError(f"no stack of {depth} layers found in a {tower.config.model_type} encoder")


def cut_config(config: PretrainedConfig, layers: Sequence[int]) -> None:
    """Change a config to that of an encoder of which only `layers` are left.

    ModernBERT attends locally in some layers and globally in others: a list of kinds in transformers 5, a period in
    transformers 4, where a cut that has no period keeps the old one and does not survive saving.
    """
    every = getattr(config, "global_attn_every_n_layers", None)
    if kinds := getattr(config, "layer_types", None):
        config.layer_types = [kinds[layer] for layer in layers]
    elif every:
        wide = [layer % every == 0 for layer in layers]
        config.global_attn_every_n_layers = _period(wide) or every
    config.num_hidden_layers = len(layers)


def _period(marks: Sequence[bool]) -> int | None:
    """The least n such that exactly the places 0, n, 2n, … are marked; None if there is none."""
    places = range(len(marks))
    periods = range(1, len(marks) + 1)
    return next((n for n in periods if all(marks[place] == (place % n == 0) for place in places)), None)
