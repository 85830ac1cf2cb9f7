"""What users give of an entity, checked and turned into its row and its unit vector."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from pmd.serving.bundle import ENTITY, MODEL, Bundle
from pmd.serving.encoder import TowerEncoder
from pmd.serving.errors import BundleError, QueryError
from pmd.serving.ranking import FloatArray
from pmd.serving.rows import EntityRow
from pmd.serving.snapshot import Snapshot, checked_text

Vector: TypeAlias = Sequence[float] | FloatArray
Make: TypeAlias = Callable[[Snapshot], tuple[EntityRow, FloatArray]]
"""The row and unit vector (D,) of an entity, for the snapshot that it will be put into."""
SQUARES_FIT = (1e-150, 1e150)
"""Lengths of vectors whose squares float64 holds."""


class EntityMaker:
    """Makes entities for a bundle's graph, by its entity tower where they come without a vector."""

    def __init__(self, bundle: Bundle, *, provider: str, threads: int | None) -> None:
        """The tower is opened when it is first needed: most edge devices never add an entity."""
        self._bundle, self._provider, self._threads = bundle, provider, threads
        self._width = int(bundle.manifest["width"])
        self._encoder: TowerEncoder | None = None
        self._opening = threading.Lock()

    def new(self, state: Snapshot, entity: str, name: str, description: str, vector: Vector | None) -> Make:
        """An entity that is not there yet. Raises QueryError, now or when it is put in, if its id is taken."""
        row = EntityRow(_checked_id(entity), _one_line(name), _one_line(description, may_be_empty=True))
        _refuse_taken(state, entity)  # before the tower is run, and again when it is put in
        if vector is None:
            unit = self._read(entity, state.texts.wording(row.name, row.description))
        else:
            unit = self._unit(vector)

        def make(state: Snapshot) -> tuple[EntityRow, FloatArray]:
            _refuse_taken(state, entity)
            return row, unit

        return make

    def changed(self, key: str, name: str | None, description: str | None, vector: Vector | None) -> Make:
        """An entity that is there, with another name, description or vector; raises UnknownEntity when put in."""
        new_name = None if name is None else _one_line(name)
        new_text = None if description is None else _one_line(description, may_be_empty=True)
        given = None if vector is None else self._unit(vector)

        def make(state: Snapshot) -> tuple[EntityRow, FloatArray]:
            index = state.entities.find(key)
            old = state.rows[index]
            row = EntityRow(
                old.id,
                old.name if new_name is None else new_name,
                old.description if new_text is None else new_text,
            )
            return row, self._read(old.id, state.text_with(index, row)) if given is None else given

        return make

    def _read(self, entity: str, text: str) -> FloatArray:
        """The entity tower's vector of a text, float32 (D,). Raises QueryError without a tower."""
        with self._opening:
            if self._encoder is None:
                if not self._bundle.has_tower(ENTITY):
                    raise QueryError(
                        f"{self._bundle.path} has no entity tower to read {entity!r} with; give vector=…, "
                        "or export the bundle with its entity tower"
                    )
                self._encoder = TowerEncoder.load(
                    self._bundle, ENTITY, provider=self._provider, threads=self._threads
                )
        vector = self._encoder([text])[0]
        if not np.isfinite(vector).all():
            raise BundleError(
                f"{self._bundle.path}: {ENTITY}/{MODEL} gives NaN or infinity for {entity!r}; export it again"
            )
        return self._unit(vector)

    def _unit(self, vector: Vector) -> FloatArray:
        try:
            values = np.asarray(vector, dtype=np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            why = " ".join(str(error).split())[:200]
            raise QueryError(f"vector must be {self._width} numbers: {why}") from error
        if values.shape != (self._width,) or not np.isfinite(values).all() or not values.any():
            raise QueryError(f"vector must be {self._width} finite numbers, not all 0; got {_shown(values)}")
        with np.errstate(over="ignore", under="ignore"):
            length = np.linalg.norm(values)
        if not SQUARES_FIT[0] < length < SQUARES_FIT[1]:
            values = values / np.abs(values).max()
            length = np.linalg.norm(values)
        return np.asarray(values / length, dtype=np.float32)


def _shown(values: FloatArray) -> str:
    if not np.isfinite(values).all():
        return "NaN or infinity"
    return f"shape {values.shape}" if values.any() else "zeros"


def _checked_id(entity: str) -> str:
    if entity != checked_text(entity).strip() or not entity.isprintable():
        raise QueryError(f"an entity id holds no tabs or line breaks and no outer spaces, got {entity[:60]!r}")
    return entity


def _one_line(text: str, *, may_be_empty: bool = False) -> str:
    if may_be_empty and isinstance(text, str) and not text.strip():
        return ""
    return " ".join(checked_text(text).split())


def _refuse_taken(state: Snapshot, entity: str) -> None:
    if state.entities.of_id(entity) is not None:
        raise QueryError(f"entity {entity!r} exists already; remove it first or choose another id")
