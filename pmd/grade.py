"""A grade on disk: model.safetensors, config.json and tokenizer.json, checked tensor by tensor on loading."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from pmd.errors import EncoderError, GradeError
from pmd.families import BUILD_ERRORS, as_plain_config, attention_of, longest_text
from pmd.model import BiEncoder, share_towers, unique_state
from pmd.serving.storage import atomic_file, write_atomic
from pmd.serving.texts import Templates
from pmd.serving.tokenization import TextTokenizer

SCHEMA = "pmd-grade/1"
PROBE_TOKENS = 256  # more than local attention sees, so that a layer of the wrong kind shows
CUTS_THAT_WORK = "with layer 0 first (recipe key layer_maps), or another encoder"
WEIGHTS, CONFIG, TOKENIZER, METRICS = "model.safetensors", "config.json", "tokenizer.json", "metrics.json"


@dataclass(frozen=True)
class GradeInfo:
    """What a grade is, beside its weights."""

    stage: str
    encoder: str
    max_tokens: int
    templates: Templates


@dataclass(frozen=True)
class Grade:
    """A loaded grade: the model in eval mode, its tokenizer, and what it is."""

    model: BiEncoder
    tokenizer: TextTokenizer
    tokenizer_json: str
    info: GradeInfo


def save_grade(folder: Path, model: BiEncoder, tokenizer_json: str, info: GradeInfo) -> None:
    """Write a grade's three files, each whole or absent, the weights last."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "schema": SCHEMA,
        "stage": info.stage,
        "grade": model.depth,
        "encoder": info.encoder,
        "max_tokens": info.max_tokens,
        "templates": info.templates.as_dict(),
        "width": model.width,
        "share_towers": model.sharing,
        "encoder_config": model.query.config.to_dict(),
    }
    write_atomic(folder / CONFIG, json.dumps(config, indent=1, sort_keys=True, default=str).encode())
    write_atomic(folder / TOKENIZER, tokenizer_json.encode())
    save_weights(folder / WEIGHTS, model)


def save_weights(path: Path, model: BiEncoder, metadata: dict[str, str] | None = None) -> None:
    """Write the model's tensors as float32 safetensors, whole or absent."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in unique_state(model).items()}
    with atomic_file(path) as partial:
        save_file(tensors, partial, metadata=metadata)


def load_grade(folder: Path) -> Grade:
    """Load a grade; raises GradeError naming the file, or the tensor, that is not as it should be."""
    missing = [name for name in (CONFIG, TOKENIZER, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise GradeError(f"{folder} is not a complete grade: missing {', '.join(missing)}; train it with pmd-train")
    config = _read_config(folder / CONFIG)
    model = empty_model(config["encoder_config"], str(config.get("share_towers", "none")))
    load_weights(folder / WEIGHTS, model)
    tokenizer_json = (folder / TOKENIZER).read_text(encoding="utf-8")
    info = GradeInfo(
        config["stage"], config["encoder"], int(config["max_tokens"]), Templates(**config["templates"])
    )
    return Grade(model.eval(), TextTokenizer(tokenizer_json, info.max_tokens), tokenizer_json, info)


def empty_model(encoder_config: dict[str, Any], sharing: str = "none") -> BiEncoder:
    """A bi-encoder of this architecture with weights still to be loaded. Raises GradeError on a bad config."""
    try:
        settings = dict(encoder_config)
        config = as_plain_config(AutoConfig.for_model(settings.pop("model_type"), **settings))
        towers = [without_pooler(_random_tower(config, attention_of(config))) for _ in range(2)]
    except BUILD_ERRORS as error:
        reason = " ".join(str(error).split())
        raise GradeError(f"encoder_config describes no known architecture: {reason}") from error
    return share_towers(BiEncoder(towers[0], towers[1], temperature=0.05), sharing)


def rebuilt_tower(config: PretrainedConfig, state: Mapping[str, Tensor], attention: str) -> PreTrainedModel:
    """A tower of a configuration and of tensors by name, in eval mode. attention: transformers' name of a kind."""
    tower = without_pooler(_random_tower(config, attention))
    tower.load_state_dict(state)
    return tower.eval()


def _random_tower(config: PretrainedConfig, attention: str) -> PreTrainedModel:
    return AutoModel.from_config(copy.deepcopy(config), attn_implementation=attention, trust_remote_code=False)


def check_survives_saving(model: BiEncoder) -> None:
    """Raise EncoderError where a model would not be the same after saving and loading.

    Some families decide by a layer's number what it does, so a cut stack is another model once it is rebuilt.
    """
    config = model.query.config
    cut = f"a {config.model_type} encoder cut to these {model.depth} layers"
    rebuilt = empty_model(config.to_dict(), model.sharing)
    try:
        rebuilt.load_state_dict(model.state_dict())
    except RuntimeError as error:
        raise EncoderError(f"{cut} cannot be rebuilt from its config; choose others, {CUTS_THAT_WORK}") from error
    probe = torch.arange(min(longest_text(config), PROBE_TOKENS), device=model.device)[None] * 7 % config.vocab_size
    inputs = {"input_ids": probe, "attention_mask": torch.ones_like(probe)}
    was_training = model.training
    with torch.no_grad():
        ours, theirs = (m.eval().query(**inputs).last_hidden_state for m in (model, rebuilt.to(model.device)))
    model.train(was_training)
    if not torch.allclose(ours, theirs, atol=1e-4, rtol=1e-3):
        raise EncoderError(f"{cut} is another one once it is rebuilt; choose others, {CUTS_THAT_WORK}")


def without_pooler(tower: PreTrainedModel) -> PreTrainedModel:
    """Drop the classification pooler, which mean pooling never uses."""
    if getattr(tower, "pooler", None) is not None:
        setattr(tower, "pooler", None)  # noqa: B010 (mypy: a module attribute is never None)
    return tower


def load_weights(path: Path, model: BiEncoder) -> None:
    """Load tensors into `model`; raises GradeError on a damaged file, a wrong name or shape, or NaN."""
    try:
        found = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise GradeError(f"{path} cannot be read as safetensors: {error}") from error
    wanted = unique_state(model)
    if wrong := sorted(set(wanted) ^ set(found)):
        state = "missing" if wrong[0] in wanted else "unexpected"
        raise GradeError(f"{path}: tensor {wrong[0]} is {state}; the file does not match its config.json")
    for name, tensor in found.items():
        if tensor.shape != wanted[name].shape:
            raise GradeError(
                f"{path}: tensor {name} has shape {tuple(tensor.shape)}, expected {tuple(wanted[name].shape)}"
            )
        if not torch.isfinite(tensor).all():
            raise GradeError(f"{path}: tensor {name} holds NaN or infinity; train the grade again")
    model.load_state_dict(found, strict=False)  # names were compared above; shared tensors are there once


def temperature_of(model: BiEncoder) -> float:
    """The learned temperature, > 0."""
    return math.exp(-float(model.log_inverse_temperature.detach()))


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        schema = config["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise GradeError(f"{path} is not a grade's config: {error}") from error
    if schema != SCHEMA:
        raise GradeError(f"{path} has schema {schema!r}; this version reads {SCHEMA!r}")
    lacking = [
        key for key in ("stage", "encoder", "max_tokens", "templates", "encoder_config") if key not in config
    ]
    if lacking:
        raise GradeError(f"{path} lacks {', '.join(lacking)}")
    return dict(config)
