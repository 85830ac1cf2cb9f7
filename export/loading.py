"""A stage of a run, loaded and made ready: what all bundles of one grade share is computed here, once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pmd.export.equalise import sample
from pmd.export.graph import FusedGraph, export_tower
from pmd.export.parity import Reference, queries_of, split_to_compare
from pmd.export.source import Run, RunStage
from pmd.export.vocabulary import graph_texts, shrunk_tower, trimmed_tokenizer, used_pieces
from pmd.export.width import Narrowing
from pmd.grade import Grade, load_grade
from pmd.graph import KnowledgeGraph
from pmd.model import BiEncoder, encode_table
from pmd.serving.bundle import ENTITY, QUERY
from pmd.serving.known import TRAIN, VALID, IntArray, KnownAnswers
from pmd.serving.ranking import FloatArray
from pmd.serving.texts import TextBuilder
from pmd.serving.tokenization import Text, TextTokenizer, TokenTable

log = logging.getLogger(__name__)
SAME_MRR = 1e-3  # torch's valid MRR now and at the end of training; other devices differ by less


@dataclass(frozen=True)
class Tower:
    """One tower, ready for every precision."""

    graph: FusedGraph
    samples: TokenTable
    """Training texts, a few hundred, to choose scales by."""


@dataclass(frozen=True)
class LoadedGrade:
    """A stage's model and graph, and what torch says about the texts to compare."""

    run: Run
    stage: RunStage
    grade: Grade
    graph: KnowledgeGraph
    known: KnownAnswers

    def ready(self, *, trim_vocabulary: bool = False, width: int | None = None) -> ReadyGrade:
        """The towers as graphs, with all of the vocabulary and of the width or less."""
        return ReadyGrade(self, trim_vocabulary, width)

    @cached_property
    def builder(self) -> TextBuilder:
        """The wording of the graph's texts."""
        return self.graph.texts(self.grade.info.templates)

    @cached_property
    def pieces(self) -> IntArray:
        """Ids of the pieces that a trimmed vocabulary keeps, int64, rising. Raises ExportError if it cannot be."""
        return used_pieces(self.grade.tokenizer_json, graph_texts(self.builder))

    @cached_property
    def texts(self) -> dict[str, Sequence[Text]]:
        """Tower -> what is compared with torch: the distinct queries of a split, every entity."""
        pairs = queries_of(self.known, split_to_compare(self.known))
        return {QUERY: self.builder.queries(*pairs), ENTITY: self.builder.entities()}

    @cached_property
    def samples(self) -> dict[str, list[Text]]:
        """Tower -> a few hundred training texts, evenly spread, to choose scales by."""
        heads, relations = queries_of(self.known, TRAIN)
        chosen, entities = sample(len(heads)), self.texts[ENTITY]
        return {
            QUERY: [*self.builder.queries(heads[chosen], relations[chosen])],
            ENTITY: [entities[index] for index in sample(len(entities))],
        }

    @cached_property
    def reference(self) -> Reference:
        """What torch says about the texts: encodes every one of them."""
        split = split_to_compare(self.known)
        vectors = [_torch_vectors(self.grade, tower, self.texts[tower]) for tower in (QUERY, ENTITY)]
        reference = Reference.of(self.known, split, *vectors)
        _warn_if_changed(self.stage, reference, split)
        return reference


@dataclass(frozen=True)
class ReadyGrade:
    """A loaded grade with its towers as fused float32 graphs, of which every precision is made."""

    loaded: LoadedGrade
    trim_vocabulary: bool
    narrow_to: int | None

    @cached_property
    def grade(self) -> Grade:
        """The grade that the graphs are made of: positions, and the vocabulary if asked, cut to what is read."""
        whole = self.loaded.grade
        kept = self.loaded.pieces if self.trim_vocabulary else None
        query, entity = (
            shrunk_tower(tower, whole.info.max_tokens, kept) for tower in (whole.model.query, whole.model.entity)
        )
        tokenizer_json = whole.tokenizer_json if kept is None else trimmed_tokenizer(whole.tokenizer_json, kept)
        return replace(
            whole,
            model=BiEncoder(query, entity, temperature=1.0).eval(),
            tokenizer=TextTokenizer(tokenizer_json, whole.info.max_tokens),
            tokenizer_json=tokenizer_json,
        )

    @cached_property
    def narrowing(self) -> Narrowing | None:
        """How vectors are made narrower; None where they are not."""
        reference = self.loaded.reference
        return None if self.narrow_to is None else Narrowing.of(reference.entities, self.narrow_to)

    @cached_property
    def entity_vectors(self) -> FloatArray:
        """What every bundle stores of the entities, before rounding: torch's vectors, narrow if asked. (E, W)."""
        entities = self.loaded.reference.entities
        return entities if self.narrowing is None else self.narrowing.narrowed(entities)

    @property
    def width(self) -> int:
        """Numbers per vector."""
        return self.narrow_to or self.grade.model.width

    @cached_property
    def towers(self) -> dict[str, Tower]:
        """Both towers by name. Raises ExportError if one does not export or fuse."""
        return {
            name: Tower(
                export_tower(getattr(self.grade.model, name), self.narrowing),
                self.grade.tokenizer(self.loaded.samples[name]),
            )
            for name in (QUERY, ENTITY)
        }


def load_stage(run: Run, stage: RunStage, graph: KnowledgeGraph) -> LoadedGrade:
    """Load a stage. Raises GradeError if it is damaged."""
    return LoadedGrade(run, stage, load_grade(stage.folder), graph, graph.known())


def _torch_vectors(grade: Grade, tower: str, texts: Sequence[Text]) -> FloatArray:
    """Vectors of texts, float32 (N, D). Each distinct text is encoded once, so that equal texts tie exactly."""
    distinct = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    vectors = encode_table(grade.model, tower, grade.tokenizer([*distinct])).cpu().numpy()
    if len(distinct) == len(texts):
        return np.asarray(vectors)
    return np.asarray(vectors[[distinct[text] for text in texts]])


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
