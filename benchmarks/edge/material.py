"""The questions of a measurement, written once to a file that every side reads, and how long they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from pmd.benchmarks.edge.child import Answer, Request
from pmd.benchmarks.questions import Question, of_split
from pmd.serving.bundle import QUERY, Bundle
from pmd.serving.scorer import Scorer
from pmd.serving.texts import TextBuilder

QUANTILES = (0, 5, 25, 50, 75, 95, 100)


def write_questions(request: Request) -> Answer:
    """Write `questions` questions of the bundle's split to the file `out`: rows of ids and of text pairs.

    Answers with the sizes of the graph, quantiles of the questions' lengths in tokens, and the first question.
    """
    scorer = Scorer.load(request["bundle"], threads=1)
    asked = of_split(scorer, request["split"], request["questions"])
    pairs = text_pairs(scorer.bundle, asked)
    rows = [{"question": asdict(question), "text": pair} for question, pair in zip(asked, pairs, strict=True)]
    Path(request["out"]).write_text(json.dumps(rows), encoding="utf-8")
    lengths = scorer.bundle.tokenizer(QUERY)(pairs).lengths
    return {
        "entities": scorer.num_entities,
        "relations": scorer.num_relations,
        "tokens": {f"p{p}": float(v) for p, v in zip(QUANTILES, np.percentile(lengths, QUANTILES), strict=True)},
        "first": asdict(asked[0]),
    }


def text_pairs(bundle: Bundle, questions: Sequence[Question]) -> list[tuple[str, str]]:
    """What the query tower reads for each question: (entity's text, relation's text)."""
    tables = bundle.tables
    entities, relations = list(tables.entities), list(tables.relations)
    texts = TextBuilder(
        [row.name for row in entities],
        [row.description for row in entities],
        [row.text for row in relations],
        bundle.templates,
        tables.graph,
        tables.known,
    )
    entity = {row.id: index for index, row in enumerate(entities)}
    relation = {row.id: index for index, row in enumerate(relations)}
    return [
        texts.query(entity[question.entity], relation[question.relation] + question.inverse * len(relations))
        for question in questions
    ]
