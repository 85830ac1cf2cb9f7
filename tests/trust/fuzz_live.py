"""Fuzzing of live changes: a state machine of additions, updates and removals, against a plain dictionary.

After every change the Scorer must know exactly the entities of the dictionary, answer every question by the exact
scores of their vectors, without those answers that are known, and, now and then, be the same after a restart from
its journal or from what it saved.
"""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

from tests.trust.attack import Attack, Ground, Tally
from tests.trust.fuzz_mutation import ODD_NUMBERS, ODD_TEXTS

STEPS = 40
"""Changes and checks of one run of the machine, at most."""
LEAST_COSINE = 0.99
"""Of a vector with itself rounded to int8; 16 dimensions of which one is large lose most."""


NO_TEXTS = (3, None, b"aspirin", ["aspirin"], {}, float("nan"))
NO_VECTORS = (
    "text",
    3,
    {},
    [],
    [10**400] * 16,
    [float("nan")] * 16,
    [None] * 16,
    [1e300] * 16,
    [[1.0] * 16],
    [0] * 16,
)


class LivePair:
    """A Scorer and a plain account of what it must hold: ids to name, description and unit vector."""

    def __init__(self, bundle: Path, folder: Path) -> None:
        from pmd.serving import Scorer
        from tests.tiny_bundle import TEST_TRIPLES, TRAIN, VALID_TRIPLES

        self.folder = folder
        self._numbers = itertools.count()
        self.bundle, self.journal = bundle, folder / "changes.journal"
        self.scorer = Scorer.load(bundle, threads=1, journal=self.journal)
        vectors = self.scorer.bundle.tables.vectors.vectors()
        rows = self.scorer.bundle.tables.entities
        self.held: dict[str, tuple[str, str, Any]] = {
            row.id: (row.name, row.description, vector) for row, vector in zip(rows, vectors, strict=True)
        }
        self.known = {*TRAIN, *VALID_TRIPLES, *TEST_TRIPLES}

    def add(self, key: Any, name: Any, description: Any, vector: Any) -> str:
        """Add an entity; the account follows only if the Scorer took it."""
        if not self._taken(lambda: self.scorer.add_entity(key, name=name, description=description, vector=vector)):
            return "refused"
        if key in self.held:
            raise AssertionError(f"{key!r} was added twice")
        self.held[key] = (_plain(name), _plain(description), self._vector(key, vector))
        return "added"

    def update(self, key: Any, name: Any, description: Any, vector: Any) -> str:
        """Change an entity by id or unique name."""
        entity = self._named(key)
        given = {"name": name, "description": description, "vector": vector}
        if not self._taken(lambda: self.scorer.update_entity(key, **given)):
            return "refused"
        if entity is None:
            raise AssertionError(f"{key!r} was updated and is nobody")
        old = self.held[entity]
        self.held[entity] = (
            old[0] if name is None else _plain(name),
            old[1] if description is None else _plain(description),
            self._vector(entity, vector),
        )
        return "updated"

    def remove(self, key: Any) -> str:
        """Remove an entity and all that is known of it."""
        entity = self._named(key)
        if not self._taken(lambda: self.scorer.remove_entity(key)):
            if entity is not None and len(self.held) > 1:
                raise AssertionError(f"{key!r} was not removed")
            return "refused"
        if entity is None:
            raise AssertionError(f"{key!r} was removed and is nobody")
        del self.held[entity]
        self.known = {triple for triple in self.known if entity not in (triple[0], triple[2])}
        return "removed"

    def restart(self) -> str:
        """Begin again from the journal."""
        from pmd.serving import Scorer

        self.scorer.close()
        self.scorer = Scorer.load(self.bundle, threads=1, journal=self.journal)
        self.check()
        return "restarted"

    def save(self, suffix: str) -> str:
        """Save, and go on with what was saved and the same journal."""
        from pmd.serving import Scorer

        path = self.scorer.save(self.folder / f"saved-{next(self._numbers)}{suffix}")
        self.scorer.close()
        self.bundle = path
        self.scorer = Scorer.load(path, threads=1, journal=self.journal)
        self.check()
        return "saved"

    def check(self) -> str:
        """Raise AssertionError unless the Scorer is what the account says."""
        import numpy as np

        scorer = self.scorer
        if scorer.num_entities != len(self.held) or set(scorer.entity_ids) != set(self.held):
            raise AssertionError(f"it knows {scorer.num_entities} entities, {len(self.held)} were expected")
        for entity, (name, _, _) in self.held.items():
            bearers = [other for other, row in self.held.items() if row[0] == name]
            if name not in self.held and scorer.find_entity(name) != (entity if len(bearers) == 1 else None):
                raise AssertionError(f"the name {name!r} finds {scorer.find_entity(name)!r}")
        head = next(iter(self.held))
        place = {entity: number for number, entity in enumerate(scorer.entity_ids)}
        for relation in scorer.relation_ids:
            found = {answer.entity: answer.score for answer in scorer.top_tails(head, relation, k=len(place))}
            expected = {other for other in place if (head, relation, other) not in self.known}
            if set(found) != expected:
                raise AssertionError(f"({head}, {relation}, ?) leaves out {sorted(expected ^ set(found))[:3]}")
            pairs = list(found)
            exact = scorer.score([(head, relation, other) for other in pairs])
            if not np.array_equal(exact, np.array([found[other] for other in pairs], np.float32)):
                raise AssertionError(f"({head}, {relation}, ?) gives other scores than score() does")
            order = [(-found[other], place[other]) for other in pairs]
            if order != sorted(order):
                raise AssertionError(f"({head}, {relation}, ?) is not in the order of the scores")
        return "checked"

    def _taken(self, change: Any) -> bool:
        from pmd.serving.errors import PmdError

        before = self.scorer.num_entities, self.scorer.entity_ids
        try:
            change()
        except PmdError as error:
            if "\n" in str(error):
                raise AssertionError(f"an error of two lines: {error}") from error
            if (self.scorer.num_entities, self.scorer.entity_ids) != before:
                raise AssertionError("a change that was refused was made") from error
            return False
        return True

    def _named(self, key: Any) -> str | None:
        if not isinstance(key, str):
            return None
        bearers = [entity for entity, row in self.held.items() if row[0] == key]
        return key if key in self.held else bearers[0] if len(bearers) == 1 else None

    def _vector(self, entity: str, vector: Any) -> Any:
        """Check the vector that the Scorer holds of an entity that was put in; returns it."""
        import numpy as np

        state = self.scorer._graph.snapshot.compacted
        held = state.tables.vectors.vectors()[state.entities.of_id(entity)]
        if not 0.98 < float(np.linalg.norm(held)) < 1.02:
            raise AssertionError(f"the vector of {entity!r} is of length {np.linalg.norm(held)}")
        if vector is not None:
            given = np.asarray(vector, np.float64)
            cosine = float(held @ given) / float(np.linalg.norm(given / np.abs(given).max()) * np.abs(given).max())
            if cosine < LEAST_COSINE:
                raise AssertionError(f"the vector of {entity!r} has cosine {cosine} with the one given")
        return held


def _plain(text: str) -> str:
    return " ".join(text.split())


def _drawn() -> tuple[dict[str, Any], Any, Any]:
    """Strategies: of keys, of what a change is given, and of odd texts."""
    from hypothesis import strategies as st

    from tests.tiny_bundle import ENTITIES, WIDTH

    there, names = [row.id for row in ENTITIES], [*(row.name for row in ENTITIES), "a new one"]
    new = [f"new_{number}" for number in range(40)]
    odd_text = st.one_of(st.text(max_size=20), st.sampled_from(ODD_TEXTS), st.sampled_from(NO_TEXTS))
    good_text = st.sampled_from([*names, "a hot body", "pain in the blood"])
    numbers = st.lists(st.floats(-10, 10, width=32), min_size=WIDTH, max_size=WIDTH).filter(any)
    good_vector = st.one_of(st.none(), numbers)
    odd_numbers = st.lists(st.sampled_from(ODD_NUMBERS), min_size=WIDTH - 1, max_size=WIDTH)
    odd_vector = st.one_of(st.none(), odd_numbers, st.sampled_from(NO_VECTORS))
    present = st.sampled_from([*there, *there, *new[:8], *names])
    keys = {"new": st.sampled_from([*new, *there[:4]]), "there": present}

    def change(key: str, *, optional: bool) -> Any:
        """(key, name, description, vector): three of four all right, the others odd in every part."""
        text = st.one_of(st.none(), good_text) if optional else good_text
        good = st.tuples(keys[key], text, st.one_of(st.just(""), text), good_vector)
        odd = st.tuples(st.one_of(keys[key], odd_text), st.one_of(good_text, odd_text), odd_text, odd_vector)
        return st.one_of(good, good, good, odd)

    return keys, change, odd_text


def machine(bundle: Path, root: Path, tally: Tally) -> Any:
    """The state machine, as a class for hypothesis to run; its steps are tallied."""
    from hypothesis import strategies as st
    from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

    keys, change, odd_text = _drawn()

    class Changes(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.folder = tempfile.TemporaryDirectory(dir=root)
            self.pair = LivePair(bundle, Path(self.folder.name))

        @rule(given=change("new", optional=False))
        def add(self, given: Any) -> None:
            tally.saw(self.pair.add(*given))

        @rule(given=change("there", optional=True))
        def update(self, given: Any) -> None:
            tally.saw(self.pair.update(*given))

        @rule(key=st.one_of(keys["there"], keys["there"], odd_text))
        def remove(self, key: Any) -> None:
            tally.saw(self.pair.remove(key))

        @rule(which=st.integers(0, 19))
        def again(self, which: int) -> None:
            if which == 11:
                tally.saw(self.pair.restart())
            elif 12 < which < 15:
                tally.saw(self.pair.save(("", ".zip")[which - 13]))

        @invariant()
        def agree(self) -> None:
            self.pair.check()

        def teardown(self) -> None:
            self.pair.scorer.close()
            self.folder.cleanup()

    return Changes


def _live(ground: Ground) -> Tally:
    from hypothesis import HealthCheck, Phase, seed, settings
    from hypothesis.stateful import run_state_machine_as_test

    from tests.tiny_bundle import write_tiny_bundle

    tally = Tally()
    how = settings(
        max_examples=6,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        derandomize=False,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
        print_blob=False,
    )
    bundles = [write_tiny_bundle(ground.folder / kind, precision=kind) for kind in ("int8", "fp32")]
    for number in itertools.count():
        if tally.cases >= ground.count:
            break
        runner = machine(bundles[number % 2], ground.folder, tally)
        try:
            run_state_machine_as_test(seed(1000 * ground.seed + number)(runner), settings=how)
        except Exception as error:
            notes = " ".join(getattr(error, "__notes__", []))
            tally.failed(f"{type(error).__name__}: {error}; batch {number} of seed {ground.seed}; {notes[-300:]}")
    return tally


ATTACKS = (
    Attack(
        "fuzz-live-changes",
        "fuzzing",
        "Additions, updates, removals, right and wrong, with restarts and saves, against a plain dictionary",
        _live,
        quick=400,
        full=8_000,
    ),
)
