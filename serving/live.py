"""A graph that changes while it is read: one snapshot at a time, each change whole, on the disk first if asked."""

from __future__ import annotations

import threading
from pathlib import Path

from pmd.serving.bundle import Bundle
from pmd.serving.entering import Make
from pmd.serving.errors import QueryError
from pmd.serving.journal import Change, Journal, JournalError, fingerprint, note_of
from pmd.serving.saving import save_bundle
from pmd.serving.search import Near, Search
from pmd.serving.snapshot import Changes, Snapshot

MOST_CHANGES = 1024  # rows laid over the tables before they are put into them; more in a large graph
SHARE_OF_CHANGES = 64  # one row in so many may lie over the table: scoring them costs less than the table does


class LiveGraph:
    """The present snapshot of a bundle's graph with its search, and the only way to change it.

    Readers take `now` once and go on with it. Changes are made one after the other.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int | None,
        journal: str | Path | Journal | None = None,
        near: Near | None = None,
    ) -> None:
        """journal: a Journal is that of the same bundle opened before, see `Journal.reopened`.

        near: an index of the bundle's table, used as long as changes lie beside it.

        Raises JournalError if the journal cannot be used, MissingExtra without onnxruntime.
        """
        self._bundle, self._threads = bundle, threads
        self._change = threading.Lock()
        made = bundle.manifest.get("changes", {})
        changes = Changes(*(int(made.get(name, 0)) for name in Changes._fields))
        state = Snapshot.of(bundle.tables, bundle.templates, changes)
        self.now: tuple[Snapshot, Search] = self._with_search(state, near)
        self.journal = None if journal is None else self._replayed(journal)

    @property
    def snapshot(self) -> Snapshot:
        """The graph as it is."""
        return self.now[0]

    def put(self, make: Make) -> None:
        """Put an entity in. `make` may raise; then nothing changes. Raises JournalError if it cannot be kept."""
        with self._change:
            row, vector = make(self.snapshot)
            self._do(Change(row.id, row, vector))

    def remove(self, key: str) -> None:
        """Remove an entity by id or unique name. Raises UnknownEntity, and QueryError for the last one."""
        with self._change:
            state = self.snapshot
            index = state.entities.find(key)
            if state.num_entities == 1:
                raise QueryError(f"{key!r} is the only entity; a bundle needs at least one")
            self._do(Change(state.rows[index].id))

    def save(self, path: Path, *, replace: bool) -> Path:
        """Write the bundle as it stands; see `saving.save_bundle`."""
        with self._change:  # what the snapshot holds and what the journal counts must be the same
            state, note = self.snapshot, None if self.journal is None else self.journal.note()
        if note is None:
            note = note_of(self._bundle.manifest, str(self._bundle.path))
        return save_bundle(self._bundle, state.compacted.tables, state.changes, note, path, replace=replace)

    def close(self) -> None:
        """Let go of the journal; changes are refused from then on."""
        if self.journal is not None:
            self.journal.close()

    def _do(self, change: Change) -> None:
        # Worked out before it is on the disk: what fails here, for want of memory say, is not made.
        after = self._after(change)
        if self.journal is not None:
            self.journal.write(change)
        self.now = after

    def _after(self, change: Change) -> tuple[Snapshot, Search]:
        state, search = _after(self.snapshot, change), self.now[1]
        if state.weight_of_changes > max(MOST_CHANGES, len(search.table) // SHARE_OF_CHANGES):
            return self._with_search(state.compacted)
        return state, search

    def _with_search(self, state: Snapshot, near: Near | None = None) -> tuple[Snapshot, Search]:
        return state, Search(state.tables.vectors, threads=self._threads, near=near)

    def _replayed(self, given: str | Path | Journal) -> Journal:
        manifest, what = self._bundle.manifest, str(self._bundle.path)
        saved, owner = note_of(manifest, what), fingerprint(self._bundle.manifest_bytes())
        if isinstance(given, Journal):
            journal = given.reopened(owner, saved)
        else:
            journal = Journal.open(Path(given), owner, saved)
        try:
            for change in journal.replay(manifest["width"], saved):
                if change.row is None and self.snapshot.entities.of_id(change.entity) is None:
                    raise JournalError(f"{journal.path} removes {change.entity!r}, which the bundle does not have")
                self.now = self._after(change)
        except BaseException:
            journal.close()
            raise
        return journal


def _after(state: Snapshot, change: Change) -> Snapshot:
    if change.row is not None and change.vector is not None:
        return state.with_row(change.row, change.vector)
    return state.without(state.entities.find(change.entity))


def opened_near(path: str | Path | None, bundle: Bundle, *, verify: bool) -> Near | None:
    """The index of a bundle at `path`, None without one. Raises as `near.NearIndex.open`."""
    if path is None:
        return None
    from pmd.serving.near import NearIndex  # here, not above: it brings what only a command needs

    return NearIndex.open(Path(path), bundle, verify=verify)
