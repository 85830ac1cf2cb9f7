"""Every query of a split with its rank and best answers, as JSON lines, so that others can recompute each figure.

The first line describes the file; each other line is one directed test triple: all tails, then all heads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pmd.serving.analysis import paired_test
from pmd.serving.errors import PmdError
from pmd.serving.known import SPLIT_NAMES, IntArray
from pmd.serving.ranking import COUNTS, FloatArray, Ranks, rank_triples
from pmd.serving.scorer import Scorer
from pmd.serving.storage import atomic_file
from pmd.serving.vectors import top_k

SCHEMA = "pmd-predictions/1"
MOST_COUNTED = 2**53


class PredictionsError(PmdError):
    """A file of predictions cannot be read, or does not fit another one."""


@dataclass(frozen=True)
class RankFile:
    """A file of predictions, read back. about: its first line; triples: (side, head, relation, tail) ids, 2N."""

    about: dict[str, Any]
    triples: tuple[tuple[str, str, str, str], ...]
    ranks: Ranks


def write_predictions(scorer: Scorer, split: str, k: int, path: Path, *, reranked: bool = False) -> dict[str, Any]:
    """Write the predictions of a split to `path`, whole or not at all; returns the file's first line.

    Each line holds the triple, its filtered ranks by all three tie rules, the counts they follow from, and the
    `k` best answers with their scores, other known answers left out. Raises as `Scorer.evaluate`.
    """
    score, known = scorer.split_scores(split, reranked=reranked), scorer.known
    triples = known.triples(SPLIT_NAMES.index(split))
    best: dict[tuple[int, int], tuple[IntArray, FloatArray]] = {}

    def recorded(heads: IntArray, relations: IntArray) -> FloatArray:
        scores = score(heads, relations)
        for row, query in zip(scores, zip(heads.tolist(), relations.tolist(), strict=True), strict=True):
            chosen = top_k(row, k + len(known.answers_of(*query)))
            best[query] = chosen, row[chosen]
        return scores

    ranks = rank_triples(recorded, triples, known)
    about = {
        "schema": SCHEMA,
        "bundle": {key: scorer.bundle.manifest[key] for key in ("dataset", "method", "stage", "precision", "seed")},
        "split": split,
        "reranked": reranked,
        "k": k,
        "entities": scorer.num_entities,
        "lines": 2 * len(triples),
    }
    with atomic_file(path) as partial, open(partial, "w", encoding="utf-8") as file:
        for record in (about, *_records(scorer, triples, ranks, best, k)):
            file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
    return about


def _records(
    scorer: Scorer,
    triples: IntArray,
    ranks: Ranks,
    best: dict[tuple[int, int], tuple[IntArray, FloatArray]],
    k: int,
) -> Iterator[dict[str, Any]]:
    ids, relation_ids, known = scorer.entity_ids, scorer.relation_ids, scorer.known
    kinds = {kind: ranks.rank(kind) for kind in ("optimistic", "realistic", "pessimistic")}
    for place in range(2 * len(triples)):
        head, relation, tail = (int(value) for value in triples[place % len(triples)])
        side = "tail" if place < len(triples) else "head"
        query, gold = ((head, relation), tail) if side == "tail" else ((tail, relation + known.num_relations), head)
        chosen, scores = best[query]
        allowed = ~np.isin(chosen, known.answers_of(*query)) | (chosen == gold)
        top = [[ids[e], float(s)] for e, s in zip(chosen[allowed][:k], scores[allowed][:k], strict=True)]
        yield {
            "side": side,
            "head": ids[head],
            "relation": relation_ids[relation],
            "tail": ids[tail],
            "rank": {kind: float(values[place]) for kind, values in kinds.items()},
            **{name: int(count[place]) for name, count in zip(COUNTS, ranks.counts, strict=True)},
            "top": top,
        }


def compare(ours: RankFile, theirs: RankFile, *, seed: int = 0) -> dict[str, Any]:
    """Paired test of two models on the same triples, by `analysis.paired_test`, for JSON.

    Raises PredictionsError if the files are not about the same triples.
    """
    if set(ours.triples) != set(theirs.triples) or len(ours.triples) != len(theirs.triples):
        odd = len(set(ours.triples) ^ set(theirs.triples))
        raise PredictionsError(
            f"the files differ in {odd} of their test triples; compare predictions of one split of one graph"
        )
    place = {triple: index for index, triple in enumerate(theirs.triples)}
    aligned = theirs.ranks.take(np.array([place[triple] for triple in ours.triples]))
    mrr = {"ours": float((1 / ours.ranks.rank()).mean()), "theirs": float((1 / aligned.rank()).mean())}
    return {"mrr": mrr, **paired_test(ours.ranks, aligned, seed=seed)}


def read_ranks(path: Path) -> RankFile:
    """Read the ranks of a file of predictions. Raises PredictionsError naming the line at fault."""
    triples, counts = [], []
    try:
        with open(path, encoding="utf-8") as file:
            about = json.loads(file.readline() or "null")
            if not isinstance(about, dict) or about.get("schema") != SCHEMA:
                raise PredictionsError(
                    f"{path} is not a file of predictions: its first line has no schema {SCHEMA!r}"
                )
            entities, lines = _whole(about, "entities", least=1), _whole(about, "lines", least=1)
            for line in file:
                record = json.loads(line)
                triples.append(tuple(str(record[key]) for key in ("side", "head", "relation", "tail")))
                counts.append(_counts(record, entities))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        where = f":{len(counts) + 2}" if counts or triples else ""
        raise PredictionsError(f"{path}{where}: not a line of predictions ({error})") from error
    except OSError as error:
        raise PredictionsError(f"{path} cannot be read: {error.strerror}") from error
    if len(counts) != lines:
        raise PredictionsError(
            f"{path} has {len(counts)} predictions, expected {lines}: it was cut; write it again"
        )
    ranks = Ranks(np.array(counts, dtype=np.int64).reshape(-1, len(COUNTS)).T, entities)
    return RankFile(about, tuple(triples), ranks)  # type: ignore[arg-type]  # four strings each, by construction


def _counts(record: dict[str, Any], entities: int) -> list[int]:
    """The counts of one line, in the order of COUNTS. Raises ValueError if no ranking could have given them."""
    counts = {name: _whole(record, name) for name in COUNTS}
    others = entities - 1
    known = counts["known_above"] + counts["known_level"]
    if counts["above"] + counts["level"] > others or not known <= counts["known"] <= others:
        raise ValueError(f"more entities are counted than the {others} others")
    if counts["known_above"] > counts["above"] or counts["known_level"] > counts["level"]:
        raise ValueError("more known answers are counted than entities")
    return list(counts.values())


def _whole(record: dict[str, Any], name: str, *, least: int = 0) -> int:
    value = record[name]
    if type(value) is not int or not least <= value <= MOST_COUNTED:
        raise ValueError(f"{name} must be a whole number from {least}, found {str(value)[:60]!r}")
    return value
