"""The bundle itself, as its user has it: ids in, names and scores out, known answers left out."""

from __future__ import annotations

from typing import Any

from pmd.benchmarks.peers.material import Material
from pmd.benchmarks.sides import Side


def pmd_side(request: dict[str, Any], material: Material) -> Side:
    """A Scorer that keeps no vector of a question. request: `bundle`, `threads`."""
    from pmd.serving.scorer import Scorer

    scorer = Scorer.load(request["bundle"], threads=request["threads"], cached_queries=0)
    asked = material.questions
    return Side(
        ask=lambda number: asked[number].ask(scorer),
        top=lambda number: [prediction.entity for prediction in asked[number].ask(scorer)],
    )
