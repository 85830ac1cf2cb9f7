"""Token tables kept between runs: tokenised once, then memory-mapped, and found by what went into them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pmd.graph import KnowledgeGraph
from pmd.serving.storage import StorageError, atomic_folder
from pmd.serving.texts import Templates
from pmd.serving.tokenization import Text, TextTokenizer, TokenTable

ARRAYS = ("ids", "types", "offsets")
VERSION = "1"  # of the wording and of the layout on disk: raise it when either changes


def content_key(graph: KnowledgeGraph, tokenizer: TextTokenizer, templates: Templates) -> str:
    """Hex sha256 of all that decides a graph's tokens: its texts, training triples, wording and tokenizer."""
    digest = hashlib.sha256(f"{VERSION}\0{tokenizer.fingerprint}\0".encode())
    digest.update(json.dumps(templates.as_dict(), sort_keys=True).encode())
    for texts in (graph.names, graph.descriptions, graph.relation_texts):
        digest.update(len(texts).to_bytes(8, "little"))
        digest.update("\0".join(texts).encode())
    digest.update(np.ascontiguousarray(graph.train, dtype=np.int64).tobytes())
    return digest.hexdigest()


def token_table(
    folder: Path | None, name: str, tokenizer: TextTokenizer, texts: Callable[[], Sequence[Text]]
) -> TokenTable:
    """The table of `texts()`, from `folder`/`name` if it is there, or made and kept there.

    A folder that is damaged is made again. `folder` None keeps nothing.
    """
    if folder is None:
        return tokenizer(texts())
    target = folder / name
    found = _read(target)
    if found is not None:
        return found
    table = tokenizer(texts())
    shutil.rmtree(target, ignore_errors=True)  # damaged: _read said so
    try:
        with atomic_folder(target) as partial:
            for array in ARRAYS:
                np.save(partial / f"{array}.npy", getattr(table, array))
    except (StorageError, OSError):
        return table  # another run was quicker, or the cache cannot be written: the table is right all the same
    return _read(target) or table


def _read(folder: Path) -> TokenTable | None:
    """The memory-mapped table, None where it is absent or does not hold together."""
    try:
        ids, types, offsets = (np.load(folder / f"{array}.npy", mmap_mode="r") for array in ARRAYS)
    except (OSError, ValueError, EOFError):
        return None
    if not (
        ids.ndim == 1
        and ids.shape == types.shape
        and offsets.ndim == 1
        and len(offsets)
        and offsets[-1] == len(ids)
    ):
        return None
    return TokenTable(ids, types, np.array(offsets))
