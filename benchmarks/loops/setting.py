"""The graph, the encoder and the losses that all loops of a case have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pmd.batches import TrainingTexts, tokenise
from pmd.benchmarks.loops.wanted import MASKED, TEACHER, Wanted
from pmd.datasets import load_graph
from pmd.datasets.places import cache_folder
from pmd.device import keep_freed_memory, uses_bf16
from pmd.encoder import load_encoder, resolve_encoder
from pmd.learner import Objective, Precision
from pmd.model import BiEncoder, even_layers
from pmd.recipe import Recipe, load_recipe
from pmd.serving.tokenization import TextTokenizer
from pmd.stages import Stage, objective_of, plan_stages


@dataclass(frozen=True)
class Case:
    """Who is trained and who teaches: the teacher on the task loss alone, or the taught grade."""

    name: str
    mask_rate: float
    stage: Stage
    objective: Objective

    @property
    def taught(self) -> bool:
        """Whether there is a teacher."""
        return self.stage.teacher is not None


@dataclass(frozen=True)
class Setting:
    """A graph as tokens, the pretrained teacher's towers, and the recipe; weights do not matter to speed."""

    wanted: Wanted
    recipe: Recipe
    texts: TrainingTexts
    encoder: BiEncoder

    @classmethod
    def load(cls, wanted: Wanted) -> Setting:
        """Read everything. Raises PmdError for a recipe, dataset or encoder that is not there or does not fit."""
        torch.set_num_threads(wanted.threads)
        keep_freed_memory()  # every loop, the padded one too, is spared the allocator's worst
        recipe = recipe_of(wanted)
        graph = load_graph(recipe.dataset)
        files = resolve_encoder(recipe.encoder, recipe.encoder_sha256)
        encoder = load_encoder(
            files, dropout=recipe.dropout, temperature=recipe.temperature, sharing=recipe.share_towers
        )
        tokenizer_json = (files.folder / "tokenizer.json").read_text(encoding="utf-8")
        tokenizer = TextTokenizer(tokenizer_json, recipe.max_tokens)
        texts = tokenise(graph, tokenizer, recipe.templates, cache_folder())
        encoder = encoder.cut(even_layers(encoder.depth, wanted.teacher_layers))
        return cls(wanted, recipe, texts, encoder)

    def case(self, name: str) -> Case:
        """One of wanted.CASES."""
        rate = self.wanted.mask_rate if name == MASKED else 0.0
        recipe = self.recipe.model_copy(update={"mask_rates": (rate,)})
        stages = plan_stages(recipe, self.encoder.depth)
        stage = stages[0] if name == TEACHER else stages[1]
        return Case(name, rate, stage, objective_of(recipe, stage))

    def student(self, case: Case) -> BiEncoder:
        """A fresh student of the case; the teacher's case trains all layers."""
        return self.encoder.cut(case.stage.layers).requires_grad_(True).train()

    def teacher(self, case: Case) -> BiEncoder | None:
        """A copy of the teacher in evaluation mode; None where the task loss is all."""
        if not case.taught:
            return None
        return self.encoder.cut(range(self.encoder.depth)).eval().requires_grad_(False)

    def optimizer(self, student: BiEncoder) -> torch.optim.Optimizer:
        """The one optimiser of all loops."""
        recipe = self.recipe
        return torch.optim.AdamW(student.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)

    @property
    def precision(self) -> Precision:
        """The one precision of all loops."""
        return Precision("cpu", uses_bf16(self.recipe.precision, torch.device("cpu")))

    @property
    def queries_per_step(self) -> int:
        """Batch size of our loop, in distinct queries."""
        if self.wanted.batch_of == "queries":
            return self.wanted.batch_size
        known = self.texts.known
        return max(1, round(self.wanted.batch_size * len(known.keys) / len(known.answers)))


def recipe_of(wanted: Wanted) -> Recipe:
    """The recipe with one grade and what the command changed. Raises RecipeError."""
    changes: dict[str, Any] = {
        **{"method": "pmd", "feature_term": "positions", "score_form": "cosine"},  # what the padded loop knows
        **{"candidates": "batch", "answers_per_query": None, "taught_by": "previous", "student_encoder": None},
        "grades": (wanted.student_layers,),
        "mask_rates": (wanted.mask_rate,),
        "layer_maps": {},
        "seed": wanted.seed,
        "compile": False,  # a step that compiles is no step to time
        "stage_epochs": {},
    }
    if wanted.data is not None:
        changes["dataset"] = wanted.data
    if wanted.encoder is not None:
        changes |= {"encoder": wanted.encoder, "encoder_sha256": None}
    return load_recipe(wanted.recipe, changes)
