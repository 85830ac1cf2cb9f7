"""Tensors on disk as safetensors, with a sha256 over every one of them and over what must fit them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, uint8

from pmd.serving.storage import atomic_file, scratch_folder

SEAL = "sha256"
"""The metadata key that holds it. Files without one, from before there was one, are read as they are."""


def save_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str], beside: bytes = b"") -> None:
    """Write tensors and facts to a safetensors file, whole or not at all.

    beside: bytes kept elsewhere that must fit them. One fact or none gives the same bytes every time: safetensors
    writes several in any order. Raises StorageError if the file cannot be written.
    """
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {**facts, SEAL: seal_of(whole, facts, beside)}
    with scratch_folder(path) as folder, atomic_file(path) as partial:  # safetensors' own temporary files go there
        made = folder / path.name
        try:
            save_file(whole, made, metadata=metadata)
        except SafetensorError as error:
            raise _of_the_system(error, path) from error
        partial.touch()
        made.chmod(partial.stat().st_mode)  # safetensors' files are for their owner alone
        os.replace(made, partial)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file and its facts, not yet compared with its seal.

    Raises SafetensorError, OSError or ValueError for what is not such a file.
    """
    with safe_open(path, framework="pt") as file:
        facts = file.metadata() or {}
        return {name: file.get_tensor(name) for name in file.keys()}, facts


def check_seal(
    tensors: Mapping[str, Tensor], facts: Mapping[str, str], beside: bytes = b"", *, needed: bool = False
) -> None:
    """Raise ValueError if the seal is of other tensors, facts or bytes beside them, or missing though `needed`."""
    if needed and SEAL not in facts:
        raise ValueError("it has no sha256 of its own")
    rest = {key: value for key, value in facts.items() if key != SEAL}
    if SEAL in facts and facts[SEAL] != seal_of(tensors, rest, beside):
        raise ValueError("not what its own sha256 says: changed or damaged")


def _of_the_system(error: SafetensorError, path: Path) -> Exception:
    """The OSError whose number is in the message: safetensors passes on its words alone."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1])), str(path)) if number else error


def seal_of(tensors: Mapping[str, Tensor], facts: Mapping[str, str], beside: bytes) -> str:
    """The hex sha256 of tensors on the CPU by name, of facts by key, and of bytes beside them."""
    found = hashlib.sha256(b"%d " % len(beside) + beside)
    for key in sorted(facts):
        found.update(repr((key, facts[key])).encode("utf-8", "surrogatepass"))
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        found.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        found.update(tensor.reshape(-1).view(uint8).numpy().data)
    return found.hexdigest()
