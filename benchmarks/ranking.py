"""How fast a split is ranked: `python -m pmd.benchmarks.ranking [DATASET]`.

Ranks every test triple of a dataset against all its entities, with random vectors in place of a model, in a process
of its own: scores on the exact grid of the runtime by torch on all cores, as the trainer does, and the counts.
Beside it, on a part of the queries, a naive numpy version: float32 scores of one query at a time, known answers
written out, and a full sort. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import json

import click

from pmd.benchmarks.probe import run_python
from pmd.serving.command import HELP, Command, emit

SCHEMA = "pmd-bench-ranking/1"
WIDTH = 384
EPILOG = """\b
Examples:
  python -m pmd.benchmarks.ranking                     the UMLS graph of the package
  python -m pmd.benchmarks.ranking ../data/wn18rr      40,943 candidates for 6,268 directed triples
"""
# The child imports torch and the datasets; this package does neither.
CHILD = """
import json, sys, time
from pmd.datasets import load_graph

source, width, part = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
graph = load_graph(source)  # before torch: a wrong name is told at once
import numpy as np, torch
from pmd.benchmarks.memory import peak_rss_bytes
from pmd.evaluation import GRID, on_grid
from pmd.serving.known import directed
from pmd.serving.ranking import rank_triples

known, rng = graph.known(), np.random.default_rng(0)
entities = rng.normal(size=(graph.num_entities, width)).astype(np.float32)
entities /= np.linalg.norm(entities, axis=1, keepdims=True)
relations = rng.normal(size=(2 * graph.num_relations, width)).astype(np.float32) / width**0.5

def vectors(heads, kinds):
    found = entities[heads] + relations[kinds]
    return found / np.linalg.norm(found, axis=1, keepdims=True)

begin = time.perf_counter()
table = on_grid(torch.from_numpy(entities))
def scores(heads, kinds):
    return ((on_grid(torch.from_numpy(vectors(heads, kinds))) @ table.T) / GRID**2).float().numpy()
ranks = rank_triples(scores, graph.test, known).rank()
seconds, peak = time.perf_counter() - begin, peak_rss_bytes()

wanted = directed(graph.test, graph.num_relations)
chosen = np.linspace(0, len(wanted) - 1, max(1, len(wanted) // part)).astype(int)
begin = time.perf_counter()
naive = []
for head, kind, gold in wanted[chosen]:
    row = entities @ vectors(np.array([head]), np.array([kind]))[0]
    own = row[gold]
    row[known.answers_of(head, kind)] = -np.inf
    row[gold] = own
    order = np.argsort(-row)
    naive.append(1 + int(np.flatnonzero(order == gold)[0]))
naive_seconds = (time.perf_counter() - begin) * len(wanted) / len(chosen)
print(json.dumps({
    "triples": len(wanted), "entities": graph.num_entities, "seconds": seconds, "peak_rss_bytes": peak,
    "naive_seconds": naive_seconds, "naive_part": len(chosen), "threads": torch.get_num_threads(),
    "largest_difference": float(np.abs(np.array(naive) - ranks[chosen]).max()),
}))
"""


@click.command("pmd.benchmarks.ranking", cls=Command, context_settings=HELP, epilog=EPILOG)
@click.argument("dataset", default="umls")
@click.option(
    "--part", type=click.IntRange(min=1), default=10, show_default=True, help="Naive: 1/N of the triples."
)
@click.option("--timeout", type=float, default=1800.0, show_default=True, help="Seconds the measurement may take.")
def main(dataset: str, part: int, timeout: float) -> None:
    """Measure ranking all test triples of DATASET against all entities, and compare with a naive version."""
    found = json.loads(run_python(CHILD, dataset, str(WIDTH), str(part), timeout=timeout))
    ratio = found["naive_seconds"] / found["seconds"]
    click.echo(
        f"{found['triples']:,} directed triples x {found['entities']:,} entities x {WIDTH}: "
        f"{found['seconds']:.2f} s on {found['threads']} threads, naive {found['naive_seconds']:.2f} s, "
        f"{ratio:.1f} times as fast; peak {(found['peak_rss_bytes'] or 0) / 2**20:,.0f} MiB"
    )
    emit({"schema": SCHEMA, "dataset": dataset, "width": WIDTH, **found, "ratio": ratio})


if __name__ == "__main__":
    main()
