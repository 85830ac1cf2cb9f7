"""The vocabulary that a graph needs, and a tokenizer and a tower cut down to it.

Every text of the graph is tokenised as before: a piece that is dropped was not used by any of them, so the longest
match (WordPiece), the best path (Unigram) and the merges (BPE) they take are all still there. Single characters are
kept as well, so that a text never seen before is read in smaller pieces rather than as unknown.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from pmd.export.errors import ExportError
from pmd.export.towers import SPECIAL
from pmd.families import first_position
from pmd.grade import rebuilt_tower
from pmd.serving.known import IntArray
from pmd.serving.texts import TextBuilder
from pmd.serving.tokenization import TextTokenizer

WHOLE_TEXT = 1 << 20  # tokens: no text is cut here, so that pieces beyond the trained length count as well
CONTINUES = ("##", "▁", "Ġ")
"""How pieces say that they continue, or begin, a word."""
BYTE = 6  # characters of a byte piece such as <0x0A>
SPECIAL_IDS = ("pad", "bos", "eos", "cls", "sep", "mask", "unk", "decoder_start")


def graph_texts(builder: TextBuilder) -> list[str]:
    """Texts that hold every word any query or entity of the graph can hold."""
    relations = [builder.relation(index) for index in range(2 * len(builder.relation_texts))]
    plain = [
        builder.wording(*row) for row in zip(builder.names, builder.descriptions, strict=True)
    ]  # without neighbours, which are names again
    after_others = [f" {name}" for name in builder.names]  # as neighbours; BPE reads the space as part of the word
    return [*builder.entities(), *plain, *builder.names, *after_others, *relations]


def used_pieces(tokenizer_json: str, texts: Sequence[str]) -> IntArray:
    """Ids of the pieces to keep: those the texts use, special ones, and single characters. int64, rising.

    Raises ExportError for a kind of tokenizer whose pieces cannot be told apart.
    """
    tokenizer = json.loads(tokenizer_json)
    model = tokenizer["model"]
    pieces = _pieces(model)
    whole = TextTokenizer(tokenizer_json, WHOLE_TEXT)
    used = {*whole(texts).ids.tolist(), *whole.special_ids.tolist()}
    special = {int(token["id"]) for token in tokenizer.get("added_tokens", [])}
    special |= {pieces[name] for names in SPECIAL.values() for name in names if name in pieces}
    special |= {tokenizer["padding"]["pad_id"]} if tokenizer.get("padding") else set()
    unknown = {pieces.get(str(model.get("unk_token"))), model.get("unk_id")} - {None}
    ending = model.get("end_of_word_suffix") or ""
    single = {index for piece, index in pieces.items() if _is_single(piece.removesuffix(ending))}
    kept = used | special | unknown | single
    if isinstance(model["vocab"], list):  # an unknown character is as unlikely as the unlikeliest piece, and more
        kept.add(min(range(len(model["vocab"])), key=lambda index: model["vocab"][index][1]))
    if "merges" in model:
        kept |= _parts(kept, pieces, _merges(model))
    return np.array(sorted(kept), dtype=np.int64)


def trimmed_tokenizer(tokenizer_json: str, kept: IntArray) -> str:
    """The tokenizer with only the pieces `kept` (ids, rising), numbered anew in the same order."""
    tokenizer = json.loads(tokenizer_json)
    new = {int(old): index for index, old in enumerate(kept)}
    model = tokenizer["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {piece: new[old] for piece, old in model["vocab"].items() if old in new}
    else:
        model["vocab"] = [model["vocab"][old] for old in kept if old < len(model["vocab"])]  # not of added tokens
        if model.get("unk_id") is not None:
            model["unk_id"] = new[model["unk_id"]]
    if "merges" in model:
        model["merges"] = [
            merge for merge, parts in zip(model["merges"], _merges(model), strict=True)
            if all(piece in model["vocab"] for piece in parts)
        ]  # fmt: skip
    for token in tokenizer.get("added_tokens", []):
        token["id"] = new[token["id"]]
    if tokenizer.get("post_processor"):
        tokenizer["post_processor"] = _renumbered(tokenizer["post_processor"], new)
    if tokenizer.get("padding"):
        tokenizer["padding"]["pad_id"] = new[tokenizer["padding"]["pad_id"]]
    return json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))


def shrunk_tower(tower: PreTrainedModel, max_tokens: int, kept: IntArray | None = None) -> PreTrainedModel:
    """A copy with positions for texts of `max_tokens` only and, if given, the pieces `kept` only.

    The same texts give the same vectors, to the bit: nothing is dropped that they look up. Raises ExportError if
    positions are counted from a padding token that would move.
    """
    config, state = copy.deepcopy(tower.config), dict(tower.state_dict())
    if kept is not None:
        _keep_rows(state, _name_of(tower, tower.get_input_embeddings()), torch.from_numpy(kept))
        config.vocab_size = len(kept)
        new = {int(old): index for index, old in enumerate(kept)}
        for role in SPECIAL_IDS:
            old = getattr(config, f"{role}_token_id", None)
            if isinstance(old, int):
                setattr(config, f"{role}_token_id", new.get(old))
    if first_position(tower.config) and config.pad_token_id != tower.config.pad_token_id:
        raise ExportError(
            f"the padding token of this {config.model_type} encoder would move from {tower.config.pad_token_id} to "
            f"{config.pad_token_id}, and positions are counted from it; export it without --trim-vocabulary"
        )
    positions = getattr(getattr(tower, "embeddings", None), "position_embeddings", None)
    if isinstance(positions, torch.nn.Embedding):
        rows = min(positions.num_embeddings, max_tokens + first_position(tower.config))
        _keep_rows(state, _name_of(tower, positions), torch.arange(rows))
        config.max_position_embeddings = rows
        state.pop("embeddings.position_ids", None)  # a buffer that counts up to the table's length
    return rebuilt_tower(config, state, tower.config._attn_implementation)


def _keep_rows(state: dict[str, torch.Tensor], module: str, rows: torch.Tensor) -> None:
    state[f"{module}.weight"] = state[f"{module}.weight"][rows].clone()


def _name_of(tower: PreTrainedModel, module: torch.nn.Module) -> str:
    return next(name for name, other in tower.named_modules() if other is module)


def _pieces(model: dict[str, Any]) -> dict[str, int]:
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        return {str(piece): int(index) for piece, index in vocabulary.items()}
    if isinstance(vocabulary, list):
        return {str(entry[0]): index for index, entry in enumerate(vocabulary)}
    raise ExportError(
        f"the vocabulary of a {model.get('type')} tokenizer cannot be trimmed; export it without --trim-vocabulary"
    )


def _is_single(piece: str) -> bool:
    """Whether a piece is one character, with or without the sign of its place in a word, or a byte."""
    for sign in CONTINUES:
        piece = piece.removeprefix(sign)
    return len(piece) <= 1 or (len(piece) == BYTE and piece.startswith("<0x"))


def _merges(model: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Pairs of pieces that a BPE model joins, and what they become; files write a pair as two or with a space.

    The sign of a piece inside a word, where the model has one, is left out between the two.
    """
    inside = model.get("continuing_subword_prefix") or ""
    pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"])
    return [(left, right, left + right.removeprefix(inside)) for left, right in pairs]


def _parts(kept: Iterable[int], pieces: dict[str, int], merges: list[tuple[str, str, str]]) -> set[int]:
    """Every piece on the way to the kept ones: what merges join to make them, down to characters."""
    names = {index: piece for piece, index in pieces.items()}
    sources: dict[str, list[tuple[str, str]]] = {}
    for left, right, joined in merges:
        sources.setdefault(joined, []).append((left, right))
    found: set[str] = set()
    waiting = [names[index] for index in kept if index in names]
    while waiting:
        piece = waiting.pop()
        if piece in found:
            continue
        found.add(piece)
        waiting += [part for pair in sources.get(piece, []) for part in pair]
    return {pieces[piece] for piece in found if piece in pieces}


def _renumbered(processor: dict[str, Any], new: dict[int, int]) -> dict[str, Any]:
    """A post-processor whose special tokens have their new ids: templates hold lists, BERT's pairs."""
    changed = copy.deepcopy(processor)
    for token in changed.get("special_tokens", {}).values():
        token["ids"] = [new[old] for old in token["ids"]]
    for role in ("cls", "sep"):
        if role in changed:
            changed[role] = [changed[role][0], new[changed[role][1]]]
    changed["processors"] = [_renumbered(part, new) for part in changed.get("processors", [])]
    if not changed["processors"]:
        del changed["processors"]
    return changed
