"""All that is to be known of a dataset before its figures are believed: what `pmd-data check` reports."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pmd.datasets import figures, layouts, leaks
from pmd.datasets.damage import damaged_files, unfinished_files
from pmd.datasets.encoders import EncoderTokenizer
from pmd.datasets.splits import SplitRule, resplit
from pmd.errors import DatasetError
from pmd.graph import KnowledgeGraph
from pmd.serving.known import SPLIT_NAMES

SCHEMA = "pmd-data-check/1"
MAX_TOKENS = 50  # the limit of the recipes
NOTABLE_SHARE = 0.1  # of test triples that training gives away, or of texts that are cut
FATAL_KINDS = {
    "test-in-train": "valid or test triples that stand in train",
    "test-in-valid": "test triples that stand in valid",
    "repeated-test": "triples that stand twice in valid or in test",
    "unknown-ids": "triples that name ids which no table lists",
    "damaged": "files that are not those dataset.json tells of",
}
"""What makes figures meaningless; `--allow` takes these names."""

Report = dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """Something found; a fatal one makes figures meaningless unless it is allowed."""

    kind: str
    message: str
    fatal: bool = False
    allowed: bool = False


def check(path: Path, tokenizer: EncoderTokenizer | str, allow: Collection[str] = ()) -> Report:
    """Everything `pmd-data check` reports, as plain values for JSON (schema pmd-data-check/1).

    tokenizer: for the token lengths, or why there is none. allow: kinds of FATAL_KINDS to let through. Raises
    DatasetError if the dataset cannot be read at all.
    """
    layout = layouts.recognise(path)
    material = layout.read(path, skip_unknown=True)
    graph = material.graph()
    rule = SplitRule() if material.is_whole else None
    if rule:
        graph = resplit(graph, rule)
    report = {
        "schema": SCHEMA,
        "dataset": graph.name,
        "path": str(path),
        "layout": layout.name,
        "split_made": asdict(rule) if rule else None,
        **_figures(graph, tokenizer),
        "unknown_ids": material.skipped,
        "damaged_files": damaged_files(path),
        "unfinished_files": unfinished_files(path),
    }
    problems = [replace(problem, allowed=problem.kind in allow) for problem in _problems(report, path)]
    report["problems"] = [asdict(problem) for problem in problems]
    report["passed"] = not any(problem.fatal and not problem.allowed for problem in problems)
    return report


def verdict(report: Report) -> str:
    """Why a report did not pass, in one line; "" if it did."""
    stopping = [found for found in report["problems"] if found["fatal"] and not found["allowed"]]
    if not stopping:
        return ""
    kinds = " ".join(f"--allow {kind}" for kind in dict.fromkeys(found["kind"] for found in stopping))
    first = stopping[0]["message"]
    more = f" (and {len(stopping) - 1} more)" if len(stopping) > 1 else ""
    return f"figures on {report['dataset']} would mean nothing: {first}{more}; mend it, or let it pass with {kinds}"


def _figures(graph: KnowledgeGraph, tokenizer: EncoderTokenizer | str) -> Report:
    found = {split: leaks.leaks_of(graph, split) for split in leaks.HELD_OUT}
    tokens = None
    if isinstance(tokenizer, EncoderTokenizer):
        tokens = {"encoder": tokenizer.encoder, **figures.token_lengths(graph, tokenizer.json, MAX_TOKENS)}
    return {
        "counts": {
            "entities": graph.num_entities,
            "relations": graph.num_relations,
            **{split: len(graph.split(split)) for split in SPLIT_NAMES},
        },
        "repeated": leaks.repeats(graph),
        "overlaps": leaks.overlaps(graph),
        "leakage": {split: found[split].shares() for split in found},
        "unseen": {split: leaks.unseen(graph, split) for split in found},
        "same_relation_texts": figures.same_relation_texts(graph),
        "same_entity_texts": figures.same_entity_texts(graph),
        "descriptions": figures.descriptions(graph, MAX_TOKENS),
        "tokens": tokens,
        "tokens_missing": None if tokens else str(tokenizer),
        "degrees": figures.degrees(graph),
        "relations": leaks.by_relation(graph, found["test"].reversed),
    }


def _problems(report: Report, path: Path) -> Iterator[Problem]:
    yield from _meaningless(report, path)
    yield from _notable_splits(report)
    yield from _notable_texts(report)


def _meaningless(report: Report, path: Path) -> Iterator[Problem]:
    overlaps, repeated = report["overlaps"], report["repeated"]
    for split in leaks.HELD_OUT:
        if count := overlaps[f"{split}_in_train"]:
            yield Problem("test-in-train", f"{_triples(count, split)} in train as well", fatal=True)
    if count := overlaps["test_in_valid"]:
        yield Problem("test-in-valid", f"{_triples(count, 'test')} in valid as well", fatal=True)
    for split in leaks.HELD_OUT:
        if count := repeated[split]:
            yield Problem("repeated-test", f"{_triples(count, split)} there a second time", fatal=True)
    if count := report["unknown_ids"]:
        names = "triples name unknown ids" if count > 1 else "triple names an unknown id"
        yield Problem("unknown-ids", f"{count:,} {names}, first {_first_unknown(path)}", fatal=True)
    if report["damaged_files"]:
        files = ", ".join(report["damaged_files"])
        yield Problem("damaged", f"not the files that dataset.json tells of: {files}", fatal=True)


def _notable_splits(report: Report) -> Iterator[Problem]:
    for name in report["unfinished_files"]:
        yield Problem(
            "no-line-end", f"{name} ends without a line end; if it was cut short, triples or texts are lost"
        )
    if count := report["repeated"]["train"]:
        yield Problem("repeated-train", f"{_triples(count, 'train')} there a second time")
    for split in leaks.HELD_OUT:
        if not report["counts"][split]:
            yield Problem(f"no-{split}", f"there are no {split} triples")
    leakage = report["leakage"]["test"]
    if (leakage["reversed"] or 0) >= NOTABLE_SHARE:
        yield Problem("inverse-leakage", f"{leakage['reversed']:.1%} of test triples stand reversed in train")
    if (leakage["same_pair"] or 0) >= NOTABLE_SHARE:
        yield Problem("same-pair", f"{leakage['same_pair']:.1%} of test triples join a pair that train joins too")
    for split in leaks.HELD_OUT:
        unseen = report["unseen"][split]
        if unseen["entities"]:
            yield Problem(
                "unseen-entities",
                f"{unseen['entities']:,} entities of {split} are not in train ({unseen['triples']:,} triples)",
            )
        if unseen["relations"]:
            yield Problem("unseen-relations", f"{unseen['relations']:,} relations of {split} are not in train")


def _notable_texts(report: Report) -> Iterator[Problem]:
    for group in report["same_relation_texts"]:
        keys = ", ".join(group["relations"])
        yield Problem("same-relation-texts", f"relations {keys} all read {group['text']!r}; reword all but one")
    if count := report["same_entity_texts"]:
        yield Problem("same-entity-texts", f"{count:,} entities share name and description with another")
    if missing := report["descriptions"]["missing"]:
        yield Problem(
            "no-description", f"{missing:,} of {report['counts']['entities']:,} entities lack a description"
        )
    tokens = report["tokens"]
    if tokens and (tokens["over_limit_share"] or 0) >= NOTABLE_SHARE:
        yield Problem(
            "overlong-texts",
            f"{tokens['over_limit_share']:.1%} of entity texts are cut at {tokens['limit']} tokens",
        )
    if isolated := report["degrees"]["isolated"]:
        yield Problem("isolated", f"{isolated:,} entities have no training triple")


def _triples(count: int, split: str) -> str:
    return f"{count:,} {split} triple{' stands' if count == 1 else 's stand'}"


def _first_unknown(path: Path) -> str:
    try:
        layouts.read(path)
    except DatasetError as error:
        return str(error)
    return "unknown"
