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
from torch import Tensor
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from pmd.errors import EncoderError, GradeError
from pmd.families import BUILD_ERRORS, as_plain_config, attention_of, longest_text
from pmd.model import BiEncoder, share_towers, unique_state
from pmd.serving.storage import write_atomic
from pmd.serving.texts import Templates
from pmd.serving.tokenization import TextTokenizer, TokenizerError
from pmd.tensorfile import check_seal, load_tensors, save_tensors

SCHEMA = "pmd-grade/1"
PROBE_TOKENS = 256  # more than local attention sees, so that a layer of the wrong kind shows
CUTS_THAT_WORK = "with layer 0 first (recipe key layer_maps), or another encoder"
REASON_CHARACTERS = 300  # of what a library says
MOST_CLAIMED = 4  # times what the weights hold; nearer counts are told by the tensor that is wrong
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
    """Write a grade's three files, each whole or absent, the weights last: their seal is over all three."""
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
    config_json = json.dumps(config, indent=1, sort_keys=True, default=str).encode()
    write_atomic(folder / CONFIG, config_json)
    write_atomic(folder / TOKENIZER, tokenizer_json.encode())
    save_tensors(folder / WEIGHTS, unique_state(model), {}, _beside(config_json, tokenizer_json.encode()))


def load_grade(folder: Path) -> Grade:
    """Load a grade; raises GradeError naming the file, or the tensor, that is not as it should be."""
    missing = [name for name in (CONFIG, TOKENIZER, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise GradeError(f"{folder} is not a complete grade: missing {', '.join(missing)}; train it with pmd-train")
    config_json, tokenizer_json = ((folder / name).read_bytes() for name in (CONFIG, TOKENIZER))
    config = _parsed_config(config_json, folder / CONFIG)
    tensors, facts = _read_weights(folder / WEIGHTS)
    try:
        check_seal(tensors, facts, _beside(config_json, tokenizer_json))
    except ValueError as error:
        raise GradeError(
            f"{folder}: {WEIGHTS}, {CONFIG} or {TOKENIZER} is {error}; train the grade again"
        ) from error
    model = _built(config, tensors, folder)
    model.load_state_dict(tensors, strict=False)  # names were compared; shared tensors are there once
    try:
        info = GradeInfo(
            config["stage"], config["encoder"], int(config["max_tokens"]), Templates(**config["templates"])
        )
        text = tokenizer_json.decode("utf-8")
        return Grade(model.eval(), TextTokenizer(text, info.max_tokens), text, info)
    except (TypeError, ValueError, OverflowError) as error:
        raise GradeError(f"{folder}: {CONFIG} or {TOKENIZER} is not a grade's: {error}") from error
    except TokenizerError as error:
        raise GradeError(f"{folder / TOKENIZER}: {error}") from error


def empty_model(encoder_config: dict[str, Any], sharing: str = "none") -> BiEncoder:
    """A bi-encoder of this architecture with weights still to be loaded. Raises GradeError on a bad config."""
    try:
        settings = dict(encoder_config)
        config = as_plain_config(AutoConfig.for_model(settings.pop("model_type"), **settings))
        towers = [without_pooler(_random_tower(config, attention_of(config))) for _ in range(2)]
    except BUILD_ERRORS as error:
        reason = " ".join(str(error).split())[:REASON_CHARACTERS]
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


def _built(config: dict[str, Any], tensors: Mapping[str, Tensor], folder: Path) -> BiEncoder:
    """The model of a config, checked to have the tensors of the file. Raises GradeError.

    Its numbers are counted before it gets memory: a config may claim a size that no machine has.
    """
    layers = config["encoder_config"].get("num_hidden_layers", config["encoder_config"].get("n_layers", 0))
    if not isinstance(layers, int) or layers > len(tensors):
        raise GradeError(f"{folder / CONFIG}: num_hidden_layers is {str(layers)[:60]}, the weights have fewer")
    sharing = str(config.get("share_towers", "none"))
    with torch.device("meta"):
        claimed = sum(part.numel() for part in empty_model(config["encoder_config"], sharing).parameters())
    held = sum(tensor.numel() for tensor in tensors.values())
    if claimed > MOST_CLAIMED * held:
        raise GradeError(f"{folder / CONFIG} describes {claimed:,} parameters, the weights have {held:,}")
    model = empty_model(config["encoder_config"], sharing)
    _check_tensors(tensors, model, folder / WEIGHTS)
    return model


def _check_tensors(found: Mapping[str, Tensor], model: BiEncoder, path: Path) -> None:
    """Raise GradeError unless tensors have the names and shapes of a model, and finite numbers."""
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


def temperature_of(model: BiEncoder) -> float:
    """The learned temperature, > 0."""
    return math.exp(-float(model.log_inverse_temperature.detach()))


def _read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        return load_tensors(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise GradeError(f"{path} cannot be read as safetensors: {' '.join(str(error).split())[:200]}") from error


def _beside(config_json: bytes, tokenizer_json: bytes) -> bytes:
    """What the seal of a grade's weights covers besides them."""
    return b"%d %b%b" % (len(config_json), config_json, tokenizer_json)


def _parsed_config(data: bytes, path: Path) -> dict[str, Any]:
    try:
        config = json.loads(data.decode("utf-8"))
        schema = config["schema"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise GradeError(f"{path} is not a grade's config: {error}") from error
    if schema != SCHEMA:
        raise GradeError(f"{path} has schema {schema!r}; this version reads {SCHEMA!r}")
    lacking = [
        key for key in ("stage", "encoder", "max_tokens", "templates", "encoder_config") if key not in config
    ]
    if lacking:
        raise GradeError(f"{path} lacks {', '.join(lacking)}")
    for key in ("encoder_config", "templates"):
        if not isinstance(config[key], dict):
            raise GradeError(f"{path}: {key} is no object")
    return dict(config)
