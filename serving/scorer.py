"""The answerer: entities and relations in, ranked entities out.

    scorer = Scorer.load("bundles/umls-pmd-grade-3-int8")
    scorer.top_tails("acquired_abnormality", "affects", k=10)

A question runs top_tails -> encoder -> onnxruntime, and its vector meets the table of entity vectors in
`pmd.serving.search`, in onnxruntime again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias, overload

from pmd.serving.answers import (
    Among,
    How,
    Prediction,
    checked_k,
    directed_queries,
    pair_questions,
    predictions,
    questions_of,
    wishes,
)
from pmd.serving.asked import flag, shown, whole_number
from pmd.serving.bundle import QUERY, Bundle, Verify
from pmd.serving.encoder import TowerEncoder
from pmd.serving.entering import EntityMaker, Vector
from pmd.serving.errors import QueryError
from pmd.serving.explain import Explanation, explain
from pmd.serving.journal import Journal
from pmd.serving.known import SPLIT_NAMES, IntArray, KnownAnswers
from pmd.serving.live import LiveGraph, opened_near
from pmd.serving.manifest import rerank_of
from pmd.serving.neighbours import reranked as with_neighbours
from pmd.serving.ranking import FloatArray, Metrics, ScoreQueries, evaluate
from pmd.serving.search import Near
from pmd.serving.snapshot import Snapshot

Triples: TypeAlias = Sequence[tuple[str, str, str]]


class Scorer:
    """Answers link-prediction questions from a bundle; safe to share between threads.

    Entities and relations are named by id, or by name (text) where only one has it. The graph can change:
    `add_entity`, `update_entity` and `remove_entity` each show a new snapshot of it, whole, to the calls that begin
    afterwards; a call that is running goes on with the one it started on.
    """

    def __init__(
        self,
        bundle: Bundle,
        encoder: TowerEncoder,
        *,
        threads: int | None,
        provider: str,
        journal: str | Path | Journal | None = None,
        near: Near | None = None,
    ) -> None:
        """Use `load`; this is for those who bring their own encoder."""
        self.bundle = bundle
        self._encoder = encoder
        self._maker = EntityMaker(bundle, provider=provider, threads=threads)
        self._graph = LiveGraph(bundle, threads=threads, journal=journal, near=near)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        threads: int | None = None,
        provider: str = "cpu",
        verify: Verify = "used",
        trusted_keys: Sequence[str | Path] | None = None,
        cached_queries: int = 0,
        journal: str | Path | Journal | None = None,
        near: str | Path | None = None,
    ) -> Scorer:
        """Open a bundle, folder or zip.

        threads: of the graph and the search; by default the cores this process may use. provider: what runs the
        graph: cpu, cuda, openvino, coreml or xnnpack, as far as onnxruntime has it; never another than asked.
        verify: "used" checks the sha256 of every file that is used, before it is used; True that of all files
        now, and that vectors are of unit length; False file sizes alone, for the soonest start. trusted_keys: PEM
        files of Ed25519 public keys; only a bundle that one of them signed is opened, and all of it is verified.
        cached_queries: vectors of recent questions to keep; none by default, so that timings are honest. journal:
        a file that keeps every change of the graph from the moment the call that made it returns; changes that it
        already holds are made again. The `journal` of another Scorer of this bundle is gone on with; close that
        Scorer then. near: an index made by `pmd.serving.near`, for graphs of many millions; answers are then
        approximate.
        Raises BundleError, SignatureError, ProviderError, MissingExtra, JournalError, NearError.
        """
        bundle = Bundle.open(path, verify=verify, trusted_keys=trusted_keys)
        cached = whole_number(cached_queries, "cached_queries", least=0)
        encoder = TowerEncoder.load(bundle, QUERY, provider=provider, threads=threads, cached_texts=cached)
        index = opened_near(near, bundle, verify=bool(verify) or trusted_keys is not None)
        return cls(bundle, encoder, threads=threads, provider=provider, journal=journal, near=index)

    def close(self) -> None:
        """Let go of the journal, if there is one; questions are still answered, changes refused.

        A Scorer with a journal may stand in a `with` block, which closes it.
        """
        self._graph.close()

    def __enter__(self) -> Scorer:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    # ---- what it knows --------------------------------------------------------------------------------------

    @property
    def num_entities(self) -> int:
        """E."""
        return self._graph.snapshot.num_entities

    @property
    def num_relations(self) -> int:
        """R; directed relations are 0 to 2R - 1."""
        return len(self._graph.snapshot.tables.relations)

    @property
    def entity_ids(self) -> tuple[str, ...]:
        """Entity ids in the order of their indices."""
        return self._graph.snapshot.ids

    @property
    def relation_ids(self) -> tuple[str, ...]:
        """Relation ids in the order of their indices."""
        return tuple(row.id for row in self._graph.snapshot.tables.relations)

    @property
    def known(self) -> KnownAnswers:
        """Known answers of all splits."""
        return self._graph.snapshot.compacted.tables.known

    @property
    def snapshot(self) -> Snapshot:
        """The graph as it is now; it never changes."""
        return self._graph.snapshot

    @property
    def journal(self) -> Journal | None:
        """What keeps the changes of the graph, None if nothing does."""
        return self._graph.journal

    @property
    def search(self) -> str:
        """How entities are searched on this machine, in words; the answers are the same in every way."""
        return self._graph.now[1].about

    def find_entity(self, key: str) -> str | None:
        """The id of the entity with this id, or this name if only one has it; None otherwise."""
        state = self._graph.snapshot
        index = state.entities.match(state.entities.checked(key))
        return None if index is None else state.rows[index].id

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
        among: Among | None = ...,
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
        among: Among | None = ...,
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
        among: Among | None = None,
    ) -> list[Prediction] | list[list[Prediction]]:
        """The k best tails of (head, relation, ?), best first; equal scores in the order of the entities.

        A list of heads gives a list of answers; one relation then serves all, or each head has its own.
        head_is_text: the head is the text of an entity that the graph does not hold. exclude_known: leave out
        tails that the graph already has for this question. reranked: add the manifest's weight to entities within
        its number of hops from the head (a text has no neighbours). among: the ids or names that alone may be
        answers, or a function of an id that says so (asked about every entity, so a list made once is faster).
        Fewer than k come back where fewer are left.
        Raises UnknownEntity, UnknownRelation, QueryError; RankingError if the model gives no finite scores.
        """
        how = How(False, head_is_text, exclude_known, *self._rerank_settings(reranked))
        return self._top(head, relation, k, how, among)

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
        among: Among | None = ...,
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
        among: Among | None = ...,
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
        among: Among | None = None,
    ) -> list[Prediction] | list[list[Prediction]]:
        """The k best heads of (?, relation, tail), best first; everything else as `top_tails`."""
        how = How(True, tail_is_text, exclude_known, *self._rerank_settings(reranked))
        return self._top(tail, relation, k, how, among)

    def score(self, triples: Triples) -> FloatArray:
        """Score of each (head, relation, tail), float32 (N,): what `top_tails` gives that tail.

        To the last bit, for the same vector of the question; a float graph's vector may move by less than 1e-5 with
        what is encoded beside it.

        Raises UnknownEntity, UnknownRelation, QueryError.
        """
        state, search = self._graph.now
        questions, tails = pair_questions(state, triples)
        vectors = self._encoder([question.text for question in questions])
        return search.pair_scores(vectors, tails, state.fresh)

    def explain(
        self,
        head: str,
        relation: str,
        tail: str,
        *,
        asks: Literal["tail", "head"] = "tail",
        is_text: bool = False,
        triples: int = 5,
    ) -> Explanation:
        """What (head, relation, tail) rests on, as an answer to the question for its tail, or for its head.

        is_text: the side that is given, not asked for, is the text of an entity that the graph does not hold.
        triples: how many known triples to show. Costs a few exact passes over the table of vectors.
        Raises UnknownEntity, UnknownRelation, QueryError.
        """
        if not isinstance(asks, str) or asks not in ("tail", "head"):
            raise QueryError(f"asks is 'tail' or 'head', got {shown(asks)}")
        state = self._graph.snapshot.compacted
        given, wanted = (head, tail) if asks == "tail" else (tail, head)
        text = flag(is_text, "is_text")
        question = state.question(given, relation, inverse=asks == "head", is_text=text)
        answer = state.entities.find(wanted)
        scores = state.tables.vectors.scores(self._encoder([question.text]))[0]
        count = whole_number(triples, "triples")
        return explain(state, question, answer, scores, *rerank_of(self.bundle.manifest), count=count)

    def score_queries(self, heads: IntArray, relations: IntArray) -> FloatArray:
        """Scores of directed queries against every entity, (Q,), (Q,) indices -> float32 (Q, E).

        Relations from R on ask for heads: relation r + R of entity t scores every h of (h, r, t). Nothing is
        excluded. Raises QueryError for an index out of range.
        """
        return self._scores(self._graph.snapshot.compacted, heads, relations)

    def evaluate(self, split: str = "test", *, reranked: bool = False) -> Metrics:
        """Filtered metrics of a split of the bundle's graph, by the rule of `pmd.serving.ranking`.

        reranked: with the neighbour re-ranking that the manifest describes. Raises QueryError for an unknown
        split or a bundle without re-ranking, RankingError for an empty split.
        """
        state = self._graph.snapshot.compacted
        score = self._split_scores(state, split, reranked)
        return evaluate(score, state.tables.known.triples(SPLIT_NAMES.index(split)), state.tables.known)

    def split_scores(self, split: str, *, reranked: bool = False) -> ScoreQueries:
        """The scores that `evaluate` ranks, of the graph as it stands now. Raises QueryError as `evaluate`."""
        return self._split_scores(self._graph.snapshot.compacted, split, reranked)

    # ---- changes --------------------------------------------------------------------------------------------

    def add_entity(self, entity: str, *, name: str, description: str = "", vector: Vector | None = None) -> None:
        """Add an entity as a possible answer and question, from its text by the entity tower, or with its vector.

        vector: (D,), any length above 0. Raises QueryError if the id is taken, a text is not usable, or there is
        neither entity tower nor vector; JournalError if the change cannot be kept.
        """
        self._graph.put(self._maker.new(self._graph.snapshot, entity, name, description, vector))

    def update_entity(
        self,
        key: str,
        *,
        name: str | None = None,
        description: str | None = None,
        vector: Vector | None = None,
    ) -> None:
        """Change an entity's name, description or vector; what is not given stays, and so do its triples.

        Without `vector` the entity tower reads the new text. Texts of other entities that name this one show its
        new name; their vectors stay. Raises as `add_entity`, and UnknownEntity.
        """
        self._graph.put(self._maker.changed(key, name, description, vector))

    def remove_entity(self, entity: str) -> None:
        """Remove an entity by id or unique name, with its known triples; the indices after it move down by one.

        Raises UnknownEntity, QueryError for the last one, JournalError if the change cannot be kept.
        """
        self._graph.remove(entity)

    def save(self, path: str | Path, *, replace: bool = False) -> Path:
        """Write the bundle as it stands to a new folder, or to a zip if the name ends in `.zip`; returns the path.

        The target is whole or absent whatever happens. Metrics in the manifest stay those of the export; its
        `changes` count what was changed since, and `journal` which changes of the journal are in it, so that the
        new bundle can go on with the same journal. What is saved is not signed, whatever was loaded: `pmd-sign`
        does that. Raises StorageError if the path exists, unless `replace`.
        """
        return self._graph.save(Path(path), replace=replace)

    # ---- inside ---------------------------------------------------------------------------------------------

    def _top(
        self,
        keys: str | Sequence[str],
        relations: str | Sequence[str],
        k: int,
        how: How,
        among: Among | None,
    ) -> list[Prediction] | list[list[Prediction]]:
        (state, search), count = self._graph.now, checked_k(k)
        questions = questions_of(state, keys, relations, how)
        wanted = wishes(state, questions, count, how, among)
        vectors = self._encoder([question.text for question in questions])
        answers = [predictions(state, found) for found in search.best(vectors, wanted, state.changed)]
        return answers[0] if isinstance(keys, str) and isinstance(relations, str) else answers

    def _rerank_settings(self, wanted: bool) -> tuple[int, float]:
        """Hops and weight where re-ranking is wanted. Raises QueryError for a bundle without."""
        if flag(wanted, "reranked") and self.bundle.manifest["rerank"] is None:
            raise QueryError(f"{self.bundle.path} has no re-ranking settings; ask without reranked")
        return rerank_of(self.bundle.manifest) if wanted else (0, 0.0)

    def _split_scores(self, state: Snapshot, split: str, reranked: bool) -> ScoreQueries:
        if not isinstance(split, str) or split not in SPLIT_NAMES:
            raise QueryError(f"no split {shown(split)}; a bundle has {', '.join(SPLIT_NAMES)}")
        score: ScoreQueries = partial(self._scores, state)
        hops, weight = self._rerank_settings(reranked)
        if not hops:
            return score
        return with_neighbours(score, state.tables.graph, hops=hops, weight=weight)

    def _scores(self, state: Snapshot, heads: IntArray, relations: IntArray) -> FloatArray:
        vectors = self._encoder(state.texts.queries(*directed_queries(state, heads, relations)))
        return state.tables.vectors.scores(vectors)
