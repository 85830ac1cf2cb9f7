"""The model card of a bundle, written from what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pmd.export.header import card_header
from pmd.export.parity import in_words
from pmd.graph import KnowledgeGraph
from pmd.serving.bundle import ENTITIES, ENTITY, GRAPH, KNOWN, QUERY, RELATIONS, SCALES, VECTORS
from pmd.serving.known import SPLIT_NAMES
from pmd.serving.manifest import Manifest

COLUMNS = ("mrr", "hits@1", "hits@3", "hits@10", "mean_rank")
PARTS = {
    "query tower": (f"{QUERY}/",),
    "entity tower": (f"{ENTITY}/",),
    "entity vectors": (VECTORS, SCALES),
    "graph and texts": (ENTITIES, RELATIONS, KNOWN, GRAPH),
}


def model_card(
    name: str,
    facts: Manifest,
    graph: KnowledgeGraph,
    folder: Path,
    machine: Mapping[str, Any],
    *,
    base_model: str | None = None,
) -> str:
    """README.md of a bundle in `folder`, whose other files are there already.

    machine: run.json's, may be empty. base_model: the Hub's id of the encoder, None if the Hub does not have it.
    """
    sections = [
        f"# {name}",
        _what(facts),
        "## Use\n\n" + _use(name, graph),
        "## Data\n\n" + _data(graph),
        "## Metrics\n\n" + _metrics(facts),
        "## Fidelity\n\n" + _fidelity(facts["parity"]),
        "## Size\n\n" + _sizes(folder),
        "## Making\n\n" + _making(facts, machine),
        "## Licence\n\n" + _licence(facts),
    ]
    return card_header(name, facts, base_model) + "\n\n".join(sections) + "\n"


def _what(facts: Manifest) -> str:
    role = "The teacher" if facts["stage"] == "teacher" else f"Grade {facts['grade']}"
    return (
        f"{role} of a ladder of link predictors for the knowledge graph `{facts['dataset']}`: given an entity and "
        "a relation, it ranks all entities as the missing end of the triple, from their texts alone. "
        f"{facts['layers']} transformer layers of width {facts['width']} in each of two towers, made from "
        f"`{facts['encoder']}` by the method `{facts['method']}`, {facts['parameters']:,} parameters in all, "
        f"stored as {facts['precision']}. It runs on a CPU with onnxruntime, without PyTorch."
        + "".join(f" {part}" for part in _reduced(facts))
    )


def _reduced(facts: Manifest) -> Iterator[str]:
    """What is less than the whole model, and what is not as it may seem."""
    pieces, of = facts["vocabulary"]["pieces"], facts["vocabulary"]["of"]
    if pieces < of:
        yield (
            f"Its vocabulary holds {pieces:,} of the encoder's {of:,} pieces: all that the graph's texts use, and "
            "single characters for the words of others."
        )
    if facts["precision"] == "fp16":
        yield "Half precision is for storage and GPUs: on a CPU it is no faster than fp32."


def _use(name: str, graph: KnowledgeGraph) -> str:
    entity, relation = graph.entity_ids[0], graph.relation_ids[0]
    return (
        "`pip install 'pmd-kgc[cpu]'`, then:\n\n```python\nfrom pmd.serving import Scorer\n"
        f"scorer = Scorer.load({name!r})\n"
        f"print(scorer.top_tails({entity!r}, {relation!r}, k=10))\n```\n\n"
        'Each tower\'s folder also opens in sentence-transformers (`backend="onnx"`), optimum and transformers.js.'
    )


def _data(graph: KnowledgeGraph) -> str:
    splits = ", ".join(f"{len(graph.split(split)):,} {split}" for split in SPLIT_NAMES)
    return (
        f"`{graph.name}`: {graph.num_entities:,} entities, {graph.num_relations:,} relations, triples: {splits}. "
        "The vectors cover these entities; texts of others can be asked about and added."
    )


def _metrics(facts: Manifest) -> str:
    metrics, parity = facts["metrics"], facts["parity"]
    rows = {
        "valid": metrics["valid"],
        "test": metrics["test"],
        "test, neighbours re-ranked": metrics["test_reranked"],
    }
    lines = ["| split | MRR | Hits@1 | Hits@3 | Hits@10 | mean rank |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {label} | " + " | ".join(f"{row[key]:.4g}" for key in COLUMNS) + " |"
        for label, row in rows.items()
        if row
    ]
    teacher = metrics["teacher_test_mrr"]
    beside = f" The teacher's test MRR is {teacher:.4g}." if teacher is not None else ""
    return (
        "\n".join(lines)
        + "\n\nOf the model in torch: filtered ranks, both directions, equal scores share the middle rank."
        + f"{beside} The bundle itself has MRR {parity['mrr_bundle']:.4g} on {parity['split']}, "
        + f"{parity['mrr_kept']:.2%} ± {parity['mrr_kept_error']:.2%} of torch's."
    )


def _fidelity(parity: Mapping[str, Any]) -> str:
    conditions = [f"{measure} {in_words(bounds)}" for measure, bounds in parity["gate"].items()]
    return (
        f"{parity['texts']:,} texts compared with torch: largest cosine gap {parity['max_cosine_gap']:.2e}, "
        f"largest score gap {parity['max_score_gap']:.2e}, 1 % of scores differ by more than "
        f"{parity['p99_score_gap']:.2e}. "
        f"Gate: {'; '.join(conditions)}."
    )


def _sizes(folder: Path) -> str:
    files = {
        path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()
    }
    lines = ["| part | MB |", "|---|---|"]
    for part, starts in PARTS.items():
        size = sum(size for name, size in files.items() if name.startswith(starts))
        if size:
            lines.append(f"| {part} | {size / 1e6:.2f} |")
    return "\n".join(lines)


def _making(facts: Manifest, machine: Mapping[str, Any]) -> str:
    where = ", ".join(str(machine[key]) for key in ("processor", "gpu", "system") if machine.get(key))
    trained = f"Trained with seed {facts['seed']}" + (f" on {where}" if where else "")
    return f"{trained}. Exported by {facts['created_by']}. Every file's sha256 is in `manifest.json`."


def _licence(facts: Manifest) -> str:
    return (
        f"The toolkit is under Apache-2.0. The weights derive from `{facts['encoder']}`, texts and triples from "
        f"`{facts['dataset']}`: their own licences apply to them."
    )
