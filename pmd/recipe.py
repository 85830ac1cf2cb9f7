"""Recipes: every setting of a run, in YAML, checked once at the door."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pmd.batches import Batching
from pmd.datasets.plain_yaml import parse_yaml
from pmd.errors import RecipeError
from pmd.serving.texts import TemplateError, Templates

Method = Literal["pmd", "pmd-no-mgfd", "lkd", "pkd", "baseline"]
LEAST, MOST = 1.2e-38, 3.4e38
"""What float32 holds with all its digits."""


def _in_float32(number: float) -> float:
    if number and not LEAST <= number <= MOST:
        raise ValueError(f"float32 cannot hold {number:g}; use {LEAST:g} to {MOST:g}")
    return number


Share = Annotated[float, Field(ge=0.0, lt=1.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False), AfterValidator(_in_float32)]
NotNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False), AfterValidator(_in_float32)]
SHOWN = 60
"""Characters of a user's text in a message."""


class Rerank(BaseModel):
    """Neighbour re-ranking, reported beside the plain figures."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    hops: Count
    weight: Positive = 0.05


class Recipe(BaseModel):
    """A run, in full. `pmd-train --dry-run` prints it as resolved."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    """A shipped dataset's name or a dataset folder."""
    encoder: str = "all-MiniLM-L6-v2"
    """A folder, a hub name, or all-MiniLM-L6-v2."""
    encoder_sha256: str | None = None
    """What the encoder's weights file must hash to; known for published names."""
    student_encoder: str | None = None
    """A narrower encoder with the same tokenizer that the students are cut from; null takes the teacher's."""
    share_towers: Literal["none", "embeddings", "all"] = "none"
    """What the query tower and the entity tower have in common."""
    method: Method = "pmd"
    grades: tuple[Count, ...]
    """Layers of each student, in order. One as deep as the teacher is the pre-distilled stage."""
    mask_rates: tuple[Share, ...]
    """Share of real tokens masked, one for each grade."""
    layer_maps: dict[int, tuple[int, ...]] = {}
    """Layers a grade keeps of its source, where even spacing is not wanted: {3: [2, 6, 10]}."""
    student_init: Literal["teacher", "pretrained"] = "teacher"
    """Whether a student's layers come from the teacher of its step or from the pretrained encoder."""
    taught_by: Literal["previous", "teacher"] = "previous"
    """Whether a student learns from the stage before it or straight from the first teacher."""
    mask_positions: Literal["uniform", "salience", "rarity"] = "uniform"
    """Which tokens are masked: any, those that carry the teacher's vector, or rare ones."""
    mask_schedule: Literal["fixed", "linear", "gap"] = "fixed"
    """The mask rate over a stage's epochs: constant, falling to 0, or falling with the gap to the teacher."""
    alpha: Share = 0.1
    """Weight of the score term."""
    beta: Share = 0.1
    """Weight of the feature term; it counts as 0 where there is none."""
    feature_term: Literal["positions", "pooled"] = "positions"
    """Compare hidden states at masked positions, or their pooled and normalised sums by text (released code)."""
    score_form: Literal["cosine", "logit"] = "cosine"
    """Compare cosines, or logits as the released code does: the student's with margin and temperature."""
    score_scale: Positive = 20.0
    """Factor on both sides of a cosine score term: 20 compares at the scale of temperature 0.05."""
    epochs: Count
    stage_epochs: dict[str, Count] = {}
    """Epochs of single stages (teacher, pre-distilled, grade-3, …) where they differ from `epochs`."""
    batch_size: Count
    """Distinct queries a step."""
    candidates: Literal["all", "batch"] = "batch"
    """Who competes: every entity, or the answers and heads of the step's queries."""
    self_negatives: bool = True
    """Whether a query's own head is one of its negatives."""
    answers_per_query: Count | None = None
    """Queries with more answers are split over several rows of a batch; null keeps all together."""
    order: Literal["random", "graph"] = "random"
    """Whether batches are drawn at random or follow the graph, so that entities repeat and are encoded once."""
    earlier_batches: Annotated[int, Field(ge=0)] | Literal["all"] = 0
    """Entities of this many batches before go on competing by their last vectors; `all` keeps every entity."""
    chunk_tokens: Annotated[int, Field(ge=64)] | None = None
    """Tokens that go through a tower with gradients at once (gradient caching); null takes a batch whole."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of matrix products; auto is bf16 where the processor computes in it."""
    compile: bool = False
    """Compile the student's towers (torch.compile)."""
    lr: Positive
    weight_decay: NotNegative = 1e-4
    clip_norm: Positive = 10.0
    warmup_steps: Annotated[int, Field(ge=0)] = 400
    temperature: Positive = 0.05
    margin: NotNegative = 0.02
    dropout: Share = 0.1
    max_tokens: Annotated[int, Field(ge=8, le=512)] = 50
    templates: Templates = Templates()
    rerank: Rerank | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    checkpoint_seconds: Positive = 120.0
    """How much work a kill can cost."""

    @field_validator("templates", mode="before")
    @classmethod
    def _known_templates(cls, value: Any) -> Any:
        if isinstance(value, dict) and (unknown := set(value) - {field.name for field in fields(Templates)}):
            raise ValueError(f"unknown template {sorted(unknown)[0]!r}")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        if not self.grades:
            raise ValueError("grades is empty; name the layers of at least one student")
        if len(self.mask_rates) != len(self.grades):
            raise ValueError(
                f"{len(self.mask_rates)} mask_rates for {len(self.grades)} grades; give one rate a grade"
            )
        if list(self.grades) != sorted(set(self.grades), reverse=True):
            raise ValueError(f"grades {list(self.grades)} must fall from one student to the next")
        if self.alpha + self.beta >= 1:
            raise ValueError(
                f"alpha + beta is {self.alpha + self.beta:g}; it must stay below 1 to leave a task loss"
            )
        return self

    @property
    def batching(self) -> Batching:
        """How an epoch is cut into steps."""
        return Batching(self.batch_size, self.candidates, self.self_negatives, self.answers_per_query, self.order)

    def epochs_of(self, stage: str) -> int:
        """Epochs of one stage."""
        return self.stage_epochs.get(stage, self.epochs)


def load_recipe(source: str, overrides: Mapping[str, Any]) -> Recipe:
    """A recipe by shipped name or YAML file, with `overrides` laid over its keys.

    Raises RecipeError for an unknown name, a file that is not a YAML mapping, or a wrong key or value.
    """
    settings = {**_read_yaml(source), **overrides}
    try:
        return Recipe(**{str(key): value for key, value in settings.items()})
    except TemplateError as error:
        raise RecipeError(f"recipe {source}: templates: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = " ".join(".".join(str(part) for part in first["loc"]).split())[:SHOWN]
        if first["type"] == "extra_forbidden":
            raise RecipeError(
                f"unknown recipe key {key!r}; known keys: {', '.join(Recipe.model_fields)}"
            ) from error
        message = first["msg"].removeprefix("Value error, ")
        raise RecipeError(f"recipe {source}: {f'{key}: ' if key else ''}{message}") from error


def shipped_recipes() -> dict[str, Path]:
    """Recipes that come with the package, by name."""
    root = Path(str(resources.files("pmd"))) / "recipes"
    return {path.stem: path for path in sorted(root.glob("*.yaml"))}


def parse_setting(text: str) -> tuple[str, Any]:
    """KEY=VALUE of `--set`; the value is read as YAML. Raises RecipeError if there is no "="."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {text[:SHOWN]!r} is not KEY=VALUE")
    try:
        return key, parse_yaml(value)
    except ValueError as error:
        raise RecipeError(f"--set {text[:SHOWN]!r}: the value is not YAML: {error}") from error


def _read_yaml(source: str) -> dict[str, Any]:
    path = Path(source)
    if path.suffix not in {".yaml", ".yml"}:
        shipped = shipped_recipes()
        if source not in shipped:
            raise RecipeError(f"no recipe {source!r}; shipped are {', '.join(shipped)}, or give a .yaml file")
        path = shipped[source]
    if not path.is_file():
        raise RecipeError(f"no recipe file {path}")
    try:
        settings = parse_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of the text's encoding, too
        raise RecipeError(f"{path} is not YAML: {error}") from error
    if not isinstance(settings, dict):
        raise RecipeError(f"{path} is not a mapping of recipe keys to values")
    return settings
