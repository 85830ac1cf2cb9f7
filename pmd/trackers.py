"""Curves in TensorBoard, MLflow or W&B, through accelerate: files in the run folder, nothing sent anywhere.

Who wants a server sets the tracker's own environment variables (MLFLOW_TRACKING_URI, WANDB_MODE); they win.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pmd.serving.errors import MissingExtra, PmdError
from pmd.serving.storage import write_atomic

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

TRACKERS = ("tensorboard", "mlflow", "wandb")  # each is the name of its package too
PROJECT = "pmd"
KEPT = "trackers.json"  # in the run folder: under which ids a resumed run goes on


class TrackerError(PmdError):
    """A tracker is unknown or cannot start."""


def require_trackers(names: Sequence[str]) -> None:
    """Raise TrackerError for an unknown name, MissingExtra with the pip command for an absent package."""
    if unknown := [name for name in names if name not in TRACKERS]:
        raise TrackerError(f"no tracker {unknown[0]!r}; there are {', '.join(TRACKERS)}")
    if missing := [name for name in dict.fromkeys(names) if importlib.util.find_spec(name) is None]:
        raise MissingExtra(f"{' and '.join(missing)} not installed; run: pip install {' '.join(missing)}")


class Trackers:
    """The trackers of a run. One that fails is dropped with a warning: a curve is worth no training."""

    def __init__(self, trackers: Sequence[GeneralTracker] = ()) -> None:
        self._trackers = list(trackers)

    def configure(self, config: Mapping[str, Any]) -> None:
        """Hand over the resolved recipe; what is not a number or a text goes as JSON."""
        flat = {key: value if _plain(value) else json.dumps(value) for key, value in config.items()}
        self._each(lambda tracker: tracker.store_init_configuration(flat))

    def log(self, stage: str, facts: Mapping[str, Any], step: int) -> None:
        """Add points at a step of the run: the finite numbers among the facts, under STAGE/NAME."""
        points = {
            f"{stage}/{name.replace('@', '_at_')}": value  # MLflow takes no @
            for name, value in facts.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        self._each(lambda tracker: tracker.log(points, step=step))

    def finish(self) -> None:
        """Write out what is left."""
        self._each(lambda tracker: tracker.finish())

    def _each(self, do: Callable[[GeneralTracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                do(tracker)
            except Exception as error:  # three packages' own, without a common base
                self._trackers.remove(tracker)
                click.echo(f"warning: {tracker.name} failed and is left out from here: {_reason(error)}", err=True)


@contextmanager
def tracking(names: Sequence[str], folder: Path, config: Mapping[str, Any]) -> Iterator[Trackers]:
    """Start the named trackers in a run folder, or go on with the ones that it holds; finish them at the end.

    Raises TrackerError if one cannot start, MissingExtra if its package is absent.
    """
    require_trackers(names)
    if not names:
        yield Trackers()
        return
    resumed = _kept(folder)
    with _environment(_defaults(folder)), _logging_state():
        started = {name: _started(name, folder) for name in dict.fromkeys(names)}
        Trackers([tracker for name, tracker in started.items() if name not in resumed]).configure(config)
        trackers = Trackers(list(started.values()))
        try:
            yield trackers
        finally:
            trackers.finish()


def _defaults(folder: Path) -> dict[str, str]:
    """The trackers' own settings where the user has none: files in the run folder, and silence."""
    root = folder.resolve()
    kept = _kept(folder)
    settings = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{root / 'mlflow' / 'mlflow.db'}",
        "MLFLOW_DISABLE_TELEMETRY": "true",  # it reports its use from its import on
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(root),
        "WANDB_ERROR_REPORTING": "false",  # reports go out in offline mode too
        "WANDB_SILENT": "true",
        "WANDB_CONSOLE": "off",
    }
    return settings | {f"{name.upper()}_RUN_ID": identity for name, identity in kept.items()}


@contextmanager
def _environment(defaults: Mapping[str, str]) -> Iterator[None]:
    """Set the variables that are not set, and take them away again."""
    added = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def _logging_state() -> Iterator[None]:
    """The loggers of accelerate's trackers want a PartialState; one that was not there before is gone after."""
    from accelerate import PartialState

    before = bool(PartialState._shared_state)
    PartialState(cpu=True)
    try:
        yield
    finally:
        if not before:
            PartialState._reset_state()


def _started(name: str, folder: Path) -> GeneralTracker:
    makers = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}
    try:
        return makers[name](folder)
    except Exception as error:  # three packages' own, without a common base
        raise TrackerError(f"{name} cannot start: {_reason(error)}; go on without it or repair it") from error


def _tensorboard(folder: Path) -> GeneralTracker:
    from accelerate.tracking import TensorBoardTracker

    tracker = TensorBoardTracker("tensorboard", folder)  # a folder of that name in the run's
    tracker.start()
    _keep(folder, "tensorboard", "tensorboard")
    return tracker


def _mlflow(folder: Path) -> GeneralTracker:
    from accelerate.tracking import MLflowTracker

    files = folder.resolve() / "mlflow"
    files.mkdir(exist_ok=True)
    tracker = MLflowTracker(PROJECT, logging_dir=files.as_uri(), run_name=folder.name)
    tracker.start()
    _keep(folder, "mlflow", tracker.tracker.info.run_id)
    return tracker


def _wandb(folder: Path) -> GeneralTracker:
    from accelerate.tracking import WandBTracker

    tracker = WandBTracker(os.environ.get("WANDB_PROJECT", PROJECT), name=folder.name, resume="allow")
    tracker.start()
    _keep(folder, "wandb", tracker.tracker.id)
    return tracker


def _kept(folder: Path) -> dict[str, str]:
    try:
        return dict(json.loads((folder / KEPT).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}


def _keep(folder: Path, name: str, identity: str) -> None:
    write_atomic(folder / KEPT, (json.dumps(_kept(folder) | {name: identity}, indent=1) + "\n").encode())


def _plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str)


def _reason(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
