"""What every side of a comparison reads: questions, their texts, what is known of them, and the vectors."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from pmd.benchmarks.edge.material import text_pairs
from pmd.benchmarks.questions import TOP, Question, of_split
from pmd.benchmarks.sides import Side
from pmd.serving.bundle import QUERY, Bundle
from pmd.serving.known import IntArray
from pmd.serving.ranking import FloatArray

QUESTIONS, VECTORS, IDS = "questions.json", "vectors.npy", "ids.json"
Pair: TypeAlias = tuple[str, str]
Encode: TypeAlias = Callable[[Pair], FloatArray]
"""A question's text to its vector, float32 (D,), of unit length."""
Search: TypeAlias = Callable[[FloatArray, int], Sequence[int]]
"""A vector, float32 (D,), to the indices of that many entities, best first."""


@dataclass(frozen=True)
class Material:
    """The questions of a comparison in one order, as every side reads them."""

    folder: Path
    questions: list[Question]
    texts: list[Pair]
    known: list[list[int]]
    """Indices of the answers that a question's answer must leave out."""
    ids: list[str]
    """Entity ids in the order of the vectors."""

    @classmethod
    def read(cls, folder: Path) -> Material:
        """What `write_material` wrote, without the vectors."""
        rows = json.loads((folder / QUESTIONS).read_text(encoding="utf-8"))
        return cls(
            folder,
            [Question(**row["question"]) for row in rows],
            [(row["text"][0], row["text"][1]) for row in rows],
            [row["known"] for row in rows],
            json.loads((folder / IDS).read_text(encoding="utf-8")),
        )

    def vectors(self) -> FloatArray:
        """Entity vectors, float32 (E, D), rows of unit length, one after the other in memory."""
        return np.asarray(np.load(self.folder / VECTORS))

    def by_cosine(self, encode: Encode) -> Side:
        """The side that multiplies a question's vector with every entity's, known answers left out, in numpy."""
        vectors = self.vectors()
        known = [np.array(one, dtype=np.int64) for one in self.known]

        def answer(number: int) -> IntArray:
            scores = vectors @ encode(self.texts[number])
            scores[known[number]] = -np.inf
            best = np.argpartition(-scores, min(TOP, len(scores) - 1))[:TOP]
            ordered = best[np.argsort(-scores[best])]
            return ordered[scores[ordered] > -np.inf]

        return self._side(answer)

    def by_search(self, encode: Encode, search: Search) -> Side:
        """The side that asks an index for as many more as are known, and drops those."""
        known, most = [frozenset(one) for one in self.known], len(self.ids)

        def answer(number: int) -> list[int]:
            left_out = known[number]
            found = search(encode(self.texts[number]), min(TOP + len(left_out), most))
            return [index for index in found if index not in left_out][:TOP]

        return self._side(answer)

    def _side(self, answer: Callable[[int], Sequence[int] | IntArray]) -> Side:
        return Side(ask=answer, top=lambda number: [self.ids[index] for index in answer(number)])


def write_material(request: dict[str, Any]) -> dict[str, Any]:
    """Write the `questions` questions of the bundle's split, and what goes with them, to the folder `out`.

    Answers with `query`, the folder of the query tower: the bundle's own, or its copy if the bundle is a zip.
    """
    from pmd.serving.scorer import Scorer

    out = Path(request["out"])
    scorer = Scorer.load(request["bundle"], threads=1)
    bundle = scorer.bundle
    asked = of_split(scorer, request["split"], request["questions"])
    pairs = text_pairs(bundle, asked)
    known = _known(bundle, asked)
    rows = [
        {"question": asdict(question), "text": pair, "known": answers}
        for question, pair, answers in zip(asked, pairs, known, strict=True)
    ]
    (out / QUESTIONS).write_text(json.dumps(rows), encoding="utf-8")
    (out / IDS).write_text(json.dumps(list(scorer.entity_ids)), encoding="utf-8")
    vectors = bundle.tables.vectors.vectors()
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.save(out / VECTORS, np.ascontiguousarray(vectors, dtype=np.float32))
    return {"query": str(_query_folder(bundle, out)), "entities": len(vectors), "questions": len(rows)}


def _known(bundle: Bundle, questions: Sequence[Question]) -> list[list[int]]:
    """What is known of each question, in any split, as indices."""
    tables = bundle.tables
    entity = {row.id: index for index, row in enumerate(tables.entities)}
    relation = {row.id: index for index, row in enumerate(tables.relations)}
    numbers = [relation[one.relation] + one.inverse * len(relation) for one in questions]
    heads = [entity[one.entity] for one in questions]
    return [tables.known.answers_of(h, r).tolist() for h, r in zip(heads, numbers, strict=True)]


def _query_folder(bundle: Bundle, out: Path) -> Path:
    """The query tower as a folder, unpacked into `out` from a zip."""
    if bundle.path.is_dir():
        return bundle.path.resolve() / QUERY
    for name in bundle.files():
        if name.startswith(f"{QUERY}/"):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(bundle.source.mapped(name).tobytes())
    return out / QUERY
