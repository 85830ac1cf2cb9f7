"""NaN, infinity, denormals and numbers too large, planted in weights, vectors, scales, scores and recipes."""

from __future__ import annotations

import dataclasses
import json
import math
import random as randomness
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.trust.attack import Attack, Ground, Tally
from tests.trust.numbers_denormals import slowdowns

NOT_NUMBERS = (math.nan, math.inf, -math.inf)
EXTREMES = (*NOT_NUMBERS, 0.0, -0.0, 1e-40, -1e-45, 1e-30, 1e20, 1e30, -3e38)
"""Of float32: no numbers, zeros, denormals, small and large ones."""
Outcome = str
"""How a case ended; begins with BROKEN if a promise was broken."""
BROKEN = "BROKEN: "
QUESTIONS = 6


class Material:
    """What all cases start from: bundles, a run, an encoder and a dataset in miniature."""

    def __init__(self, folder: Path) -> None:
        from tests.tiny_bundle import write_tiny_bundle
        from tests.tiny_encoder import write_encoder, write_graph, write_recipe
        from tests.tiny_run import write_run

        self.folder = folder
        self.bundles = {name: write_tiny_bundle(folder / name, precision=name) for name in ("fp32", "int8")}
        self.encoder = write_encoder(folder / "encoder", layers=2)
        self.run = write_run(folder, stages={"grade-2": 2})
        data = write_graph(folder / "graph")
        self.recipe = write_recipe(folder / "toy.yaml", data, self.encoder, grades=[1], mask_rates=[0], epochs=1)

    def fresh(self, source: Path) -> Path:
        """A copy to spoil."""
        target = self.folder / "spoilt"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
        return target


def in_tables(material: Material, random: randomness.Random) -> Outcome:
    """A number of the entity vectors, or of their scales, in a bundle that is otherwise sound."""
    from pmd.serving import Scorer
    from pmd.serving.bundle import SCALES, VECTORS, Bundle
    from pmd.serving.errors import PmdError

    kind = random.choice(["fp32", "int8"])
    folder, verify = material.fresh(material.bundles[kind]), random.random() < 0.3
    tables = Bundle.open(folder).tables
    name = VECTORS if kind == "fp32" else SCALES
    array = np.load(folder / name)
    flat = array.reshape(-1)
    flat[random.randrange(len(flat))] = np.float32(random.choice(EXTREMES))
    np.save(folder / name, np.asfortranarray(array) if kind == "fp32" else array)
    _reseal(folder)
    try:
        scorer = Scorer.load(folder, threads=1, verify=verify)
    except PmdError as error:
        return _one_line(error, "refused at load")
    table = dataclasses.replace(tables.vectors, **{"values" if kind == "fp32" else "scales": array})
    return _asked(scorer, random, lambda pairs: table.scores(scorer._encoder(pairs)))


def in_towers(material: Material, random: randomness.Random) -> Outcome:
    """A weight of a bundle's query tower: questions that meet it are refused, the others have their answers."""
    import onnx
    from onnx import numpy_helper

    from pmd.serving import Scorer
    from pmd.serving.bundle import MODEL, QUERY
    from pmd.serving.errors import PmdError

    kind = random.choice(["fp32", "int8"])
    folder = material.fresh(material.bundles[kind])
    path = folder / QUERY / MODEL
    model = onnx.load(path)
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == "words")
    values = numpy_helper.to_array(weights).copy()
    row = random.randrange(len(values))
    values[row, random.randrange(values.shape[1])] = np.float32(random.choice(EXTREMES))
    weights.CopyFrom(numpy_helper.from_array(values, "words"))
    path.write_bytes(model.SerializeToString())
    _reseal(folder)
    try:
        scorer = Scorer.load(folder, threads=1)
    except PmdError as error:
        return _one_line(error, "refused at load")
    sound = Scorer.load(material.bundles[kind], threads=1)
    return _asked(scorer, random, None, sound, row)


def in_added(material: Material, random: randomness.Random) -> Outcome:
    """A vector given to add_entity, of numbers that float64 holds."""
    from pmd.serving import Scorer
    from pmd.serving.errors import QueryError

    scorer = Scorer.load(material.bundles[random.choice(["fp32", "int8"])], threads=1)
    direction = np.array([random.uniform(-1, 1) for _ in range(16)])
    size = random.choice([1e-320, 1e-200, 1e-40, 1.0, 1e38, 1e200, 1e307, 0.0, *NOT_NUMBERS])
    before = scorer.top_tails("aspirin", "treats", k=20)
    with np.errstate(invalid="ignore"):
        vector = direction * size
    try:
        scorer.add_entity("new", name="new", vector=vector)
    except QueryError as error:
        same = scorer.top_tails("aspirin", "treats", k=20) == before
        return _one_line(error, "vector refused") if same else BROKEN + "a refused vector changed answers"
    if not (math.isfinite(size) and size):
        return BROKEN + f"a vector of size {size} was taken"
    near = [found.score for found in scorer.top_tails("aspirin", "treats", k=20) if found.entity == "new"]
    other = Scorer.load(scorer.bundle.path, threads=1)
    other.add_entity("new", name="new", vector=direction)
    wanted = [found.score for found in other.top_tails("aspirin", "treats", k=20) if found.entity == "new"]
    slack = 1e-5 if size > 1e-300 else 0.1  # the direction of a denormal has few digits
    if not near or abs(near[0] - wanted[0]) > slack:
        return BROKEN + f"a vector of size {size:g} scores {near}, the same of size 1 {wanted}"
    return "vector taken, as one of length 1"


def in_grade(material: Material, random: randomness.Random) -> Outcome:
    """A weight of a grade that is exported: refused by name, or the bundle holds what torch says."""
    from pmd.grade import load_grade, save_grade

    run = material.fresh(material.run)
    grade = load_grade(run / "grade-2")
    name, weights = random.choice(sorted(grade.model.named_parameters()))
    value = random.choice(EXTREMES)
    weights.data.view(-1)[random.randrange(weights.numel())] = value
    save_grade(run / "grade-2", grade.model, grade.tokenizer_json, grade.info)
    out = material.folder / "made"
    shutil.rmtree(out, ignore_errors=True)
    precision = random.choice(["fp32", "int8", "int8-static"])
    options = ["--run", str(run), "--grade", "2", "--precision", precision, "--out", str(out), "--quiet"]
    code, said = _command("pmd.export.cli", options)
    if code == 0:
        return _bundle_is_sound(out) if math.isfinite(value) else BROKEN + f"{value} in {name} was exported"
    if out.exists():
        return BROKEN + f"export ended with {code} and left {out.name}"
    if not math.isfinite(value) and name not in said:
        return BROKEN + f"{value} in {name}: {said}"
    return _said(code, said, "export refused")


def in_pretrained(material: Material, random: randomness.Random) -> Outcome:
    """A weight of the encoder that training starts from: refused by name, or trained to finite weights."""
    import torch
    from safetensors.torch import load_file, save_file

    encoder = material.fresh(material.encoder)
    path = encoder / "model.safetensors"
    tensors = load_file(path)
    name = random.choice([name for name in sorted(tensors) if "pooler" not in name])
    value = random.choice(EXTREMES)
    tensors[name].view(-1)[random.randrange(tensors[name].numel())] = value
    save_file(tensors, path, metadata={"format": "pt"})
    out = material.folder / "trained"
    shutil.rmtree(out, ignore_errors=True)
    options = ["--recipe", str(material.recipe), "--encoder", str(encoder), "--out", str(out), "--quiet"]
    code, said = _command("pmd.cli", options)
    if code == 0:
        trained = load_file(out / "grade-1" / "model.safetensors").values()
        finite = math.isfinite(value) and all(bool(torch.isfinite(tensor).all()) for tensor in trained)
        json.loads((out / "ladder.json").read_text(), parse_constant=_refuse)
        return "trained to finite weights" if finite else BROKEN + f"{value} in {name} was trained on"
    if not math.isfinite(value) and name not in said:
        return BROKEN + f"{value} in {name}: {said}"
    return _said(code, said, "training refused")


def in_recipe(material: Material, random: randomness.Random) -> Outcome:
    """A number of a recipe, as YAML or on the command line."""
    from pmd.errors import RecipeError
    from pmd.recipe import Recipe, load_recipe, parse_setting

    numbers = [name for name, field in Recipe.model_fields.items() if "float" in str(field.annotation)]
    key = random.choice(numbers)
    text = random.choice(
        [".nan", ".inf", "-.inf", "1.0e-400", "1.0e+400", "-0.0", "1.0e-40", "1.0e+39", "1.0e-320"]
    )
    many = key in ("mask_rates",)
    try:
        recipe = load_recipe(str(material.recipe), dict([parse_setting(f"{key}={f'[{text}]' if many else text}")]))
    except RecipeError as error:
        return _one_line(error, "recipe refused")
    value = recipe.model_dump()[key]
    finite = all(math.isfinite(np.float32(number)) for number in (value if many else [value]))
    return "taken as a finite number" if finite else BROKEN + f"{key}={text} became {value}"


def in_scores(material: Material, random: randomness.Random) -> Outcome:
    """A score that is no number, in what ranks and measures."""
    from pmd.serving.known import KnownAnswers
    from pmd.serving.ranking import RankingError, evaluate
    from pmd.serving.vectors import top_k
    from tests.tiny_bundle import tiny_tables

    known: KnownAnswers = tiny_tables().known
    value = random.choice(NOT_NUMBERS)
    seed = random.randrange(2**32)

    def scores(heads: Any, relations: Any) -> Any:
        values = np.random.default_rng(seed).normal(size=(len(heads), known.num_entities)).astype(np.float32)
        values[seed % len(heads), seed % known.num_entities] = value
        return values

    row = scores([0], [0])[0]
    if value != math.inf and seed % known.num_entities in top_k(row, known.num_entities):
        return BROKEN + f"{value} was ranked"
    try:
        metrics = evaluate(scores, known.triples(2), known)
    except RankingError as error:
        return _one_line(error, "scores refused")
    return BROKEN + f"{value} among scores gave {metrics}"


def _asked(
    scorer: Any, random: randomness.Random, exact: Callable[[Any], Any] | None, sound: Any = None, row: int = -1
) -> Outcome:
    """Some questions to a spoilt Scorer: refused, or answered rightly."""
    from pmd.serving.errors import PmdError

    refused = 0
    for _ in range(QUESTIONS):
        head, relation = random.choice(scorer.entity_ids), random.choice(scorer.relation_ids)
        state = scorer._graph.snapshot
        text = state.question(head, relation, inverse=False, is_text=False).text
        touched = sound is not None and row in scorer._encoder._tokenizer.single(text)["input_ids"]
        try:
            found = scorer.top_tails(head, relation, k=12, exclude_known=False)
        except PmdError as error:
            if sound is not None and not touched:
                return BROKEN + f"a question that does not meet the weight: {error}"
            if "\n" in str(error):
                return BROKEN + f"two lines: {error}"
            refused += 1
            continue
        ours = [(scorer.entity_ids.index(one.entity), one.score) for one in found]
        if not all(math.isfinite(score) for _, score in ours):
            return BROKEN + f"scores {ours}"
        if (
            sound is not None
            and not touched
            and found != sound.top_tails(head, relation, k=12, exclude_known=False)
        ):
            return BROKEN + f"answers of {head}, {relation} changed"
        if exact is not None:
            scores = exact([text])[0]
            order = np.argsort(-scores, kind="stable")
            if ours != [(int(index), float(scores[index])) for index in order]:
                return BROKEN + f"answers {ours} are not by exact scores {scores[order]}"
    return "questions answered rightly" if not refused else "questions refused, others answered rightly"


def _bundle_is_sound(path: Path) -> Outcome:
    from pmd.serving import Scorer

    scorer = Scorer.load(path, threads=1, verify=True)
    found = scorer.top_tails(scorer.entity_ids[0], scorer.relation_ids[0], k=12)
    json.loads((path / "manifest.json").read_text(), parse_constant=_refuse)
    finite = all(math.isfinite(one.score) for one in found)
    return "exported, answers are finite" if finite else BROKEN + f"an exported bundle answers {found}"


def _command(module: str, options: list[str]) -> tuple[int, str]:
    """Exit code and stderr of a command run in this process."""
    import importlib

    from click.testing import CliRunner

    result = CliRunner().invoke(importlib.import_module(module).main, options)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stderr


def _said(code: int, said: str, how: str) -> Outcome:
    lines = [line for line in said.splitlines() if not line.startswith("warning: ")]
    if code not in (1, 2) or len(lines) != 1 or not lines[0].startswith("error: "):
        return BROKEN + f"exit code {code}, said {said!r}"
    return how


def _one_line(error: Exception, how: str) -> Outcome:
    return BROKEN + f"two lines: {error}" if "\n" in str(error) else how


def _reseal(folder: Path) -> None:
    """The manifest for the files as they are now."""
    from pmd.serving.bundle import MANIFEST, seal

    facts = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    (folder / MANIFEST).unlink()
    seal(folder, {name: fact for name, fact in facts.items() if name not in ("files", "digest")})


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


PLACES: dict[str, tuple[Callable[[Material, randomness.Random], Outcome], int]] = {
    "entity vectors": (in_tables, 6),
    "query tower": (in_towers, 6),
    "added vector": (in_added, 4),
    "recipe": (in_recipe, 8),
    "scores": (in_scores, 4),
    "pretrained weights": (in_pretrained, 2),
    "grade's weights": (in_grade, 1),
}
"""Where numbers are planted, and how often."""


def plant(ground: Ground) -> Tally:
    """Each case plants one number in one place; a warning of numpy on stderr is a failure too."""
    tally, random = Tally(), ground.random
    material = Material(ground.folder)
    names, weights = list(PLACES), [share for _, share in PLACES.values()]
    for number in range(ground.count):
        place = random.choices(names, weights)[0]
        own = randomness.Random(f"{ground.seed} {number}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", RuntimeWarning)
                outcome = PLACES[place][0](material, own)
        except Exception as error:  # what was not foreseen is what is looked for
            outcome = f"{BROKEN}{type(error).__name__}: {error}"
        if outcome.startswith(BROKEN):
            tally.failed(f"case {number}, {place}: {outcome.removeprefix(BROKEN)}")
        else:
            tally.saw(f"{place}: {outcome}")
    tally.figures |= slowdowns()
    return tally


ATTACKS = (
    Attack(
        name="planted-numbers",
        part="numbers",
        what="NaN, infinity, denormals and 1e30 in weights, vectors, scales, scores and recipes: refused in one "
        "line, or answered as exact arithmetic says; never ranked, never in JSON, nothing half-written",
        run=plant,
        quick=120,
        full=5_000,
    ),
)
