"""Small graphs for tests of readers and writers, and how two graphs are compared."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from pmd.graph import KnowledgeGraph
from pmd.serving.known import SPLIT_NAMES


def text(*, without: str = "\t\n\r", min_size: int = 0) -> st.SearchStrategy[str]:
    """Any text that UTF-8 can hold but for some characters."""
    return st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters=without), min_size=min_size, max_size=12
    )


def ids(*, without: str = "\t\n\r") -> st.SearchStrategy[str]:
    """Ids: any text that is not blank."""
    return text(without=without, min_size=1).filter(lambda key: bool(key.strip()))


@st.composite
def graphs(draw, *, without: str = "\t\n\r") -> KnowledgeGraph:
    """A graph of up to five entities and three relations with any texts, every id in a triple or not."""
    entities = draw(st.lists(ids(without=without), min_size=1, max_size=5, unique=True))
    relations = draw(st.lists(ids(without=without), min_size=1, max_size=3, unique=True))
    named = text(without=without, min_size=1)
    triple = st.tuples(
        st.integers(0, len(entities) - 1), st.integers(0, len(relations) - 1), st.integers(0, len(entities) - 1)
    )
    return KnowledgeGraph(
        name="drawn",
        entity_ids=tuple(entities),
        names=tuple(draw(named) for _ in entities),
        descriptions=tuple(draw(text(without=without)) for _ in entities),
        relation_ids=tuple(relations),
        relation_texts=tuple(draw(named) for _ in relations),
        train=as_triples(draw(st.lists(triple, min_size=1, max_size=6))),
        valid=as_triples(draw(st.lists(triple, max_size=3))),
        test=as_triples(draw(st.lists(triple, max_size=3))),
    )


def graph_of(train, valid=(), test=(), *, entities=6, relations=2, **changes) -> KnowledgeGraph:
    """A graph of numbered ids with the given triples."""
    fields = {
        "name": "made",
        "entity_ids": tuple(f"e{number}" for number in range(entities)),
        "names": tuple(f"entity {number}" for number in range(entities)),
        "descriptions": ("some words",) * entities,
        "relation_ids": tuple(f"r{number}" for number in range(relations)),
        "relation_texts": tuple(f"relation {number}" for number in range(relations)),
    }
    splits = {"train": as_triples(train), "valid": as_triples(valid), "test": as_triples(test)}
    return KnowledgeGraph(**(fields | splits | changes))


def as_triples(rows) -> np.ndarray:
    return np.array(list(rows), dtype=np.int64).reshape(-1, 3)


def id_triples(graph: KnowledgeGraph, split: str) -> list[tuple[str, str, str]]:
    return [
        (graph.entity_ids[head], graph.relation_ids[relation], graph.entity_ids[tail])
        for head, relation, tail in graph.split(split).tolist()
    ]


def assert_same(one: KnowledgeGraph, other: KnowledgeGraph, *, numbered: bool = True) -> None:
    """The same ids, texts and triples in the same order; with `numbered` under the same numbers."""
    for columns in (("entity_ids", "names", "descriptions"), ("relation_ids", "relation_texts")):
        rows = [list(zip(*(getattr(graph, column) for column in columns), strict=True)) for graph in (one, other)]
        assert rows[0] == rows[1] if numbered else sorted(rows[0]) == sorted(rows[1])
    for split in SPLIT_NAMES:
        assert id_triples(one, split) == id_triples(other, split)
