"""The ladder: teacher, pre-distilled student, and grades with fewer and fewer layers, each taught by the last."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pmd.batches import TrainingTexts, steps_per_epoch, tokenise
from pmd.checkpoint import StageState, checkpoint_stage
from pmd.datasets.places import cache_folder
from pmd.deadline import Deadline
from pmd.device import keep_freed_memory, uses_bf16
from pmd.errors import RunError
from pmd.evaluation import evaluate_model
from pmd.events import Events, OnEpoch
from pmd.grade import METRICS, GradeInfo, check_survives_saving, load_grade, save_grade
from pmd.graph import KnowledgeGraph
from pmd.learner import Compute, Schedule
from pmd.model import BiEncoder
from pmd.pretrained import Pretrained
from pmd.recipe import Recipe
from pmd.run import LADDER_SCHEMA, RunFolder, start_run, write_json
from pmd.serving.known import KnownAnswers
from pmd.serving.storage import StorageError, atomic_folder, discard
from pmd.serving.tokenization import TextTokenizer
from pmd.stages import (
    PRETRAINED,
    Stage,
    objective_of,
    plan_stages,
    pretrained_layers,
    stage_identities,
)
from pmd.teacher import Teacher
from pmd.token_tables import content_key
from pmd.trackers import tracking
from pmd.train import StageTrainer, TimeLimitReached
from pmd.workers import Workers


def train_ladder(
    recipe: Recipe,
    graph: KnowledgeGraph,
    out: Path,
    *,
    device: torch.device,
    resume: bool,
    time_limit: float | None,
    progress: bool,
    on_epoch: OnEpoch | None = None,
    reuse: Sequence[Path] = (),
    workers: Workers | None = None,
    trackers: Sequence[str] = (),
) -> tuple[dict[str, Any], bool]:
    """Train every stage that is not finished yet. Returns ladder.json's contents and whether all stages are done.

    False means that the time limit (seconds) came first; the same call with `resume` goes on from there.
    on_epoch: called with a stage's name and its record after each epoch. reuse: folders of other runs, whose
    finished stages are copied where they are what this run would train, byte for byte. workers: the processes
    that train together. trackers: names of experiment trackers (pmd.trackers) to keep in the run folder.
    """
    workers = workers or Workers()
    deadline = Deadline.after(time_limit)
    keep_freed_memory()
    folder = RunFolder(out)
    with workers.together():
        encoders = Pretrained.load(recipe)
        stages = plan_stages(recipe, encoders.teacher.depth, encoders.student_depth)
        cuts = ((encoders.of(name)[0], layers) for name, layers in pretrained_layers(stages).items())
        for encoder, layers in dict.fromkeys(cuts):  # each once, hours before some of them are made
            check_survives_saving(encoder.cut(layers))
        if workers.leads:
            start_run(folder, recipe, encoders.facts, device, resume=resume)
    with workers.together():
        if not folder.run.is_file():
            raise RunError(f"{folder.root} is not the leading process's run; all need the same run folder")
    tokenizer = TextTokenizer(encoders.tokenizer_json, recipe.max_tokens)
    origin = {
        "texts": content_key(graph, tokenizer, recipe.templates),
        "valid": hashlib.sha256(graph.valid.tobytes()).hexdigest(),
        "encoders": encoders.facts,
        "device": device.type,
        "workers": workers.parts,
    }
    texts = tokenise(graph, tokenizer, recipe.templates, cache_folder())
    kept = trackers if workers.leads else ()
    with tracking(kept, folder.root, recipe.model_dump(mode="json")) as tracked:
        ladder = _Ladder(
            recipe=recipe,
            texts=texts,
            known=graph.known(),
            encoders=encoders,
            stages=stages,
            identities=stage_identities(recipe, stages, origin),
            folder=folder,
            device=device,
            events=Events(
                folder.events,
                progress=progress and workers.leads,
                record=workers.leads,
                on_epoch=on_epoch,
                trackers=tracked,
            ),
            deadline=deadline,
            reuse=reuse,
            workers=workers,
        )
        try:
            return ladder.train()
        except StorageError as error:
            raise StorageError(f"{error}; what was saved is whole, go on with --resume") from error


@dataclass
class _Ladder:
    recipe: Recipe
    texts: TrainingTexts
    known: KnownAnswers
    encoders: Pretrained
    stages: list[Stage]
    identities: dict[str, str]
    folder: RunFolder
    device: torch.device
    events: Events
    deadline: Deadline
    reuse: Sequence[Path]
    workers: Workers
    models: dict[str, BiEncoder] = field(default_factory=dict)

    def train(self) -> tuple[dict[str, Any], bool]:
        done = True
        self._drop_spent_checkpoint()
        for stage in self.stages:
            if self._finished(stage) or self._taken_over(stage):
                continue
            try:
                self.models[stage.name] = self._train_stage(stage)
            except TimeLimitReached:
                done = False
                break
            self._forget_models(after=stage)
            self._write_ladder()
        return self._write_ladder(), done

    def _drop_spent_checkpoint(self) -> None:
        """Remove the checkpoint of a finished stage: a kill came after the stage was saved and before this."""
        path = self.folder.checkpoint
        if self.workers.leads:
            finished = [stage.name for stage in self.stages if self._finished(stage)]
            if not path.exists() or checkpoint_stage(path) in finished:
                discard(path)
        self.workers.wait()

    def _train_stage(self, stage: Stage) -> BiEncoder:
        teacher = Teacher(self._model(stage.teacher), stage.taught_inner) if stage.teacher else None
        source = self._model(stage.source) if stage.source != PRETRAINED else self.encoders.of(stage.name)[0]
        student = source.cut(stage.layers).to(self.device).requires_grad_(True)
        trainer = self._trainer(stage, student, teacher)
        with self.events.stage(stage.name, self._steps_before(stage)):
            state = trainer.train()
        metrics = self._measure(stage, student, state)
        self.events.measured(stage.name, state.step, metrics)
        if self.workers.leads:
            self._save(stage, student, metrics)
        self.workers.wait()
        valid = metrics["valid"] and metrics["valid"]["mrr"]
        self.events.say(f"{stage.name}: {stage.grade} layers, valid MRR {valid}, {state.seconds:.0f} s")
        return student.eval()

    def _steps_before(self, stage: Stage) -> int:
        """Optimiser steps of all earlier stages, wherever and whenever they were made."""
        earlier = self.stages[: self.stages.index(stage)]
        per_epoch = steps_per_epoch(self.texts.known, self.recipe.batching)
        return per_epoch * sum(self.recipe.epochs_of(before.name) for before in earlier)

    def _save(self, stage: Stage, student: BiEncoder, metrics: dict[str, Any]) -> None:
        info = GradeInfo(stage.name, self.encoders.of(stage.name)[1], self.recipe.max_tokens, self.recipe.templates)
        if not self.folder.run.is_file():
            raise RunError(f"{self.folder.root} was removed while it was in use; train again with another --out")
        with atomic_folder(self.folder.stage(stage.name)) as partial:
            save_grade(partial, student, self.encoders.tokenizer_json, info)
            write_json(partial / METRICS, metrics)
        discard(self.folder.checkpoint)

    def _trainer(self, stage: Stage, student: BiEncoder, teacher: Teacher | None) -> StageTrainer:
        recipe = self.recipe
        return StageTrainer(
            stage=stage.name,
            student=student,
            teacher=teacher,
            objective=objective_of(recipe, stage),
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
                mask_schedule=recipe.mask_schedule,
                mask_positions=recipe.mask_positions,
            ),
            checkpoint=self.folder.checkpoint,
            checkpoint_seconds=recipe.checkpoint_seconds,
            events=self.events,
            out_of_time=self.deadline.passed,
            earlier_batches=recipe.earlier_batches,
            compute=Compute(recipe.chunk_tokens, uses_bf16(recipe.precision, self.device), recipe.compile),
            workers=self.workers,
        )

    def _measure(self, stage: Stage, student: BiEncoder, state: StageState) -> dict[str, Any]:
        rerank = (self.recipe.rerank.hops, self.recipe.rerank.weight) if self.recipe.rerank else None
        test, test_reranked = evaluate_model(student, self.texts, "test", self.known, rerank)
        return {
            "stage": stage.name,
            "grade": stage.grade,
            "parameters": student.num_parameters,
            "mask_rate": stage.mask_rate,
            "layers": list(stage.layers),
            "source": stage.source,
            "teacher": stage.teacher,
            "identity": self.identities[stage.name],
            "epochs": len(state.history),
            "skipped_steps": state.skipped_steps,
            "best_epoch": state.best_epoch,
            "train_seconds": state.seconds,
            "triples_per_second": state.triples / max(state.seconds, 1e-9),
            "valid": state.best_valid,
            "test": test,
            "test_reranked": test_reranked,
            "history": state.history,
        }

    def _model(self, name: str) -> BiEncoder:
        if name not in self.models:
            self.models[name] = load_grade(self.folder.stage(name)).model.to(self.device)
        return self.models[name]

    def _forget_models(self, after: Stage) -> None:
        """Only what a later stage needs is kept in memory."""
        later = [stage for stage in self.stages if stage.number > after.number]
        needed = {name for stage in later for name in (stage.teacher, stage.source)}
        self.models = {name: model for name, model in self.models.items() if name in needed}

    def _finished(self, stage: Stage) -> bool:
        return (self.folder.stage(stage.name) / METRICS).is_file()

    def _taken_over(self, stage: Stage) -> bool:
        """Copy a stage that another run finished, if its weights would be those this run would train."""
        if self.folder.checkpoint.exists():
            return False  # this stage is in training here
        for run in self.reuse:
            finished = run / stage.name
            if _identity(finished / METRICS) == self.identities[stage.name]:
                if self.workers.leads:
                    with atomic_folder(self.folder.stage(stage.name)) as partial:
                        shutil.copytree(finished, partial, dirs_exist_ok=True)
                self.workers.wait()
                self.events.say(f"{stage.name}: taken from {run}")
                return True
        return False

    def _write_ladder(self) -> dict[str, Any]:
        stages = [self._read_metrics(stage) for stage in self.stages if self._finished(stage)]
        ladder = {
            "schema": LADDER_SCHEMA,
            "dataset": self.texts.graph.name,
            "method": self.recipe.method,
            "encoder": self.encoders.teacher_name,
            "seed": self.recipe.seed,
            "stages": stages,
        }
        if self.workers.leads:
            write_json(self.folder.ladder, ladder)
        return ladder

    def _read_metrics(self, stage: Stage) -> dict[str, Any]:
        path = self.folder.stage(stage.name) / METRICS
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise RunError(f"{path} is damaged ({error}); remove {path.parent} to train the stage again") from error


def _identity(metrics: Path) -> str | None:
    try:
        found = json.loads(metrics.read_text(encoding="utf-8")).get("identity")
    except (OSError, ValueError, AttributeError):
        return None
    return str(found) if found else None
