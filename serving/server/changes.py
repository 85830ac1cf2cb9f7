"""Changes of one bundle while it is served: entities put in and taken out, and the bundle opened afresh."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from pmd.serving.errors import PmdError, QueryError, UnknownEntity
from pmd.serving.journal import Journal, JournalError
from pmd.serving.scorer import Scorer
from pmd.serving.server.batching import Batcher
from pmd.serving.server.limits import Limits
from pmd.serving.server.metrics import Metrics
from pmd.serving.server.refusals import Refusal, unusable

logger = logging.getLogger(__name__)

Reopen: TypeAlias = Callable[[str, Journal | None], Scorer]
"""Opens the bundle of a name afresh, with the journal that the present Scorer holds, if it holds one."""


@dataclass(frozen=True)
class Add:
    """Put an entity in."""

    entity: str
    name: str
    description: str
    vector: tuple[float, ...] | None


@dataclass(frozen=True)
class Update:
    """Change what is given of an entity; None stays as it is."""

    entity: str
    name: str | None
    description: str | None
    vector: tuple[float, ...] | None


@dataclass(frozen=True)
class Remove:
    """Take an entity out."""

    entity: str


@dataclass(frozen=True)
class Reload:
    """Open the bundle afresh."""


Change: TypeAlias = Add | Update | Remove | Reload
KINDS: dict[type, str] = {Add: "add", Update: "update", Remove: "remove"}


class Served(Protocol):
    """The bundle that is changed."""

    name: str
    scorer: Scorer

    def replace(self, scorer: Scorer) -> None:
        """Put questions to another Scorer from now on."""


class Changer:
    """Makes the changes of one bundle, one after the other, in a thread of their own: questions do not wait."""

    def __init__(self, served: Served, reopen: Reopen | None, limits: Limits, metrics: Metrics) -> None:
        """reopen: None if the bundle cannot be opened afresh."""
        self._served, self._reopen, self._metrics = served, reopen, metrics
        self._opened: Scorer | None = None
        self.queue = Batcher[Change, None, Any](self._call, max_questions=1, max_waiting=limits.max_waiting)

    def close(self) -> None:
        """Wait for the change that is being made; let go of what was opened here."""
        self.queue.close()
        if self._opened is not None:
            self._opened.close()

    def _call(self, change: Change, _: Sequence[None]) -> list[dict[str, Any] | None]:
        """What became of a change; None for a reload. Raises Refusal."""
        if isinstance(change, Reload):
            self._reload()
            return [None]
        try:
            entity = self._changed(change)
        except JournalError as error:
            logger.error("bundle %s: %s", self._served.name, error)
            raise Refusal(503, "not_kept", self._told(error), {"Retry-After": "60"}) from error
        except UnknownEntity as error:
            raise Refusal(404, "unknown_entity", str(error)) from error
        except QueryError as error:
            raise unusable(self._told(error)) from error
        except PmdError as error:  # the entity tower is opened with the first text, and may be another's by then
            logger.error("bundle %s: %s", self._served.name, error)
            raise Refusal(409, "bundle_changed", f"{self._told(error)}; reload the bundle") from error
        self._metrics.changes.labels(self._served.name, KINDS[type(change)]).inc()
        return [{"entity": entity, **facts_of(self._served.scorer)}]

    def _changed(self, change: Add | Update | Remove) -> str:
        """Make a change; the id of the entity. Raises Refusal, and what the Scorer raises."""
        scorer, found = self._served.scorer, self._served.scorer.find_entity(change.entity)
        if isinstance(change, Add):
            if found == change.entity:
                raise Refusal(409, "entity_exists", f"there is an entity {found!r}; change it, or remove it first")
            about: dict[str, Any] = {"description": change.description, "vector": change.vector}
            scorer.add_entity(change.entity, name=change.name, **about)
        elif isinstance(change, Update):
            about = {"description": change.description, "vector": change.vector}
            scorer.update_entity(change.entity, name=change.name, **about)
        else:
            scorer.remove_entity(change.entity)
        return found or change.entity

    def _reload(self) -> None:
        """Put the bundle as it now lies on the disk in the place of the present one. Raises Refusal."""
        served, reloads = self._served, self._metrics.reloads
        old = served.scorer
        if self._reopen is None:
            raise Refusal(405, "wrong_method", "this server cannot open its bundles afresh")
        try:
            new = self._reopen(served.name, old.journal)
        except (PmdError, OSError) as error:
            reloads.labels(served.name, "failed").inc()
            logger.error("bundle %s is served as it was: %s", served.name, error)
            told = f"the bundle did not load, and is served as it was: {self._told(error)}"
            raise Refusal(409, "reload_failed", told) from error
        self._opened = new
        served.replace(new)
        old.close()
        reloads.labels(served.name, "done").inc()

    def _told(self, error: Exception) -> str:
        """What a client may know of an error: not where the files lie."""
        scorer, text = self._served.scorer, str(error)
        journal = scorer.journal
        if isinstance(error, OSError) and not isinstance(error, PmdError):
            return error.strerror or type(error).__name__
        if journal is not None:
            text = text.replace(str(journal.path), "the journal")
        return text.replace(str(scorer.bundle.path), f"bundle {self._served.name}")


def facts_of(scorer: Scorer) -> dict[str, Any]:
    """Entities of a bundle, what was changed since its export, and whether that is kept; JSON-ready."""
    state = scorer.snapshot
    return {
        "entities": state.num_entities,
        "changes": state.changes._asdict(),
        "kept": scorer.journal is not None,
    }
