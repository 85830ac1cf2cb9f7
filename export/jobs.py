"""What `pmd-export` does: bundles made one after another, or tried against a budget."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pmd.export.auto import Budget, Tried, best, frontier, question_ms
from pmd.export.bundle import write_bundle
from pmd.export.errors import ExportError, ParityError
from pmd.export.loading import ReadyGrade, load_stage
from pmd.export.making import Making
from pmd.export.signing import SigningKey, sign_folder
from pmd.export.source import Run, RunStage
from pmd.serving.manifest import Manifest
from pmd.serving.storage import atomic_folder, folder_bytes

Say = Callable[[str], None]


class Order(NamedTuple):
    """A bundle to make."""

    stage: RunStage
    making: Making
    target: Path
    key: SigningKey | None = None
    """Who signs it."""

    @classmethod
    def of(
        cls, run: Run, stage: RunStage, making: Making, out: Path | None, key: SigningKey | None = None
    ) -> Order:
        """With the target asked for, or the usual name below bundles/."""
        name = f"{run.ladder['dataset']}-{run.ladder['method']}-{stage.label}-{making.suffix}"
        return cls(stage, making, out or Path("bundles") / name, key)


def make(
    run: Run, orders: Sequence[Order], data: str | None, gate: Mapping[str, float], force: bool, say: Say
) -> Iterator[tuple[Order, Manifest | ParityError]]:
    """Each order with its manifest, or with the error of one that is not the torch model."""
    for order, ready in _readied(run, orders, data, say):
        say(f"{order.stage.label}: writing {order.target} and comparing it with torch")
        try:
            yield order, write_bundle(ready, order.making, order.target, gate=gate, replace=force, key=order.key)
        except ParityError as error:  # the other bundles may still be good
            yield order, error


class Outcome(NamedTuple):
    """What a search came to. kept: the order that was kept and its manifest."""

    kept: tuple[Order, Manifest]
    tried: list[Tried]
    frontier: list[Tried]


def search(
    run: Run,
    orders: Sequence[Order],
    budget: Budget,
    data: str | None,
    gate: Mapping[str, float],
    force: bool,
    say: Say,
) -> Outcome:
    """Make every order, look at it, and keep the best within the budget.

    Only what may still be kept is on disk, in the system's folder for temporary files. Raises ExportError if none
    is within the budget, and leaves nothing behind then.
    """
    full_mrr = 0.0  # of the best stage so far: what does not keep enough of it never will
    tried: list[Tried] = []
    made: dict[Path, tuple[Order, Manifest]] = {}
    with tempfile.TemporaryDirectory(prefix="pmd-export-") as scratch:
        for number, (order, ready) in enumerate(_readied(run, orders, data, say)):
            folder = Path(scratch) / str(number) / order.target.name
            one = _try(ready, order, folder, gate)
            full_mrr = max(full_mrr, ready.loaded.reference.mrr)
            tried.append(one[0])
            made[folder] = order, one[1]
            say(f"{order.stage.label}: {_in_words(one[0])}")
            eligible = [other.folder for other in frontier(tried) if budget.met_by(other, full_mrr)]
            for other in tried:
                if other.folder not in eligible:
                    shutil.rmtree(other.folder, ignore_errors=True)  # it may be gone already
        keep = best(tried, budget, full_mrr)
        if keep is None:
            near = min((t for t in tried if t.failure is None), key=budget.distance, default=None)
            found = f"the nearest is {near.stage} {_in_words(near)}" if near else "none passed its gate"
            raise ExportError(f"nothing of {len(tried)} bundles is within {budget.text}; {found}")
        order, manifest = made[keep.folder]
        with atomic_folder(order.target, replace=force) as partial:
            shutil.copytree(keep.folder, partial, dirs_exist_ok=True)
            if order.key is not None:
                sign_folder(partial, order.key)
    return Outcome((order, manifest), tried, frontier(tried))


def _try(ready: ReadyGrade, order: Order, folder: Path, gate: Mapping[str, float]) -> tuple[Tried, Manifest]:
    """A bundle in `folder`, looked at, and its manifest; one that cannot be made or fails its gate is not there."""
    stage = order.stage.label
    try:
        manifest = write_bundle(ready, order.making, folder, gate=gate)
    except ExportError as error:
        failure = str(error).removesuffix(f"; see {folder}.parity.json")  # which does not outlive the search
        return Tried(stage, order.making, folder, 0, 0.0, 0.0, failure), {}
    split, mrr = manifest["parity"]["split"], manifest["parity"]["mrr_bundle"]
    return Tried(stage, order.making, folder, folder_bytes(folder), question_ms(folder, split), mrr), manifest


def _readied(run: Run, orders: Sequence[Order], data: str | None, say: Say) -> Iterator[tuple[Order, ReadyGrade]]:
    """Each order with its grade made ready: a stage is loaded once, and traced once per vocabulary and width."""
    graph = run.graph(data)
    for stage, of_stage in itertools.groupby(orders, key=lambda order: order.stage):
        say(f"{stage.label}: loading {stage.folder}")
        loaded, mine = load_stage(run, stage, graph), list(of_stage)
        for order in mine:
            order.making.check(loaded.grade.model.width)
        for (trim, width), alike in itertools.groupby(
            mine, key=lambda o: (o.making.trim_vocabulary, o.making.width)
        ):
            say(f"{stage.label}: encoding the graph's texts with torch and tracing both towers")
            ready = loaded.ready(trim_vocabulary=trim, width=width)
            for order in alike:
                yield order, ready


def _in_words(tried: Tried) -> str:
    name = tried.making.suffix
    if tried.failure:
        return f"{name}: {tried.failure}"
    return f"{name}: {tried.size_bytes / 1e6:.2f} MB, {tried.query_ms:.2f} ms a question, MRR {tried.mrr:.4f}"
