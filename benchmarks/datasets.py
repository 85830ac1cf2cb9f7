"""How fast a large graph loads: `python -m pmd.benchmarks.datasets`.

Writes a synthetic dataset folder and measures, each in a process of its own, loading it and building its filter of
known answers; and on a smaller one the same against a naive version (a loop over lines, a dictionary of sets),
which gives a ratio that means the same on any machine. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np

from pmd.benchmarks.probe import run_python
from pmd.serving.command import HELP, Command, emit

SCHEMA = "pmd-bench-data/1"
RELATIONS = 200
CHUNK = 1_000_000  # triples written at a time
EPILOG = """\b
Examples:
  python -m pmd.benchmarks.datasets                              the million entities and ten million triples
  python -m pmd.benchmarks.datasets --entities 100000 --triples 1000000
"""

# In child processes memory is theirs alone, and this package needs to import nothing of the datasets.
START = "import sys, time; from pmd.benchmarks.memory import peak_rss_bytes; begin = time.perf_counter()"
END = "; print(time.perf_counter() - begin, loaded - begin, peak_rss_bytes(), count)"
OURS = (
    "; from pmd.datasets import load_graph; graph = load_graph(sys.argv[1]); loaded = time.perf_counter()"
    "; known = graph.known(); count = len(graph.train)"
)
NAIVE = """
import numpy as np
folder, ids = sys.argv[1], {}
for name in ("entities", "relations"):
    ids[name] = {}
    for line in open(f"{folder}/{name}.tsv", encoding="utf-8"):
        ids[name][line.rstrip().split("\\t")[0]] = len(ids[name])
splits = []
for split in ("train", "valid", "test"):
    rows = []
    for line in open(f"{folder}/{split}.tsv", encoding="utf-8"):
        head, relation, tail = line.rstrip().split("\\t")
        rows.append((ids["entities"][head], ids["relations"][relation], ids["entities"][tail]))
    splits.append(np.array(rows))
loaded = time.perf_counter()
known = {}
for split in splits:
    for head, relation, tail in split:
        known.setdefault((head, relation, "tail"), set()).add(tail)
        known.setdefault((tail, relation, "head"), set()).add(head)
count = len(splits[0])
"""


@click.command("pmd.benchmarks.datasets", cls=Command, context_settings=HELP, epilog=EPILOG)
@click.option("--entities", type=click.IntRange(min=10), default=1_000_000, show_default=True)
@click.option("--triples", type=click.IntRange(min=100), default=10_000_000, show_default=True)
@click.option(
    "--part", type=click.IntRange(min=1), default=10, show_default=True, help="The naive version gets 1/N of it."
)
@click.option("--timeout", type=float, default=3600.0, show_default=True, help="Seconds a measurement may take.")
def main(entities: int, triples: int, part: int, timeout: float) -> None:
    """Measure loading and filter building of a synthetic graph, and compare a part of it with a naive version."""
    with tempfile.TemporaryDirectory(prefix="pmd-bench-data-") as root:
        whole, smaller = Path(root) / "whole", Path(root) / "part"
        write_synthetic(whole, entities, triples, np.random.default_rng(0))
        write_synthetic(smaller, max(entities // part, 10), max(triples // part, 100), np.random.default_rng(0))
        full = measure(START + OURS + END, whole, timeout)
        ours = measure(START + OURS + END, smaller, timeout)
        naive = measure(f"{START}\n{NAIVE}\n{END[2:]}", smaller, timeout)
    ratio = naive["seconds"] / ours["seconds"]
    for name, found in (("whole", full), (f"1/{part}", ours), (f"1/{part} naive", naive)):
        click.echo(_line(name, found))
    click.echo(f"{ratio:.1f} times as fast as the naive version")
    emit({"schema": SCHEMA, "entities": entities, "whole": full, "part": ours, "naive": naive, "ratio": ratio})


def write_synthetic(folder: Path, entities: int, triples: int, rng: np.random.Generator) -> None:
    """A dataset folder with named and described entities; 1 % of the triples each are valid and test."""
    folder.mkdir()
    with open(folder / "entities.tsv", "w", encoding="utf-8") as file:
        file.writelines(f"Q{7 * n}\tname of {n}\ta short description of entity {n}\n" for n in range(entities))
    with open(folder / "relations.tsv", "w", encoding="utf-8") as file:
        file.writelines(f"P{n}\trelation {n}\n" for n in range(RELATIONS))
    held = triples // 100
    for split, count in (("train", triples - 2 * held), ("valid", held), ("test", held)):
        with open(folder / f"{split}.tsv", "w", encoding="utf-8") as file:
            for start in range(0, count, CHUNK):
                rows = rng.integers(0, [entities, RELATIONS, entities], (min(CHUNK, count - start), 3)).tolist()
                file.writelines(f"Q{7 * head}\tP{relation}\tQ{7 * tail}\n" for head, relation, tail in rows)


def measure(code: str, folder: Path, timeout: float) -> dict[str, Any]:
    """Seconds, peak memory (None: not known) and training triples that a child process tells.

    Raises MeasureError if it fails or takes longer than `timeout` seconds.
    """
    seconds, load_seconds, peak, count = run_python(code, str(folder), timeout=timeout).split()
    return {
        "seconds": float(seconds),
        "load_seconds": float(load_seconds),
        "peak_rss_bytes": int(peak) if peak.isdigit() else None,
        "triples": int(count),
    }


def _line(name: str, found: dict[str, Any]) -> str:
    peak = f"{found['peak_rss_bytes'] / 2**20:,.0f} MiB" if found["peak_rss_bytes"] else "-"
    return (
        f"{name:<12}{found['triples']:>11,} training triples   load {found['load_seconds']:>7.2f} s   "
        f"with filter {found['seconds']:>7.2f} s   peak {peak:>10}"
    )


if __name__ == "__main__":
    main()
