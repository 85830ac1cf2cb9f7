"""The answerer: entities and relations in, ranked entities out.

    scorer = Scorer.load("bundles/umls-pmd-grade-3-int8")
    scorer.top_tails("acquired_abnormality", "affects", k=10)

A question runs top_tails -> encoder -> onnxruntime, and its vector meets the table of entity vectors here.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias, overload

import numpy as np

from pmd.serving.answers import How, Prediction, best_answers, checked_k, paired
from pmd.serving.bundle import ENTITY, QUERY, Bundle
from pmd.serving.encoder import CPU_PROVIDER, TowerEncoder
from pmd.serving.errors import QueryError
from pmd.serving.known import SPLIT_NAMES, IntArray, KnownAnswers
from pmd.serving.neighbours import reranked as with_neighbours
from pmd.serving.ranking import FloatArray, Metrics, ScoreQueries, evaluate
from pmd.serving.saving import save_bundle
from pmd.serving.snapshot import Snapshot, checked_text
from pmd.serving.tables import EntityRow

QUESTIONS_AT_ONCE = 64  # 64 x 41,000 float32 scores are 10 MB

Triples: TypeAlias = Sequence[tuple[str, str, str]]


class Scorer:
    """Answers link-prediction questions from a bundle; safe to share between threads.

    Entities and relations are named by id, or by name (text) where only one has it. `add_entity` and
    `remove_entity` swap in a new snapshot of the graph: a call that is running goes on with the one it started on.
    """

    def __init__(self, bundle: Bundle, encoder: TowerEncoder, *, threads: int | None, provider: str) -> None:
        """Use `load`; this is for those who bring their own encoder."""
        self.bundle = bundle
        self._encoder, self._threads, self._provider = encoder, threads, provider
        self._entity_encoder: TowerEncoder | None = None
        self._change = threading.Lock()
        done = bundle.manifest.get("changes", {})
        changes = (int(done.get("added", 0)), int(done.get("removed", 0)))
        self._snapshot = Snapshot.of(bundle.tables, bundle.templates, changes)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        threads: int | None = None,
        provider: str = CPU_PROVIDER,
        verify: bool = False,
        cached_queries: int = 0,
    ) -> Scorer:
        """Open a bundle, folder or zip.

        threads: of the graph; by default the cores this process may use. verify: check every file's sha256.
        cached_queries: vectors of recent questions to keep; none by default, so that timings are honest.
        Raises BundleError, ProviderError, MissingExtra.
        """
        bundle = Bundle.open(path, verify=verify)
        encoder = TowerEncoder.load(
            bundle, QUERY, provider=provider, threads=threads, cached_texts=max(0, cached_queries)
        )
        return cls(bundle, encoder, threads=threads, provider=provider)

    # ---- what it knows --------------------------------------------------------------------------------------

    @property
    def num_entities(self) -> int:
        """E."""
        return len(self.entity_ids)

    @property
    def num_relations(self) -> int:
        """R; directed relations are 0 to 2R - 1."""
        return len(self.relation_ids)

    @property
    def entity_ids(self) -> tuple[str, ...]:
        """Entity ids in the order of their indices."""
        return self._snapshot.entities.ids

    @property
    def relation_ids(self) -> tuple[str, ...]:
        """Relation ids in the order of their indices."""
        return self._snapshot.relations.ids

    @property
    def known(self) -> KnownAnswers:
        """Known answers of all splits."""
        return self._snapshot.tables.known

    def find_entity(self, key: str) -> str | None:
        """The id of the entity with this id, or this name if only one has it; None otherwise."""
        entities = self._snapshot.entities
        index = entities.match(key)
        return None if index is None else entities.ids[index]

    # ---- questions ------------------------------------------------------------------------------------------

    @overload  # a str is a Sequence[str] to the type checker; the first overload that fits is taken
    def top_tails(  # type: ignore[overload-overlap]
        self,
        head: str,
        relation: str,
        k: int = ...,
        *,
        head_is_text: bool = ...,
        exclude_known: bool = ...,
        reranked: bool = ...,
    ) -> list[Prediction]: ...

    @overload
    def top_tails(
        self,
        head: Sequence[str],
        relation: str | Sequence[str],
        k: int = ...,
        *,
        head_is_text: bool = ...,
        exclude_known: bool = ...,
        reranked: bool = ...,
    ) -> list[list[Prediction]]: ...

    def top_tails(
        self,
        head: str | Sequence[str],
        relation: str | Sequence[str],
        k: int = 10,
        *,
        head_is_text: bool = False,
        exclude_known: bool = True,
        reranked: bool = False,
    ) -> list[Prediction] | list[list[Prediction]]:
        """The k best tails of (head, relation, ?), best first; equal scores in the order of the entities.

        A list of heads gives a list of answers; one relation then serves all, or each head has its own.
        head_is_text: the head is the text of an entity that the graph does not hold. exclude_known: leave out
        tails that the graph already has for this question. reranked: add the manifest's weight to entities within
        its number of hops from the head (a text has no neighbours). Fewer than k come back where fewer are left.
        Raises UnknownEntity, UnknownRelation, QueryError; RankingError if the model gives no finite scores.
        """
        how = How(inverse=False, is_text=head_is_text, exclude_known=exclude_known, reranked=reranked)
        return self._top(head, relation, k, how)

    @overload
    def top_heads(  # type: ignore[overload-overlap]
        self,
        relation: str,
        tail: str,
        k: int = ...,
        *,
        tail_is_text: bool = ...,
        exclude_known: bool = ...,
        reranked: bool = ...,
    ) -> list[Prediction]: ...

    @overload
    def top_heads(
        self,
        relation: str | Sequence[str],
        tail: Sequence[str],
        k: int = ...,
        *,
        tail_is_text: bool = ...,
        exclude_known: bool = ...,
        reranked: bool = ...,
    ) -> list[list[Prediction]]: ...

    def top_heads(
        self,
        relation: str | Sequence[str],
        tail: str | Sequence[str],
        k: int = 10,
        *,
        tail_is_text: bool = False,
        exclude_known: bool = True,
        reranked: bool = False,
    ) -> list[Prediction] | list[list[Prediction]]:
        """The k best heads of (?, relation, tail), best first; everything else as `top_tails`."""
        how = How(inverse=True, is_text=tail_is_text, exclude_known=exclude_known, reranked=reranked)
        return self._top(tail, relation, k, how)

    def score(self, triples: Triples) -> FloatArray:
        """Score of each (head, relation, tail), float32 (N,): what `top_tails` gives that tail, bit for bit.

        Raises UnknownEntity, UnknownRelation, QueryError.
        """
        state = self._snapshot
        questions, tails = [], []
        for triple in triples:
            if isinstance(triple, str) or not hasattr(triple, "__len__") or len(triple) != 3:
                raise QueryError(f"a triple is (head, relation, tail), got {str(triple)[:60]!r}")
            head, relation, tail = triple
            questions.append(state.question(head, relation, inverse=False, is_text=False))
            tails.append(state.entities.find(tail))
        vectors = self._encoder([question.text for question in questions])
        return state.tables.vectors.pair_scores(vectors, np.array(tails, dtype=np.int64))

    def score_queries(self, heads: IntArray, relations: IntArray) -> FloatArray:
        """Scores of directed queries against every entity, (Q,), (Q,) indices -> float32 (Q, E).

        Relations from R on ask for heads: relation r + R of entity t scores every h of (h, r, t). Nothing is
        excluded. Raises QueryError for an index out of range.
        """
        return self._scores(self._snapshot, heads, relations)

    def evaluate(self, split: str = "test", *, reranked: bool = False) -> Metrics:
        """Filtered metrics of a split of the bundle's graph, by the rule of `pmd.serving.ranking`.

        reranked: with the neighbour re-ranking that the manifest describes. Raises QueryError for an unknown
        split or a bundle without re-ranking, RankingError for an empty split.
        """
        score, state = self.split_scores(split, reranked=reranked), self._snapshot
        return evaluate(score, state.tables.known.triples(SPLIT_NAMES.index(split)), state.tables.known)

    def split_scores(self, split: str, *, reranked: bool = False) -> ScoreQueries:
        """The scores that `evaluate` ranks, of the graph as it stands now. Raises QueryError as `evaluate`."""
        if split not in SPLIT_NAMES:
            raise QueryError(f"no split {split!r}; a bundle has {', '.join(SPLIT_NAMES)}")
        state = self._snapshot
        score: ScoreQueries = partial(self._scores, state)
        if not reranked:
            return score
        hops, weight = self._rerank_settings()
        return with_neighbours(score, state.tables.graph, hops=hops, weight=weight)

    # ---- changes --------------------------------------------------------------------------------------------

    def add_entity(
        self, entity: str, *, name: str, description: str = "", vector: Sequence[float] | FloatArray | None = None
    ) -> None:
        """Add an entity as a possible answer and question, from its text by the entity tower, or with its vector.

        vector: (D,), any length above 0. Costs a copy of the table of vectors. Raises QueryError if the id is
        taken, a text is not usable, or there is neither entity tower nor vector.
        """
        row = EntityRow(_checked_id(entity), " ".join(checked_text(name).split()), " ".join(description.split()))
        if row.description:
            checked_text(row.description)
        self._refuse_taken(self._snapshot, entity)  # before the tower is run, and again under the lock
        unit = self._unit(self._encode_entity(row) if vector is None else vector)
        with self._change:
            state = self._snapshot
            self._refuse_taken(state, entity)
            added, removed = state.changes
            tables = state.tables.added(row, unit)
            self._snapshot = Snapshot.of(tables, state.texts.templates, (added + 1, removed))

    def remove_entity(self, entity: str) -> None:
        """Remove an entity by id, with its known triples; the indices after it move down by one.

        Raises UnknownEntity, and QueryError for the last one.
        """
        with self._change:
            state = self._snapshot
            index = state.entities.find(entity)
            if len(state.entities.ids) == 1:
                raise QueryError(f"{entity!r} is the only entity; a bundle needs at least one")
            added, removed = state.changes
            tables = state.tables.removed(index)
            self._snapshot = Snapshot.of(tables, state.texts.templates, (added, removed + 1))

    def save(self, path: str | Path, *, replace: bool = False) -> Path:
        """Write the bundle as it stands to a new folder, or to a zip if the name ends in `.zip`; returns the path.

        The target is whole or absent whatever happens. Metrics in the manifest stay those of the export; its
        `changes` count what was added and removed since. Raises StorageError if the path exists, unless `replace`.
        """
        state = self._snapshot
        return save_bundle(self.bundle, state.tables, state.changes, Path(path), replace=replace)

    # ---- inside ---------------------------------------------------------------------------------------------

    def _top(
        self, keys: str | Sequence[str], relations: str | Sequence[str], k: int, how: How
    ) -> list[Prediction] | list[list[Prediction]]:
        state, count = self._snapshot, checked_k(k)
        hops, weight = self._rerank_settings() if how.reranked else (0, 0.0)
        questions = [
            state.question(key, relation, inverse=how.inverse, is_text=how.is_text)
            for key, relation in paired(keys, relations)
        ]
        answers: list[list[Prediction]] = []
        for first in range(0, len(questions), QUESTIONS_AT_ONCE):
            block = questions[first : first + QUESTIONS_AT_ONCE]
            scores = state.tables.vectors.scores(self._encoder([question.text for question in block]))
            for question, row in zip(block, scores, strict=True):
                if hops and question.head is not None:
                    row[state.tables.graph.within(question.head, hops)] += weight
                answers.append(best_answers(state, question, row, count, how.exclude_known))
        return answers[0] if isinstance(keys, str) and isinstance(relations, str) else answers

    def _rerank_settings(self) -> tuple[int, float]:
        settings = self.bundle.manifest["rerank"]
        if settings is None:
            raise QueryError(f"{self.bundle.path} has no re-ranking settings; ask without reranked")
        return int(settings["hops"]), float(settings["weight"])

    def _scores(self, state: Snapshot, heads: IntArray, relations: IntArray) -> FloatArray:
        heads, relations = (np.asarray(indices) for indices in (heads, relations))
        if heads.ndim != 1 or heads.shape != relations.shape:
            raise QueryError(
                f"heads and relations must be two equally long rows, got {heads.shape}, {relations.shape}"
            )
        for indices, limit, kind in (
            (heads, len(state.entities.ids), "head"),
            (relations, 2 * len(state.relations.ids), "directed relation"),
        ):
            if len(indices) and indices.dtype.kind not in "iu":
                raise QueryError(f"{kind} indices must be whole numbers, got {indices.dtype}")
            if len(indices) and not (indices.min() >= 0 and indices.max() < limit):
                raise QueryError(f"a {kind} index is out of range, expected 0 to {limit - 1}")
        vectors = self._encoder(state.texts.queries(heads.astype(np.int64), relations.astype(np.int64)))
        return state.tables.vectors.scores(vectors)

    def _encode_entity(self, row: EntityRow) -> FloatArray:
        with self._change:  # opened on first use: most edge devices never add an entity
            if self._entity_encoder is None:
                if not self.bundle.has_tower(ENTITY):
                    raise QueryError(
                        f"{self.bundle.path} has no entity tower to read {row.id!r} with; give vector=…, "
                        "or export the bundle with its entity tower"
                    )
                self._entity_encoder = TowerEncoder.load(
                    self.bundle, ENTITY, provider=self._provider, threads=self._threads
                )
        vectors = self._entity_encoder([self._snapshot.texts.wording(row.name, row.description)])
        return vectors.reshape(-1)

    def _unit(self, vector: Sequence[float] | FloatArray) -> FloatArray:
        try:
            values = np.asarray(vector, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise QueryError(f"vector must be {self._encoder.width} numbers: {error}") from error
        length = np.linalg.norm(values)
        if values.shape != (self._encoder.width,) or not np.isfinite(length) or length == 0:
            raise QueryError(
                f"vector must be {self._encoder.width} finite numbers, not all 0; got shape {values.shape}"
            )
        return np.asarray(values / length, dtype=np.float32)

    @staticmethod
    def _refuse_taken(state: Snapshot, entity: str) -> None:
        if entity in state.entities.ids:
            raise QueryError(f"entity {entity!r} exists already; remove it first or choose another id")


def _checked_id(entity: str) -> str:
    if entity != checked_text(entity).strip() or not entity.isprintable():
        raise QueryError(f"an entity id holds no tabs or line breaks and no outer spaces, got {entity[:60]!r}")
    return entity
