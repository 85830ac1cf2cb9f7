"""How fast a graph's texts become tokens: `python -m pmd.benchmarks.tokens [DATASET]`.

Words and tokenises all entities of a dataset, and all its training queries, in a process of its own; then opens the
tables kept for the next run. Beside it, on a part of the entities, a naive version: one text at a time. The last
line of stdout is one JSON object.
"""

from __future__ import annotations

import json
import tempfile

import click

from pmd.benchmarks.probe import run_python
from pmd.serving.command import HELP, Command, emit

SCHEMA = "pmd-bench-tokens/1"
EPILOG = """\b
Examples:
  python -m pmd.benchmarks.tokens                     the UMLS graph of the package
  python -m pmd.benchmarks.tokens ../data/wn18rr      40,943 entities, 103,509 queries
"""
CHILD = """
import json, sys, time
from pathlib import Path
begin = time.perf_counter()
from pmd.datasets import load_graph
import_seconds, begin = time.perf_counter() - begin, time.perf_counter()
graph = load_graph(sys.argv[1])
load_seconds = time.perf_counter() - begin
from pmd.batches import tokenise
from pmd.datasets.encoders import DEFAULT_ENCODER, find_tokenizer
from pmd.serving.texts import Templates
from pmd.serving.tokenization import TextTokenizer

tokenizer, templates = TextTokenizer(find_tokenizer(DEFAULT_ENCODER).json, 50), Templates()
cache, part = Path(sys.argv[2]), int(sys.argv[3])
begin = time.perf_counter()
texts = graph.texts(templates).entities()
tokenizer(texts)
entity_seconds, begin = time.perf_counter() - begin, time.perf_counter()
made = tokenise(graph, tokenizer, templates, cache)
whole_seconds, begin = time.perf_counter() - begin, time.perf_counter()
tokenise(graph, tokenizer, templates, cache)
cached_seconds, begin = time.perf_counter() - begin, time.perf_counter()
for text in texts[::part]:
    tokenizer([text])
naive_seconds = (time.perf_counter() - begin) * len(texts) / len(texts[::part])
print(json.dumps({
    "entities": len(texts), "queries": len(made.queries), "load_seconds": load_seconds,
    "entity_seconds": entity_seconds, "whole_seconds": whole_seconds, "cached_seconds": cached_seconds,
    "naive_entity_seconds": naive_seconds,
}))
"""


@click.command("pmd.benchmarks.tokens", cls=Command, context_settings=HELP, epilog=EPILOG)
@click.argument("dataset", default="umls")
@click.option("--part", type=click.IntRange(min=1), default=10, show_default=True, help="Naive: 1/N of the texts.")
@click.option("--timeout", type=float, default=1800.0, show_default=True, help="Seconds the measurement may take.")
def main(dataset: str, part: int, timeout: float) -> None:
    """Measure wording and tokenising the texts of DATASET, and opening the tables kept between runs."""
    with tempfile.TemporaryDirectory(prefix="pmd-bench-tokens-") as cache:
        found = json.loads(run_python(CHILD, dataset, cache, str(part), timeout=timeout))
    ratio = found["naive_entity_seconds"] / found["entity_seconds"]
    click.echo(
        f"{found['entities']:,} entity texts: {found['entity_seconds']:.2f} s, one at a time "
        f"{found['naive_entity_seconds']:.2f} s, {ratio:.1f} times as fast; with {found['queries']:,} queries "
        f"{found['whole_seconds']:.2f} s, from the cache {found['cached_seconds']:.2f} s; "
        f"graph read in {found['load_seconds']:.2f} s"
    )
    emit({"schema": SCHEMA, "dataset": dataset, **found, "ratio": ratio})


if __name__ == "__main__":
    main()
