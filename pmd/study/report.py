"""The study's files, made anew from its run folders: study.json, table.md, plot.svg and plot.png."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pmd.run import write_json
from pmd.serving.storage import write_atomic
from pmd.study.folder import SCHEMA, StudyFolder
from pmd.study.outline import Base
from pmd.study.plots import draw
from pmd.study.results import collect, in_common, runs_made
from pmd.study.table import markdown
from pmd.study.variants import Variant


@dataclass(frozen=True)
class Header:
    """What a study is and was made with, apart from its results."""

    name: str
    title: str
    dataset: str
    base: Base
    seeds: Sequence[int]
    """Those asked for now and those of earlier calls."""
    reference: str | None
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further facts that a study cannot change half-way, such as the grade that a search judges."""

    @property
    def lasting(self) -> dict[str, Any]:
        """The facts that must be the same when a study goes on."""
        recipe = self.base.recipe.model_dump(mode="json", exclude={"seed", "checkpoint_seconds"})
        own = {"study": self.name, "dataset": self.dataset, "recipe": recipe, "encoder": dict(self.base.encoder)}
        return dict(json.loads(json.dumps(own | dict(self.more))))  # as a file gives them back


def write_report(
    folder: StudyFolder, header: Header, variants: Sequence[Variant], found: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write all files of the study, each whole or not at all; returns study.json's contents.

    found: what a search adds. Raises RunError if a run folder is damaged.
    """
    study = build(folder, header, variants) | dict(found or {})
    folder.root.mkdir(parents=True, exist_ok=True)
    write_json(folder.facts, study)
    write_atomic(folder.table, markdown(study).encode())
    for kind, drawing in draw(study).items():
        write_atomic(folder.plots[kind], drawing)
    return study


def claim(folder: StudyFolder, header: Header) -> None:
    """Write the first study.json: from now on the folder is this study's."""
    if not folder.facts.is_file():
        folder.root.mkdir(parents=True, exist_ok=True)
        write_json(folder.facts, build(folder, header, ()))


def build(folder: StudyFolder, header: Header, variants: Sequence[Variant]) -> dict[str, Any]:
    """study.json's contents, from what is in the run folders now; null for what is not there."""
    runs = runs_made(variants, header.seeds, folder)
    return {
        "schema": SCHEMA,
        **header.lasting,
        "title": header.title,
        "recipe_source": header.base.source,
        "seeds": list(header.seeds),
        "reference": header.reference,
        **{key: in_common(runs, key) for key in ("commit", "versions", "machine")},
        "runs": runs,
        "variants": collect(variants, header.seeds, folder, header.reference),
    }
