"""The search for alpha and beta (open question 2): seeded, pruned, and resumable after a kill at any moment.

A trial is one student, taught by the shared teacher, over all seeds; its value is the mean valid MRR. Optuna's
sampler is seeded anew for each trial from the number of trials before it, so that a search that was killed goes on
as if it had not been.

Trials are pruned by the median rule: all have the same few epochs, and a search has tens of trials, too few to fill
the brackets of Hyperband. The first seed's epochs alone are judged; a trial that passes is trained with all seeds.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState

from pmd.deadline import Deadline
from pmd.recipe import Recipe
from pmd.run import LADDER_SCHEMA, RunFolder
from pmd.serving.storage import write_atomic
from pmd.study.folder import StudyError, StudyFolder, read_run
from pmd.study.outline import Base, Run, check_run, run_of
from pmd.study.points import POINTS, SPACE, Judged, Point, own_point, params_of, point_of, variant_at
from pmd.study.running import Say, Trainer

STARTUP_TRIALS = 5  # drawn at random and never pruned: before them a median says little
FIRST_JUDGED = 2  # the first epoch of a student copied from its teacher says little
RESAMPLES = 20
LOCK_SECONDS = 5  # how long a lock that a killed process left is respected
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


def open_search(folder: StudyFolder, recipe: Recipe) -> optuna.Study:
    """The search kept in the study folder, begun with the recipe's own weights if it is new.

    Raises StudyError if its journal is damaged.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # stderr is ours
    folder.root.mkdir(parents=True, exist_ok=True)
    _drop_half_line(folder.journal)
    backend = JournalFileBackend(
        str(folder.journal), JournalFileOpenLock(str(folder.journal), grace_period=LOCK_SECONDS)
    )
    try:
        study = optuna.create_study(
            storage=JournalStorage(backend),
            study_name="weights",
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(STARTUP_TRIALS, FIRST_JUDGED),
            load_if_exists=True,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise StudyError(f"{folder.journal} is damaged ({error}); remove it: finished runs are not lost") from error
    if not study.trials and (own := own_point(recipe)) is not None:
        study.enqueue_trial(params_of(own))
    return study


def tried(study: optuna.Study) -> dict[Point, FrozenTrial]:
    """Trials that ended, complete or pruned, by their point, in order."""
    return {point_of(trial.params): trial for trial in study.get_trials(deepcopy=False, states=FINISHED)}


def next_trial(study: optuna.Study, seed: int) -> Trial | None:
    """The next trial: one that a killed process left, or a new point; None when every point was tried."""
    _retry_abandoned(study)
    seen = tried(study)
    if len(seen) == len(POINTS):
        return None
    for attempt in range(RESAMPLES):
        draw = int(np.random.SeedSequence([seed, len(seen), attempt]).generate_state(1)[0])
        study.sampler = optuna.samplers.TPESampler(seed=draw, n_startup_trials=STARTUP_TRIALS, constant_liar=False)
        trial = study.ask(SPACE)
        if (point := point_of(trial.params)) in POINTS and point not in seen:
            return trial
        study.tell(trial, state=TrialState.FAIL)  # tried before, or no task loss left: not a trial
    open_points = [point for point in POINTS if point not in seen]
    study.enqueue_trial(params_of(open_points[np.random.default_rng([seed, len(seen)]).integers(len(open_points))]))
    return study.ask(SPACE)


@dataclass(frozen=True)
class Search:
    """Trains the trials of a search and tells optuna what they gave."""

    base: Base
    judged: Judged
    seeds: Sequence[int]
    folder: StudyFolder
    train: Trainer
    elsewhere: Sequence[Path]
    deadline: Deadline
    say: Say

    def measure(self, study: optuna.Study, trial: Trial) -> bool:
        """Train the trial with every seed. Returns False if the time limit came first; it is retried then."""
        variant = variant_at(self.judged, point_of(trial.params))
        _recall(study, trial)
        try:
            values = []
            for number, seed in enumerate(self.seeds):
                run = run_of(self.base, variant, seed, self.folder)
                value = self._value(run, _Watch(study, trial, run) if number == 0 else None)
                if value is None:
                    return False
                values.append(value)
        except optuna.TrialPruned:
            study.tell(trial, state=TrialState.PRUNED)
            remove_pruned(study, self.judged, self.seeds, self.folder)
            return True
        study.tell(trial, statistics.fmean(values))
        return True

    def _value(self, run: Run, watch: _Watch | None) -> float | None:
        """The student's valid MRR, None if the time limit came first."""
        if not run.finished:
            if self.deadline.passed():
                return None
            self.say(f"{run.variant.name}, seed {run.seed}")
            check_run(run)
            reuse = [*self._others(run), *self.elsewhere]
            if not self.train(run.recipe, run.folder, seconds=self.deadline.left, reuse=reuse, on_epoch=watch):
                return None
        return valid_mrr(run)

    def _others(self, run: Run) -> list[Path]:
        """Runs of other trials with the same seed: they hold the teacher. One suffices, and the first has it."""
        found = sorted(self.folder.root.glob(f"alpha-*-seed-{run.seed}"))
        return [path for path in found if path != run.folder]


@dataclass(frozen=True)
class _Watch:
    """Reports the judged student's epochs to optuna, and leaves the training if they are no good."""

    study: optuna.Study
    trial: Trial
    run: Run

    def __call__(self, stage: str, record: dict[str, Any]) -> None:
        if stage != self.run.stages[-1].name:
            return  # the shared teacher's epochs say nothing about the weights
        if record["epoch"] not in self._reported():
            self.trial.report(record["valid_mrr"], record["epoch"])
        ended = record["epoch"] >= self.run.recipe.epochs_of(stage)  # nothing would be saved any more
        if not ended and self.trial.should_prune():
            raise optuna.TrialPruned

    def _reported(self) -> dict[int, float]:
        trials = self.study.get_trials(deepcopy=False)
        return trials[self.trial.number].intermediate_values


def search_weights(study: optuna.Study, search: Search, trials: int, refresh: Callable[[], object]) -> bool:
    """Go on until `trials` trials have ended or every point was tried. Returns False if the time limit came first.

    refresh: called between two trials; after the last, the caller makes the report anyway.
    """
    remove_pruned(study, search.judged, search.seeds, search.folder)
    before = len(tried(study))
    while (ended := len(tried(study))) < trials:
        if search.deadline.passed():
            return False
        trial = next_trial(study, search.seeds[0])
        if trial is None:
            break
        if ended > before:
            refresh()
        search.say(f"trial {ended + 1}/{trials}")
        if not search.measure(study, trial):
            return False
    return True


def valid_mrr(run: Run) -> float:
    """The judged student's valid MRR, from the finished run."""
    ladder = read_run(run.folder, RunFolder(run.folder).ladder.name, LADDER_SCHEMA)
    stages = {stage["stage"]: stage for stage in ladder["stages"]} if ladder else {}
    valid = stages.get(run.stages[-1].name, {}).get("valid")
    if not valid:
        raise StudyError(f"{run.folder} has no valid MRR to judge by; the dataset needs validation triples")
    return float(valid["mrr"])


def remove_pruned(study: optuna.Study, judged: Judged, seeds: Sequence[int], folder: StudyFolder) -> None:
    """Remove the run folders of pruned trials: half-trained, and nobody will go on with them."""
    for point, trial in tried(study).items():
        if trial.state == TrialState.PRUNED:
            for seed in seeds:
                shutil.rmtree(folder.run(variant_at(judged, point).name, seed), ignore_errors=True)


def facts(study: optuna.Study, judged: Judged) -> dict[str, Any]:
    """The search's part of study.json: its trials in order, and the best."""
    trials = [_trial_facts(judged, point, trial) for point, trial in tried(study).items()]
    complete = [trial for trial in trials if trial["state"] == "complete"]
    best = max(complete, key=lambda trial: trial["value"], default=None)
    return {
        "grade": str(judged.grade),
        "mask_rate": judged.mask_rate,
        "trials": trials,
        "best": best and {key: best[key] for key in ("alpha", "beta", "value", "variant")},
    }


def write_best(path: Path, base: Base, found: dict[str, Any]) -> None:
    """The recipe with the best weights, whole, as pmd-train reads it."""
    if (best := found["best"]) is None:
        return
    recipe = base.with_keys({"method": "pmd", "alpha": best["alpha"], "beta": best["beta"]})
    head = (
        f"# Best of {len(found['trials'])} trials on {recipe.dataset}: "
        f"alpha {best['alpha']:g}, beta {best['beta']:g},\n"
        f"# judged by a student of {found['grade']} layers at mask rate {found['mask_rate']:g}: "
        f"valid MRR {best['value']:.4f}.\n"
    )
    settings = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_atomic(path, (head + settings).encode())


def _trial_facts(judged: Judged, point: Point, trial: FrozenTrial) -> dict[str, Any]:
    variant, epochs = variant_at(judged, point), trial.intermediate_values
    value = trial.value if trial.state == TrialState.COMPLETE else max(epochs.values(), default=None)
    return {
        "number": trial.number,
        "variant": variant.name,
        "alpha": variant.overrides["alpha"],
        "beta": variant.overrides["beta"],
        "state": trial.state.name.lower(),
        "value": value,
        "epochs": len(epochs),
        "valid_mrr_by_epoch": {str(epoch): value for epoch, value in sorted(epochs.items())},
    }


def _retry_abandoned(study: optuna.Study) -> None:
    """Queue the points of trials that no process works on any more, before anything new.

    The new trial is queued before the old one is closed: a kill in between leaves it queued, not lost.
    """
    trials = study.get_trials(deepcopy=False)
    queued = {point_of(t.system_attrs.get("fixed_params", {})) for t in trials if t.state == TrialState.WAITING}
    for trial in trials:
        if trial.state == TrialState.RUNNING:
            if set(trial.params) == set(SPACE) and point_of(trial.params) not in queued:
                study.enqueue_trial(dict(trial.params))
            study.tell(trial.number, state=TrialState.FAIL)


def _recall(study: optuna.Study, trial: Trial) -> None:
    """Report what an abandoned trial of the same point had reached: its run folder goes on from there."""
    known: dict[int, float] = {}
    for before in study.get_trials(deepcopy=False, states=(TrialState.FAIL,)):
        if before.params == trial.params:
            known |= before.intermediate_values
    for epoch, value in known.items():
        trial.report(value, epoch)


def _drop_half_line(journal: Path) -> None:
    """Cut a last line that a kill left half written; optuna would refuse everything after it."""
    if journal.is_file():
        data = journal.read_bytes()
        if not data.endswith(b"\n"):
            write_atomic(journal, data[: data.rfind(b"\n") + 1])
