"""One side in its own process: told over stdin which questions to answer, it tells how long each one took."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from pmd.benchmarks.edge.child import Answer, Request
from pmd.benchmarks.sides import Side, obey

Rows = list[dict[str, Any]]


def take_turns(request: Request) -> Answer:
    """Load a side, then obey lines of JSON until stdin ends: `first` and `last` of questions to time, or `top`.

    request: `side`, the file `questions`, and what the side needs. What libraries print goes to stderr.
    """
    channel = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        rows: Rows = json.loads(Path(request["questions"]).read_text(encoding="utf-8"))
        side = _side(request, rows)
        obey(side, request["side"], sys.stdin, channel)
    return {"done": request["side"]}


def _side(request: Request, rows: Rows) -> Side:
    if request["side"] == "pmd":
        return _ours(request, rows)
    from pmd.benchmarks.edge import usual  # torch, sentence-transformers and faiss are loaded here alone

    return (usual.torch_numpy if request["side"] == "torch" else usual.onnx_faiss)(request, rows)


def _ours(request: Request, rows: Rows) -> Side:
    from pmd.benchmarks.questions import TOP, Question
    from pmd.serving.scorer import Scorer

    scorer = Scorer.load(request["bundle"], threads=1, cached_queries=0)
    asked = [Question(**row["question"]) for row in rows]

    def top(number: int) -> list[str]:
        question = asked[number]
        if question.inverse:
            found = scorer.top_heads(question.relation, question.entity, k=TOP, exclude_known=False)
        else:
            found = scorer.top_tails(question.entity, question.relation, k=TOP, exclude_known=False)
        return [prediction.entity for prediction in found]

    return Side(ask=lambda number: asked[number].ask(scorer), top=top)
