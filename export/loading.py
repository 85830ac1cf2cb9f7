"""A stage of a run, loaded and made ready: what all bundles of one grade share is computed here, once."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from pmd.export.equalise import sample
from pmd.export.graph import FusedGraph, export_tower
from pmd.export.parity import Reference, queries_of, split_to_compare
from pmd.export.source import Run, RunStage
from pmd.grade import Grade, load_grade
from pmd.graph import KnowledgeGraph
from pmd.model import encode_table
from pmd.serving.bundle import ENTITY, QUERY
from pmd.serving.known import TRAIN, VALID, KnownAnswers
from pmd.serving.ranking import FloatArray
from pmd.serving.texts import TextBuilder
from pmd.serving.tokenization import TokenTable

log = logging.getLogger(__name__)
SAME_MRR = 1e-3  # torch's valid MRR now and at the end of training; other devices differ by less


@dataclass(frozen=True)
class Tower:
    """One tower, ready for every precision."""

    graph: FusedGraph
    samples: TokenTable
    """Training texts, a few hundred, to choose scales by."""
    texts: list[str] | list[tuple[str, str]]
    """What is compared with torch: the queries of a split, or every entity."""


@dataclass(frozen=True)
class LoadedGrade:
    """A stage's model and graph, its two towers by name, and what torch says about their texts."""

    run: Run
    stage: RunStage
    grade: Grade
    graph: KnowledgeGraph
    known: KnownAnswers
    towers: dict[str, Tower]
    reference: Reference


def load_stage(run: Run, stage: RunStage, graph: KnowledgeGraph) -> LoadedGrade:
    """Load a stage, export its towers in float32 and encode the texts to compare.

    Raises GradeError for a damaged stage, ExportError if a tower does not export or fuse.
    """
    grade = load_grade(stage.folder)
    known, builder = graph.known(), graph.texts(grade.info.templates)
    split = split_to_compare(known)
    pairs = queries_of(known, split)
    queries, entities = builder.queries(*pairs), builder.entities()
    reference = Reference.of(
        known,
        split,
        pairs,
        _torch_vectors(grade, QUERY, queries),
        _torch_vectors(grade, ENTITY, entities),
    )
    _warn_if_changed(stage, reference, split)
    towers = {
        QUERY: Tower(export_tower(grade.model.query), grade.tokenizer(_training_queries(known, builder)), queries),
        ENTITY: Tower(
            export_tower(grade.model.entity),
            grade.tokenizer([entities[index] for index in sample(len(entities))]),
            entities,
        ),
    }
    return LoadedGrade(run, stage, grade, graph, known, towers, reference)


def _torch_vectors(grade: Grade, tower: str, texts: list[str] | list[tuple[str, str]]) -> FloatArray:
    return np.asarray(encode_table(grade.model, tower, grade.tokenizer(texts)).cpu().numpy())


def _training_queries(known: KnownAnswers, builder: TextBuilder) -> list[tuple[str, str]]:
    """A few hundred training queries, evenly spread."""
    heads, relations = queries_of(known, TRAIN)
    chosen = sample(len(heads))
    return builder.queries(heads[chosen], relations[chosen])


def _warn_if_changed(stage: RunStage, reference: Reference, split: int) -> None:
    """Say so if torch no longer ranks as it did when the stage was trained: then its metrics are not true."""
    then = stage.facts["valid"]
    if split == VALID and then and abs(then["mrr"] - reference.mrr) > SAME_MRR:
        log.warning(
            "%s: valid MRR is %.4f, it was %.4f when trained; the dataset or the stage has changed since",
            stage.folder,
            reference.mrr,
            then["mrr"],
        )
