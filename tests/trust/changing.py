"""A sequence of changes to the tiny bundle, the same for every process, and all that can be seen of a graph."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from pmd.serving import Scorer
from pmd.serving.live import LiveGraph
from tests.tiny_bundle import ENTITIES, WIDTH

QUESTIONS = (("aspirin", "treats"), ("fever", "causes"), ("heart attack", "causes"))
"""Asked by text, so that they can be asked whatever was removed."""


class Changes:
    """Changes by number: additions, updates and removals that each depend on those before."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._steps: list[tuple[str, str, dict[str, Any]]] = []
        self._ids = [row.id for row in ENTITIES]
        self._random = random.Random(seed)

    def make(self, scorer: Scorer, number: int) -> None:
        """Make change `number`, counted from 0; those before it must have been made."""
        self.skip(number + 1)
        what, entity, about = self._steps[number]
        if what == "remove":
            scorer.remove_entity(entity)
        elif what == "add":
            scorer.add_entity(entity, **about)
        else:
            scorer.update_entity(entity, **about)

    def skip(self, count: int) -> None:
        """Work out the first `count` changes without making them."""
        while len(self._steps) < count:
            self._steps.append(self._step(len(self._steps)))

    def _step(self, number: int) -> tuple[str, str, dict[str, Any]]:
        draw, pick = self._random.random(), self._random.choice(self._ids)
        about: dict[str, Any] = {
            "name": f"entity {number} \u00fc",
            "description": "pain " * self._random.randrange(60),
        }
        if self._random.random() < 0.7:
            about["vector"] = [self._random.gauss(0, 1) for _ in range(WIDTH)]
        if draw < 0.5 or len(self._ids) < 6:
            self._ids.append(f"e{number}")
            return "add", f"e{number}", about
        if draw < 0.8:
            return "update", pick, about
        self._ids.remove(pick)
        return "remove", pick, {}


def seen(graph: Scorer) -> tuple[Any, ...]:
    """Ids, texts, vectors to the bit, counts of changes, and answers to the bit."""
    state = _live(graph).snapshot.compacted
    answers = [
        [
            (one.entity, one.name, float(one.score).hex())
            for one in graph.top_tails(head, relation, k=20, head_is_text=True, exclude_known=False)
        ]
        for head, relation in QUESTIONS
    ]
    texts = [tuple(row) for row in state.rows]
    return texts, np.asarray(state.tables.vectors.vectors()).tobytes(), tuple(state.changes), answers


def changes_kept(graph: Scorer) -> int:
    """How many changes the journal of a Scorer holds."""
    journal = _live(graph).journal
    return 0 if journal is None else journal.changes


def _live(graph: Scorer) -> LiveGraph:
    return graph._graph
