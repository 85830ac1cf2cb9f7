"""What a study will train, worked out and checked before anything trains: recipes, stages, and which are shared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pmd.encoder import encoder_depth, resolve_encoder, student_depth
from pmd.errors import RunError
from pmd.recipe import Recipe, load_recipe
from pmd.run import LADDER_SCHEMA, RUN_SCHEMA, RunFolder
from pmd.serving.errors import PmdError
from pmd.stages import PRETRAINED, TEACHER, Stage, plan_stages, stage_identities
from pmd.study.folder import StudyError, StudyFolder, read_run
from pmd.study.variants import Variant


@dataclass(frozen=True)
class Base:
    """What all runs of a study have in common: the recipe before any variant, and the encoders' depths."""

    source: str
    """The recipe's name or file."""
    settings: Mapping[str, Any]
    """Recipe keys of the command line, laid over the recipe."""
    recipe: Recipe
    encoder: Mapping[str, str]
    """name and sha256 of the encoder."""
    depth: int
    student_depth: int | None

    def with_keys(self, overrides: Mapping[str, Any]) -> Recipe:
        """The recipe with keys changed. Raises RecipeError if they do not fit."""
        return load_recipe(self.source, {**self.settings, **overrides})

    def stages(self, recipe: Recipe) -> list[Stage]:
        """The stages of one of the study's recipes. Raises RecipeError if a grade or layer map does not fit."""
        return plan_stages(recipe, self.depth, self.student_depth)


@dataclass(frozen=True)
class Run:
    """One variant with one seed."""

    variant: Variant
    seed: int
    recipe: Recipe
    stages: tuple[Stage, ...]
    folder: Path

    @property
    def finished(self) -> bool:
        """Whether every stage stands in the run folder's ladder.json. Raises RunError if that is damaged."""
        ladder = read_run(self.folder, RunFolder(self.folder).ladder.name, LADDER_SCHEMA)
        done = {stage["stage"] for stage in ladder["stages"]} if ladder else set()
        return done >= {stage.name for stage in self.stages}


def read_base(source: str, settings: Mapping[str, Any]) -> Base:
    """The study's recipe and encoder, without loading weights. Raises RecipeError, EncoderError."""
    recipe = load_recipe(source, settings)
    files = resolve_encoder(recipe.encoder, recipe.encoder_sha256)
    base = Base(
        source=source,
        settings=settings,
        recipe=recipe,
        encoder={"name": files.name, "sha256": files.sha256},
        depth=encoder_depth(files),
        student_depth=student_depth(recipe.student_encoder),
    )
    base.stages(recipe)  # a recipe that does not fit its own encoder is said so, rather than in a variant's name
    return base


def choose(variants: Sequence[Variant], only: Sequence[str]) -> list[Variant]:
    """The variants named, in the study's order; all without a name. Raises StudyError for an unknown name."""
    known = [variant.name for variant in variants]
    if unknown := [name for name in only if name not in known]:
        raise StudyError(f"no variant {unknown[0]!r} in this study; it has {', '.join(known)}")
    return [variant for variant in variants if not only or variant.name in only]


def outline(base: Base, variants: Sequence[Variant], seeds: Sequence[int], folder: StudyFolder) -> list[Run]:
    """Every run, seed by seed, so that a study cut short has whole comparisons of the first seeds.

    Raises RecipeError naming the variant that does not fit, RunError if a run folder was made by another recipe.
    """
    runs = [run_of(base, variant, seed, folder) for seed in seeds for variant in variants]
    for run in runs:
        check_run(run)
    return runs


def run_of(base: Base, variant: Variant, seed: int, folder: StudyFolder) -> Run:
    """One variant with one seed, planned. Raises RecipeError, naming the variant, if it does not fit."""
    try:
        overrides = _fitting_maps(base, variant.overrides) | {"seed": seed}
        recipe = base.with_keys(overrides)
        stages = tuple(base.stages(recipe))
    except PmdError as error:
        raise type(error)(f"variant {variant.name}: {error}") from error
    return Run(variant, seed, recipe, stages, folder.run(variant.name, seed))


def check_run(run: Run) -> None:
    """Raise RunError if the run's folder was made by another recipe, or is not a run folder."""
    facts = read_run(run.folder, RunFolder(run.folder).run.name, RUN_SCHEMA)
    if facts is None:
        if run.folder.exists() and any(run.folder.iterdir()):
            raise RunError(f"{run.folder} exists and is not a run; remove it or choose another --out")
        return
    try:
        before = Recipe.model_validate(facts.get("recipe")).model_dump(exclude={"checkpoint_seconds"})
    except ValidationError as error:
        raise RunError(f"{run.folder} was made by another version's recipe; choose another --out") from error
    now = run.recipe.model_dump()
    if changed := [key for key in before if before[key] != now[key]]:
        raise RunError(f"{run.folder} was made with another recipe {', '.join(changed)}; choose another --out")


def shared_stages(runs: Iterable[Run]) -> dict[tuple[str, str], str]:
    """(run, stage) to the run that trains the same stage before it, so that it need not be trained twice."""
    owners: dict[str, str] = {}
    shared = {}
    for run in runs:
        for name, identity in stage_identities(run.recipe, run.stages, {}).items():
            owner = owners.setdefault(identity, run.folder.name)
            if owner != run.folder.name:
                shared[run.folder.name, name] = owner
    return shared


def describe(runs: Sequence[Run]) -> tuple[str, list[dict[str, Any]]]:
    """The runs as text for people and as facts for machines."""
    shared, lines, facts = shared_stages(runs), [], []
    for run in runs:
        done = run.finished
        lines.append(f"{run.folder.name}{' (finished)' if done else ''}: {run.variant.why}")
        stages = []
        for stage in run.stages:
            owner, epochs = shared.get((run.folder.name, stage.name)), run.recipe.epochs_of(stage.name)
            stages.append({"stage": stage.name, "grade": stage.grade, "mask_rate": stage.mask_rate})
            stages[-1] |= {"epochs": epochs, "teacher": stage.teacher, "shared_with": owner}
            lines.append(_stage_line(stage, epochs, owner))
        facts.append({"run": run.folder.name, "variant": run.variant.name, "seed": run.seed})
        facts[-1] |= {"finished": done, "stages": stages}
    total = sum(len(run.stages) for run in runs)
    lines.append(
        f"{len(runs)} runs, {total} stages, of which {len(shared)} are shared: {total - len(shared)} to train"
    )
    return "\n".join(lines), facts


def _stage_line(stage: Stage, epochs: int, owner: str | None) -> str:
    taught = f"taught by {stage.teacher}" if stage.teacher else "on the task loss"
    shared = f" (as in {owner})" if owner else ""
    return (
        f"  {stage.name:<14} {stage.grade:>2} layers, mask {stage.mask_rate:.0%}, {epochs} epochs, {taught}{shared}"
    )


def _fitting_maps(base: Base, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides, less the recipe's layer maps for grades that they cut from a source of another depth.

    A map counts the layers of its source: {3: [2, 6, 10]} is for 12 layers and means nothing on 6.
    """
    maps = base.recipe.layer_maps
    if not maps or "layer_maps" in overrides:
        return dict(overrides)
    plain = base.with_keys({**overrides, "layer_maps": {}})
    before, after = (_source_depths(base, recipe) for recipe in (base.recipe, plain))
    kept = {grade: layers for grade, layers in maps.items() if before.get(grade) == after.get(grade)}
    return {**overrides, "layer_maps": kept}


def _source_depths(base: Base, recipe: Recipe) -> dict[int, int]:
    stages = base.stages(recipe)
    depths = {stage.name: stage.grade for stage in stages} | {PRETRAINED: base.student_depth or base.depth}
    return {stage.grade: depths[stage.source] for stage in stages if stage.name != TEACHER}
