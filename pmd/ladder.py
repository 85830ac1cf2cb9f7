"""The ladder: teacher, pre-distilled student, and grades with fewer and fewer layers, each taught by the last."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pmd.batches import TrainingTexts, tokenise
from pmd.checkpoint import StageState
from pmd.datasets.places import cache_folder
from pmd.encoder import load_encoder, resolve_encoder
from pmd.errors import RunError
from pmd.evaluation import evaluate_model
from pmd.events import Events
from pmd.grade import METRICS, GradeInfo, load_grade, save_grade
from pmd.graph import KnowledgeGraph
from pmd.model import BiEncoder, even_layers
from pmd.recipe import Recipe
from pmd.run import LADDER_SCHEMA, RunFolder, start_run, write_json
from pmd.serving.known import KnownAnswers
from pmd.serving.storage import atomic_folder
from pmd.serving.tokenization import TextTokenizer
from pmd.train import Schedule, StageTrainer, TimeLimitReached, Weights

TEACHER, PRE_DISTILLED = "teacher", "pre-distilled"


@dataclass(frozen=True)
class Stage:
    """One rung: what is trained, from which layers of what, taught by whom."""

    number: int
    name: str
    grade: int
    mask_rate: float
    layers: tuple[int, ...]
    """Layers kept of the source model."""
    teacher: str | None
    """The stage that teaches this one; None trains on the task loss alone."""
    source: str
    """The stage the layers come from, or `pretrained`."""


def plan_stages(recipe: Recipe, depth: int) -> list[Stage]:
    """The stages of a recipe for an encoder of `depth` layers. Raises RecipeError if a layer map does not fit."""
    alone = recipe.method == "baseline"
    stages = [] if alone else [Stage(0, TEACHER, depth, 0.0, tuple(range(depth)), None, "pretrained")]
    for position, (grade, rate) in enumerate(zip(recipe.grades, recipe.mask_rates, strict=True)):
        previous = None if alone else stages[-1]
        source = previous if previous and recipe.student_init == "teacher" else None
        stages.append(
            Stage(
                number=1 + position,
                name=PRE_DISTILLED if grade == depth and not alone else f"grade-{grade}",
                grade=grade,
                mask_rate=0.0 if alone or recipe.method == "lkd" else rate,
                layers=recipe.layer_maps.get(grade) or even_layers(source.grade if source else depth, grade),
                teacher=previous.name if previous else None,
                source=source.name if source else "pretrained",
            )
        )
    return stages


def train_ladder(
    recipe: Recipe,
    graph: KnowledgeGraph,
    out: Path,
    *,
    device: torch.device,
    resume: bool,
    time_limit: float | None,
    progress: bool,
) -> tuple[dict[str, Any], bool]:
    """Train every stage that is not finished yet. Returns ladder.json's contents and whether all stages are done.

    False means that the time limit (seconds) came first; the same call with `resume` goes on from there.
    """
    deadline = time.monotonic() + time_limit if time_limit is not None else None
    files = resolve_encoder(recipe.encoder, recipe.encoder_sha256)
    folder = RunFolder(out)
    pretrained = load_encoder(files, dropout=recipe.dropout, temperature=recipe.temperature)
    stages = plan_stages(recipe, pretrained.depth)
    start_run(folder, recipe, {"name": files.name, "sha256": files.sha256}, device, resume=resume)
    tokenizer_json = (files.folder / "tokenizer.json").read_text(encoding="utf-8")
    ladder = _Ladder(
        recipe=recipe,
        texts=tokenise(graph, TextTokenizer(tokenizer_json, recipe.max_tokens), recipe.templates, cache_folder()),
        known=graph.known(),
        tokenizer_json=tokenizer_json,
        encoder=files.name,
        pretrained=pretrained,
        stages=stages,
        folder=folder,
        device=device,
        events=Events(folder.events, progress=progress),
        deadline=deadline,
    )
    return ladder.train()


@dataclass
class _Ladder:
    recipe: Recipe
    texts: TrainingTexts
    known: KnownAnswers
    tokenizer_json: str
    encoder: str
    pretrained: BiEncoder
    stages: list[Stage]
    folder: RunFolder
    device: torch.device
    events: Events
    deadline: float | None

    def train(self) -> tuple[dict[str, Any], bool]:
        models: dict[str, BiEncoder] = {}
        done = True
        for stage in self.stages:
            if self._finished(stage):
                continue
            try:
                models = {stage.name: self._train_stage(stage, models)}  # only the next teacher is kept in memory
            except TimeLimitReached:
                done = False
                break
            self._write_ladder()
        return self._write_ladder(), done

    def _train_stage(self, stage: Stage, models: dict[str, BiEncoder]) -> BiEncoder:
        teacher = self._model(stage.teacher, models) if stage.teacher else None
        source = self._model(stage.source, models) if stage.source != "pretrained" else self.pretrained
        student = source.cut(stage.layers).to(self.device).requires_grad_(True)
        trainer = self._trainer(stage, student, teacher)
        with self.events.stage(stage.name):
            state = trainer.train()
        metrics = self._measure(stage, student, state)
        info = GradeInfo(stage.name, self.encoder, self.recipe.max_tokens, self.recipe.templates)
        with atomic_folder(self.folder.stage(stage.name)) as partial:
            save_grade(partial, student, self.tokenizer_json, info)
            write_json(partial / METRICS, metrics)
        self.folder.checkpoint.unlink(missing_ok=True)
        valid = metrics["valid"] and metrics["valid"]["mrr"]
        self.events.say(f"{stage.name}: {stage.grade} layers, valid MRR {valid}, {state.seconds:.0f} s")
        return student.eval()

    def _trainer(self, stage: Stage, student: BiEncoder, teacher: BiEncoder | None) -> StageTrainer:
        recipe = self.recipe
        feature_weight = recipe.beta if recipe.method == "pmd" else 0.0
        return StageTrainer(
            stage=stage.name,
            student=student,
            teacher=teacher,
            texts=self.texts,
            known=self.known,
            batching=recipe.batching,
            schedule=Schedule(
                epochs=recipe.epochs_of(stage.name),
                lr=recipe.lr,
                warmup_steps=recipe.warmup_steps,
                weight_decay=recipe.weight_decay,
                clip_norm=recipe.clip_norm,
                mask_rate=stage.mask_rate,
                seed=(recipe.seed, stage.number),
            ),
            weights=Weights(recipe.alpha, feature_weight, recipe.score_scale, recipe.margin),
            checkpoint=self.folder.checkpoint,
            checkpoint_seconds=recipe.checkpoint_seconds,
            events=self.events,
            out_of_time=self._out_of_time,
        )

    def _measure(self, stage: Stage, student: BiEncoder, state: StageState) -> dict[str, Any]:
        rerank = (self.recipe.rerank.hops, self.recipe.rerank.weight) if self.recipe.rerank else None
        valid, _ = evaluate_model(student, self.texts, "valid", self.known)
        test, test_reranked = evaluate_model(student, self.texts, "test", self.known, rerank)
        return {
            "stage": stage.name,
            "grade": stage.grade,
            "parameters": student.num_parameters,
            "mask_rate": stage.mask_rate,
            "layers": list(stage.layers),
            "source": stage.source,
            "teacher": stage.teacher,
            "epochs": len(state.history),
            "best_epoch": state.best_epoch,
            "train_seconds": state.seconds,
            "triples_per_second": state.triples / max(state.seconds, 1e-9),
            "valid": valid,
            "test": test,
            "test_reranked": test_reranked,
            "history": state.history,
        }

    def _model(self, name: str, models: dict[str, BiEncoder]) -> BiEncoder:
        if name in models:
            return models[name]
        return load_grade(self.folder.stage(name)).model.to(self.device)

    def _finished(self, stage: Stage) -> bool:
        return (self.folder.stage(stage.name) / METRICS).is_file()

    def _write_ladder(self) -> dict[str, Any]:
        stages = [self._read_metrics(stage) for stage in self.stages if self._finished(stage)]
        ladder = {
            "schema": LADDER_SCHEMA,
            "dataset": self.texts.graph.name,
            "method": self.recipe.method,
            "encoder": self.encoder,
            "seed": self.recipe.seed,
            "stages": stages,
        }
        write_json(self.folder.ladder, ladder)
        return ladder

    def _read_metrics(self, stage: Stage) -> dict[str, Any]:
        path = self.folder.stage(stage.name) / METRICS
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise RunError(f"{path} is damaged ({error}); remove {path.parent} to train the stage again") from error

    def _out_of_time(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline
