"""Fuzzing of documents that people and strangers write: manifests, recipes and `--set`, reports, predictions."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tests.trust.attack import Attack, Ground, Tally
from tests.trust.fuzz_engine import Broken, Surface, fuzz, settled
from tests.trust.fuzz_mutation import mutated_tree, tree_bytes


def _tree_mutation(rng: random.Random, data: bytes) -> bytes:
    try:
        return tree_bytes(rng, json.loads(data))
    except (ValueError, RecursionError):
        return data[: rng.randrange(len(data) + 1)]


def manifests(folder: Path) -> Surface:
    """`parse_manifest`: a BundleError, or a manifest that says the same when it is written and read again."""
    from pmd.serving.errors import BundleError
    from pmd.serving.manifest import SCHEMA, parse_manifest, rerank_of, templates_of
    from pmd.serving.texts import fill

    facts: dict[str, Any] = {
        "schema": SCHEMA,
        **dict.fromkeys(("dataset", "method", "stage", "encoder", "created_by"), "tiny"),
        "grade": 3,
        "precision": "int8",
        **{"layers": 3, "width": 16, "max_tokens": 24, "parameters": 1000, "seed": 0},
        "templates": {"entity": "{name}: {description}", "bare_entity": "{name}", "inverse": "inverse {relation}"},
        "rerank": {"hops": 1, "weight": 0.2},
        "vectors": {"dtype": "int8"},
        **{"parity": {"texts": 12}, "metrics": {"test": None}, "fused": {"query": {}}, "source": {}},
        "changes": {"added": 1, "removed": 0, "updated": 2},
        "journal": {"name": "a1", "changes": 3},
        "files": {
            "entities.npy": {"bytes": 12, "sha256": "0" * 64},
            "query/onnx/model.onnx": {"bytes": 1, "sha256": ""},
        },
    }
    facts["templates"] |= {"neighbours": 10, "short_description_words": 20}

    def check(data: bytes) -> str:
        def read() -> str:
            manifest = parse_manifest(data, "manifest.json")
            templates = templates_of(manifest, "manifest.json")
            fill(templates.entity, name="{description}", description="a")
            fill(templates.inverse, relation="r")
            hops, weight = rerank_of(manifest)
            if hops < 0 or weight != weight:
                raise Broken(f"rerank is {hops}, {weight}")
            again = parse_manifest(json.dumps(manifest).encode(), "manifest.json")
            if again != manifest:
                raise Broken("the manifest reads otherwise when it is written again")
            return "read"

        return settled(read, BundleError)

    return Surface(
        (json.dumps(facts).encode(), json.dumps(facts | {"rerank": None}).encode()), check, _tree_mutation
    )


def recipes(folder: Path) -> Surface:
    """A recipe file: a RecipeError, or a recipe that reads the same from its own dump."""
    import yaml

    from pmd.errors import RecipeError
    from pmd.recipe import Recipe, load_recipe, shipped_recipes

    texts = [path.read_bytes() for path in shipped_recipes().values()]
    file = folder / "recipe.yaml"
    again = folder / "again.yaml"

    def check(data: bytes) -> str:
        file.write_bytes(data)

        def read() -> str:
            recipe = load_recipe(str(file), {})
            again.write_text(yaml.safe_dump(recipe.model_dump(mode="json")), encoding="utf-8")
            if load_recipe(str(again), {}) != recipe:
                raise Broken("the recipe reads otherwise when it is written again")
            return "read"

        return settled(read, RecipeError)

    dumps = [Recipe(**yaml.safe_load(text)).model_dump(mode="json") for text in texts]
    needed = [name for name, field in Recipe.model_fields.items() if field.is_required()]

    def mutate(rng: random.Random, data: bytes) -> bytes:
        whole = rng.choice(dumps) | {"layer_maps": {"3": [2, 6, 10]}, "stage_epochs": {"teacher": 2}}
        return tree_bytes(rng, {key: whole[key] for key in [*needed, *rng.sample(sorted(whole), 5)]})

    return Surface(
        (b"dataset: umls\ngrades: [3]\nmask_rates: [0.1]\nepochs: 1\nbatch_size: 8\nlr: 1e-3\n",), check, mutate
    )


def settings(folder: Path) -> Surface:
    """`--set KEY=VALUE`: a RecipeError, or a recipe."""
    from pmd.errors import RecipeError
    from pmd.recipe import Recipe, load_recipe, parse_setting

    values = (
        "1",
        "[6, 4]",
        "{a: 1}",
        "2026-11-27",
        "0x1f",
        "1e-3",
        ".inf",
        ".nan",
        "~",
        "*a",
        "&a [*a]",
        "!!int x",
    )
    base = folder / "base.yaml"
    base.write_text("{dataset: umls, grades: [3], mask_rates: [0.1], epochs: 1, batch_size: 8, lr: 0.1}")
    seeds = tuple(f"{key}={value}".encode() for key in Recipe.model_fields for value in values)

    def check(data: bytes) -> str:
        def read() -> str:
            key, value = parse_setting(data.decode("utf-8", "surrogateescape"))
            load_recipe(str(base), {key: value})
            return "read"

        return settled(read, RecipeError)

    return Surface(seeds, check)


def reports(folder: Path) -> Surface:
    """A report.json: a BenchError, or one that `pick` and `compare` can tell of, to people and as JSON."""
    from pmd.benchmarks import compare, compare_table, gate, pick
    from pmd.benchmarks.errors import BenchError
    from pmd.benchmarks.reading import read_report
    from tests.bench_rows import failed_row, report

    whole = json.loads(json.dumps(report()))
    whole["results"] = [*whole["results"][:2], json.loads(json.dumps(failed_row()))]
    file = folder / "report.json"
    conditions = [gate.parse(text, changes=True) for text in ("mrr_kept<0.9", "query_ms.p50>+10%")]
    bounds = {limit: 1.0 for limit in pick.LIMITS}
    (folder / "sound.json").write_text(json.dumps(whole), encoding="utf-8")
    sound = read_report(folder / "sound.json")

    def check(data: bytes) -> str:
        file.write_bytes(data)

        def read() -> str:
            found = read_report(file)
            chosen = pick.pick(found, {} if len(data) % 2 else bounds)
            json.dumps([chosen, pick.lines(chosen)], allow_nan=False)
            one, two = ((found, found), (sound, found), (found, sound))[len(data) % 3]
            told = compare.compare(one, two, conditions)
            cpu, threads = two["machine"]["cpu"], two["machine"]["cores_used"]
            json.dumps([told, compare_table.lines(told, cpu, threads, everything=True)], allow_nan=False)
            return "read"

        return settled(read, BenchError)

    return Surface((json.dumps(whole).encode(),), check, _tree_mutation)


def predictions(folder: Path) -> Surface:
    """A file of predictions: a PredictionsError, or ranks in range, which compare with themselves."""
    from pmd.serving.predictions import PredictionsError, compare, read_ranks
    from pmd.serving.ranking import COUNTS

    about = {"schema": "pmd-predictions/1", "split": "test", "k": 1, "entities": 12, "lines": 4}
    lines = [
        {
            "side": side,
            "head": head,
            "relation": "r",
            "tail": "t",
            **{name: place for place, name in enumerate(COUNTS)},
        }
        for side in ("tail", "head")
        for head in ("a", "b")
    ]
    for line in lines:
        line |= {"above": 5, "level": 1, "known_above": 1, "known_level": 0, "known": 2}
    file = folder / "predictions.jsonl"

    def check(data: bytes) -> str:
        file.write_bytes(data)

        def read() -> str:
            found = read_ranks(file)
            ranks = found.ranks.rank()
            if len(ranks) and not (ranks.min() >= 1 and ranks.max() <= found.ranks.num_entities):
                raise Broken(f"ranks from {ranks.min()} to {ranks.max()} of {found.ranks.num_entities} entities")
            json.dumps(compare(found, found), allow_nan=False)
            return "read"

        return settled(read, PredictionsError)

    def mutate(rng: random.Random, data: bytes) -> bytes:
        records = mutated_tree(rng, [about, *lines])
        listed = records if isinstance(records, list) else [records]
        return "\n".join(json.dumps(record) for record in listed).encode() + b"\n"

    return Surface(("\n".join(json.dumps(record) for record in (about, *lines)).encode() + b"\n",), check, mutate)


PART = "fuzzing"


def _attack(name: str, what: str, factory: str, quick: int, full: int) -> Attack:
    def run(ground: Ground) -> Tally:
        tally = Tally()
        fuzz(f"fuzz_documents:{factory}", ground.count, ground, tally)
        return tally

    return Attack(name, PART, what, run, quick=quick, full=full)


ATTACKS = (
    _attack(
        "fuzz-manifests",
        "Mutated manifests, as trees and as bytes: a BundleError, or the same manifest when it is written again",
        "manifests",
        8_000,
        250_000,
    ),
    _attack(
        "fuzz-recipes",
        "Mutated recipe files: a RecipeError, or the same recipe when it is written again",
        "recipes",
        300,
        10_000,
    ),
    _attack("fuzz-settings", "Mutated --set KEY=VALUE: a RecipeError, or a recipe", "settings", 600, 15_000),
    _attack(
        "fuzz-reports",
        "Mutated report.json: a BenchError, or a report that compare and pick can tell of",
        "reports",
        1_000,
        40_000,
    ),
    _attack(
        "fuzz-predictions",
        "Mutated files of predictions: a PredictionsError, or ranks in range",
        "predictions",
        2_000,
        60_000,
    ),
)
