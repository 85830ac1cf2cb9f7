"""What a run offers for export: its finished stages, the recipe behind them, and the graph they were trained on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pmd.datasets import load_graph
from pmd.errors import RunError
from pmd.export.errors import TargetError
from pmd.export.header import hub_id
from pmd.grade import WEIGHTS
from pmd.graph import KnowledgeGraph
from pmd.run import LADDER_SCHEMA, RUN_SCHEMA, RunFolder, read_json
from pmd.serving.storage import sha256_of

TEACHER = "teacher"
LADDER_KEYS = ("dataset", "method", "encoder", "seed", "stages")
STAGE_KEYS = ("stage", "grade", "valid", "test", "test_reranked")


@dataclass(frozen=True)
class RunStage:
    """A finished stage of a run."""

    folder: Path
    label: str
    """What bundles call it: teacher, or grade-N whatever the run calls the student of that depth."""
    facts: dict[str, Any]
    """Its entry in ladder.json."""

    @property
    def grade(self) -> int:
        """Layers."""
        return int(self.facts["grade"])

    @cached_property
    def weights_sha256(self) -> str:
        """What the stage's weights hash to, so that a bundle can be traced to them."""
        return sha256_of(self.folder / WEIGHTS)


@dataclass(frozen=True)
class Run:
    """A run folder, read. students: by number of layers."""

    root: Path
    ladder: dict[str, Any]
    recipe: dict[str, Any]
    encoder: dict[str, Any]
    """What run.json says of the encoder's weights; may be empty."""
    machine: dict[str, Any]
    students: dict[int, RunStage]
    teacher: RunStage | None

    @classmethod
    def open(cls, root: Path) -> Run:
        """Read run.json and ladder.json. Raises RunError if the folder is no run or they are damaged."""
        folder = RunFolder(root)
        facts = read_json(folder.run, RUN_SCHEMA)
        ladder = read_json(folder.ladder, LADDER_SCHEMA)
        _check(ladder, LADDER_KEYS, folder.ladder)
        recipe = facts.get("recipe")
        _check(recipe, ("dataset",), folder.run)
        stages = []
        for entry in ladder["stages"]:
            _check(entry, STAGE_KEYS, folder.ladder)
            name = str(entry["stage"])
            label = name if name == TEACHER else f"grade-{entry['grade']}"
            stages.append(RunStage(folder.stage(name), label, entry))
        return cls(
            root=root,
            ladder=ladder,
            recipe=dict(recipe or {}),
            encoder=dict(facts.get("encoder") or {}),
            machine=dict(facts.get("machine") or {}),
            students={stage.grade: stage for stage in stages if stage.label != TEACHER},
            teacher=next((stage for stage in stages if stage.label == TEACHER), None),
        )

    def stages(self, *, grade: int | None, every: bool, teacher: bool) -> list[RunStage]:
        """The stages asked for: a grade or every student, and the teacher. Raises TargetError for one not there."""
        chosen = list(self.students.values()) if every else []
        if grade is not None:
            if grade not in self.students:
                has = ", ".join(str(number) for number in sorted(self.students)) or "none yet"
                raise TargetError(f"{self.root} has no grade {grade}; its grades are: {has}")
            chosen = [self.students[grade]]
        if teacher:
            if self.teacher is None:
                raise TargetError(f"{self.root} has no teacher (method {self.ladder['method']}); export its grades")
            chosen.append(self.teacher)
        if not chosen:
            raise TargetError(f"{self.root} has no finished grade; go on with pmd-train --resume")
        return chosen

    def graph(self, source: str | None = None) -> KnowledgeGraph:
        """The graph the run was trained on, from where its recipe says or from `source`.

        Raises DatasetError, and RunError if `source` is another dataset.
        """
        graph = load_graph(source or str(self.recipe["dataset"]))
        if graph.name != self.ladder["dataset"]:
            raise RunError(
                f"{self.root} was trained on {self.ladder['dataset']}, not on {graph.name}; name it with --data"
            )
        return graph

    def rerank(self) -> dict[str, Any] | None:
        """Settings of the neighbour re-ranking that the run reports: hops and weight; None without."""
        settings = self.recipe.get("rerank")
        return {"hops": settings["hops"], "weight": settings["weight"]} if settings else None

    def base_model(self, stage: RunStage) -> str | None:
        """The Hub's id of the encoder that a stage's weights began as; None if that was a folder."""
        key, digest = "encoder", "sha256"
        if stage.label != TEACHER and self.recipe.get("student_encoder"):
            key, digest = "student_encoder", "student_sha256"
        name = self.recipe.get(key)
        return hub_id(str(name), self.encoder.get(digest)) if name else None

    def teacher_test_mrr(self) -> float | None:
        """The teacher's test MRR, for comparison; None without a teacher or a test split."""
        test = self.teacher.facts["test"] if self.teacher else None
        return float(test["mrr"]) if test else None


def _check(value: Any, keys: tuple[str, ...], path: Path) -> None:
    if not isinstance(value, dict):
        raise RunError(f"{path} is damaged: expected an object with {', '.join(keys)}")
    if lacking := [key for key in keys if key not in value]:
        raise RunError(f"{path} is damaged: it lacks {', '.join(lacking)}")
