"""From one layout to another without loss: written, read back, compared, and only then put in place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from pmd.datasets import layouts
from pmd.datasets.writing import CONTROLS
from pmd.errors import ConversionError, DatasetError
from pmd.graph import KnowledgeGraph
from pmd.serving.known import SPLIT_NAMES, IntArray
from pmd.serving.storage import atomic_folder

SPACES = str.maketrans(dict.fromkeys(CONTROLS, " "))


def convert(
    graph: KnowledgeGraph, target: Path, layout: str, *, flatten: bool = False, drop_texts: bool = False
) -> None:
    """Write a graph as a new folder in one of the layouts of `layouts.WRITERS`; all of it, or nothing.

    flatten: tabs and line breaks in texts become spaces. drop_texts: let the bare layout lose texts. Raises
    DatasetError if the layout cannot hold the graph, ConversionError if it does not read back as it was,
    StorageError if the folder exists.
    """
    if layout not in layouts.WRITERS:
        raise DatasetError(f"unknown layout {layout!r}; choose one of {', '.join(layouts.WRITERS)}")
    given = flattened(graph) if flatten else graph
    bare = layout == "bare"
    with atomic_folder(target) as folder:
        layouts.WRITERS[layout](given, folder, **({"drop_texts": drop_texts} if bare else {}))
        difference = first_difference(given, layouts.read(folder).graph(), texts=not (bare and drop_texts))
        if difference:
            raise ConversionError(
                f"{target} would not read back as {graph.name}: {difference}; nothing was written"
            )


def flattened(graph: KnowledgeGraph) -> KnowledgeGraph:
    """The graph with a space for every tab or line break in its texts; ids stay as they are."""

    def flat(texts: Iterable[str]) -> tuple[str, ...]:
        return tuple(text.translate(SPACES) for text in texts)

    return replace(
        graph,
        names=flat(graph.names),
        descriptions=flat(graph.descriptions),
        relation_texts=flat(graph.relation_texts),
    )


def first_difference(one: KnowledgeGraph, other: KnowledgeGraph, *, texts: bool = True) -> str:
    """What tells two graphs apart but for their names and the order of their ids, in words; "" if nothing does.

    texts: whether texts, and entities and relations without a triple, count.
    """
    if texts:
        for what, table, other_table in (
            ("entity", _entities(one), _entities(other)),
            ("relation", _relations(one), _relations(other)),
        ):
            if lost := [key for key, value in table.items() if other_table.get(key) != value]:
                return f"{what} {lost[0]!r} has other texts or is lost"
            if added := other_table.keys() - table.keys():
                return f"{what} {sorted(added)[0]!r} is new"
    places = _places(one.entity_ids, other.entity_ids), _places(one.relation_ids, other.relation_ids)
    for split in SPLIT_NAMES:
        if not np.array_equal(_placed(one.split(split), *places), other.split(split)):
            return f"the {split} triples are not the same"
    return ""


def _entities(graph: KnowledgeGraph) -> dict[str, tuple[str, ...]]:
    return dict(zip(graph.entity_ids, zip(graph.names, graph.descriptions, strict=True), strict=True))


def _relations(graph: KnowledgeGraph) -> dict[str, tuple[str, ...]]:
    return {key: (text,) for key, text in zip(graph.relation_ids, graph.relation_texts, strict=True)}


def _places(ids: tuple[str, ...], others: tuple[str, ...]) -> IntArray:
    """The number in `others` of each of `ids`, -1 where it is gone."""
    place = {key: number for number, key in enumerate(others)}
    return np.array([place.get(key, -1) for key in ids], dtype=np.int64)


def _placed(triples: IntArray, entities: IntArray, relations: IntArray) -> IntArray:
    return np.stack([entities[triples[:, 0]], relations[triples[:, 1]], entities[triples[:, 2]]], axis=1)
