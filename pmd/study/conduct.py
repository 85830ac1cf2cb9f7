"""One call of `pmd-study`: everything checked first, then trained, with the report made anew after each run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from pmd.datasets import load_graph
from pmd.deadline import Deadline
from pmd.device import choose_device
from pmd.graph import KnowledgeGraph
from pmd.study import points, search
from pmd.study.folder import StudyError, StudyFolder, check_same, read_facts
from pmd.study.outline import Base, Run, choose, describe, outline, read_base
from pmd.study.report import Header, claim, write_report
from pmd.study.running import Trainer, ladder_trainer, train_runs
from pmd.study.variants import STUDIES, Study, Variant

WEIGHTS_TITLE = "Weights of the score and feature terms"


@dataclass(frozen=True)
class Options:
    """The command line, less the study and its recipe."""

    seeds: tuple[int, ...]
    out: Path | None = None
    only: tuple[str, ...] = ()
    reuse: tuple[Path, ...] = ()
    trials: int = 30
    grade: int | None = None
    device: str = "auto"
    time_limit: float | None = None
    progress: bool = False


@dataclass(frozen=True)
class Conduct:
    """A study that was checked in full and can be trained."""

    header: Header
    folder: StudyFolder
    options: Options
    trainer: Trainer
    deadline: Deadline
    runs: tuple[Run, ...]
    """Every variant and seed; for a search, the student at the recipe's own weights, as an example."""
    variants: tuple[Variant, ...]
    """All of the study's, also those left out by --only; a search's are known as it goes."""
    judged: points.Judged | None = None
    """The student of a search; None for the other studies."""

    @classmethod
    def prepare(cls, name: str, source: str, settings: Mapping[str, Any], options: Options) -> Conduct:
        """Find every mistake of the user before anything trains.

        Raises RecipeError, EncoderError, DatasetError, RunError or StudyError with what is wrong.
        """
        deadline = Deadline.after(options.time_limit)
        base = read_base(source, settings)
        graph = load_graph(base.recipe.dataset)
        trainer = ladder_trainer(graph, choose_device(options.device), progress=options.progress)
        folder = StudyFolder(options.out or Path("studies") / f"{graph.name}-{name}")
        plan = (
            _search_plan(base, graph, options) if name == "weights" else _plan(STUDIES[name], base, graph, options)
        )
        header = _with_earlier_seeds(folder, plan.header)
        runs = outline(base, choose(plan.variants, options.only), options.seeds, folder)
        return cls(header, folder, options, trainer, deadline, tuple(runs), plan.variants, plan.judged)

    def describe(self) -> tuple[str, dict[str, Any]]:
        """What would be trained, as text and as facts."""
        text, runs = describe(self.runs)
        title = f"{self.header.title}: {self.header.dataset}, into {self.folder.root}"
        facts = {
            "study": self.header.name,
            "dataset": self.header.dataset,
            "out": str(self.folder.root),
            "runs": runs,
        }
        if self.judged is None:
            return f"{title}\n{text}", facts
        trials = f"Up to {self.options.trials} trials like this one, with other weights and the same teacher:"
        return f"{title}\n{trials}\n{text}", facts | {"trials": self.options.trials}

    def train(self) -> tuple[dict[str, Any], bool]:
        """Train what is missing. Returns study.json's contents and whether everything is finished."""
        claim(self.folder, self.header)
        done = self._train_runs() if self.judged is None else self._search(self.judged)
        return self._report(), done

    def _train_runs(self) -> bool:
        return train_runs(
            self.runs,
            self.trainer,
            elsewhere=self._elsewhere(),
            deadline=self.deadline,
            say=self._say,
            refresh=self._report,
        )

    def _search(self, judged: points.Judged) -> bool:
        study = search.open_search(self.folder, self.header.base.recipe)
        job = search.Search(
            base=self.header.base,
            judged=judged,
            seeds=self.header.seeds,
            folder=self.folder,
            train=self.trainer,
            elsewhere=self._elsewhere(),
            deadline=self.deadline,
            say=self._say,
        )
        return search.search_weights(study, job, self.options.trials, self._report)

    def _report(self) -> dict[str, Any]:
        if self.judged is None:
            return write_report(self.folder, self.header, self.variants)
        study = search.open_search(self.folder, self.header.base.recipe)
        variants = [points.variant_at(self.judged, point) for point in search.tried(study)]
        found = search.facts(study, self.judged)
        search.write_best(self.folder.best, self.header.base, found)
        return write_report(self.folder, self.header, variants, found)

    def _elsewhere(self) -> list[Path]:
        return [ladder.parent for root in self.options.reuse for ladder in sorted(root.glob("*/ladder.json"))]

    def _say(self, message: str) -> None:
        if self.options.progress:
            click.echo(message, err=True)


@dataclass(frozen=True)
class _Plan:
    header: Header
    variants: tuple[Variant, ...]
    judged: points.Judged | None = None


def _plan(study: Study, base: Base, graph: KnowledgeGraph, options: Options) -> _Plan:
    header = Header(study.name, study.title, graph.name, base, options.seeds, study.reference)
    return _Plan(header, tuple(study.variants(base.recipe, base.depth)))


def _search_plan(base: Base, graph: KnowledgeGraph, options: Options) -> _Plan:
    """A search needs validation triples to judge by; its first trial has the recipe's own weights."""
    if not len(graph.valid):
        raise StudyError(f"dataset {graph.name} has no validation triples to judge weights by; add valid.tsv")
    judged = points.judged_student(base.recipe, options.grade)
    own = points.own_point(base.recipe)
    first = points.variant_at(judged, own or points.POINTS[0])
    more = {"grade": str(judged.grade), "mask_rate": judged.mask_rate, "seeds": list(options.seeds)}
    header = Header("weights", WEIGHTS_TITLE, graph.name, base, options.seeds, first.name if own else None, more)
    return _Plan(header, (first,), judged)


def _with_earlier_seeds(folder: StudyFolder, header: Header) -> Header:
    """The header with the seeds of earlier calls. Raises StudyError if the folder holds another study."""
    before = read_facts(folder)
    if before is None:
        return header
    check_same(folder, before, header.lasting)
    seeds: Sequence[int] = sorted({*before["seeds"], *header.seeds})
    return header if "seeds" in header.more else replace(header, seeds=seeds)
