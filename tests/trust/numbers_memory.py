"""Training, export and serving with less address space than they need: one line, and nothing that is half done."""

from __future__ import annotations

import json
import os
import random as randomness
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from tests.trust.attack import Attack, Ground, Tally
from tests.trust.killing import Ended, end_call, left_overs
from tests.trust.toy_training import Toy

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
OURS = (0, 1, 2)
"""Exit codes of a command that got through, or said in one line that it did not."""
ENTITIES, ASKED = 200_000, 12
"""Of the bundle that is served, and how many of its entities are asked about."""
KINDS = ("training", "export", "serving")
ABORTS = (-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGTRAP)
"""How a library ends the process itself when memory runs out; no Python can catch it."""


def address_space() -> int:
    """Bytes of address space that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * PAGE_BYTES


def limit(extra_bytes: int) -> None:
    """From now on this process gets `extra_bytes` more and nothing beyond; `lift` takes that back."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + extra_bytes, hard))


def lift() -> None:
    """Without a limit again."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


class Field:
    """A toy run, a bundle of it, and how much address space each kind of work takes beyond its start."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.toy = folder, Toy.made(folder / "toy", batch_size=24)
        self.bundle = folder / "large"
        end_call(lambda: _write_large(self.bundle), folder / "said")
        self.growth = {
            "training": self._grown(lambda before: self.toy.train(folder / "first", before=before)),
            "export": self._grown(
                lambda before: self.toy.export(folder / "b", "--precision", "int8", before=before)
            ),
            "serving": self._grown(lambda before: self._call(lambda: self._serve(before))),
        }

    def _grown(self, work: Callable[[Callable[[], None]], Ended]) -> int:
        """Bytes of address space that a piece of work came to need."""
        note = self.folder / "peak"

        def before() -> None:
            begun = address_space()
            exit_now = os._exit

            def leave(code: int) -> None:
                peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmPeak" in line)
                note.write_text(str(int(peak.split()[1]) * 1024 - begun))
                exit_now(code)

            os._exit = leave  # type: ignore[assignment]  # the forked child leaves by it

        ended = work(before)
        if ended.code != 0:
            raise RuntimeError(f"without a limit it ended with {ended.code}: {ended.last_words}")
        return int(note.read_text())

    def _call(self, call: Callable[[], object]) -> Ended:
        return end_call(call, self.folder / "said")

    def _serve(self, before: Callable[[], None]) -> None:
        """Load and ask under the limit, then ask without: prints what came of it."""
        from pmd.serving import Scorer
        from pmd.serving.errors import PmdError

        before()
        scorer, outcome = None, "refused at load"
        try:
            scorer = Scorer.load(self.bundle, threads=1)
            outcome = "loaded and answered"
            for head in scorer.entity_ids[:ASKED]:
                scorer.top_tails(head, scorer.relation_ids[0], k=3)
        except (PmdError, MemoryError) as error:
            outcome = outcome if scorer is None else "loaded, refused a question"
            said = str(error)
            lift()
            if "\n" in said:
                print(f"BROKEN: {said!r}")  # noqa: T201 (what the parent reads)
                return
        lift()
        scorer = scorer or Scorer.load(self.bundle, threads=1)
        answers = [scorer.top_tails(head, scorer.relation_ids[0], k=3) for head in scorer.entity_ids[:ASKED]]
        print(json.dumps([outcome, repr(answers)]))  # noqa: T201

    def serving(self, extra_bytes: int) -> str:
        """How a Scorer gets along with so much."""
        ended = self._call(lambda: self._serve(lambda: limit(extra_bytes)))
        if ended.code in ABORTS:
            return f"a library ended the process ({signal.Signals(-ended.code).name})"
        if ended.code != 0:
            return f"BROKEN: {ended.code}, {ended.last_words}"
        line = ended.stdout.splitlines()[-1]
        if line.startswith("BROKEN"):
            return line
        outcome, answers = json.loads(line)
        sound = self._call(lambda: self._serve(lambda: None)).stdout.splitlines()[-1]
        return outcome if answers == json.loads(sound)[1] else "BROKEN: other answers after memory came back"

    def training(self, extra_bytes: int) -> str:
        """How a ladder is trained with so much, and whether it is finished with more."""
        out = self.folder / "run"
        shutil.rmtree(out, ignore_errors=True)
        ended = self.toy.train(out, before=lambda: limit(extra_bytes))
        outcome = _outcome(ended)
        if outcome.startswith("BROKEN"):
            return outcome
        again = self.toy.train(out, "--resume")
        if again.code != 0:
            return f"BROKEN: after {outcome} it does not go on: {again.last_words}"
        wrong = self.toy.broken(out)
        if wrong and _chunked(out) and all("has other bytes" in one or "differs" in one for one in wrong):
            return f"{outcome}, finished in smaller chunks"  # which move numbers by their rounding
        return f"BROKEN: after {outcome}: {wrong}" if wrong else f"{outcome}, then finished to the same bytes"

    def export(self, extra_bytes: int) -> str:
        """How a bundle is made with so much, and whether it is made with more."""
        out = self.folder / "made"
        shutil.rmtree(out, ignore_errors=True)
        options = ("--precision", "int8")
        outcome = _outcome(self.toy.export(out, *options, before=lambda: limit(extra_bytes)))
        if outcome.startswith("BROKEN"):
            return outcome
        if outcome.startswith("one line") and (out.exists() or left_overs(self.folder)):
            return f"BROKEN: after {outcome} something is left"
        again = self.toy.export(out, *options, "--force")
        if again.code != 0:
            return f"BROKEN: after {outcome} it cannot be made: {again.last_words}"
        return "BROKEN: something is left" if left_overs(self.folder) else f"{outcome}, then made"


def _outcome(ended: Ended) -> str:
    if ended.code in ABORTS:
        return f"a library ended the process ({signal.Signals(-ended.code).name})"
    lines = [line for line in ended.stderr.splitlines() if line.strip()]
    if ended.code == 0:
        return "enough"
    if ended.code not in OURS or len(lines) != 1 or not lines[0].startswith("error: "):
        return f"BROKEN: {ended.code}, {len(lines)} lines: {' / '.join(lines[-4:])}"
    return "one line" if "memory" in lines[0] or "allocate" in lines[0] else "one line of another cause"


def _write_large(folder: Path) -> None:
    """A sound bundle with a table of vectors that takes memory to search."""
    import numpy as np

    from pmd.serving.bundle import MANIFEST, seal, write_tables
    from pmd.serving.known import KnownAnswers
    from pmd.serving.neighbours import NeighbourGraph
    from pmd.serving.rows import EntityRow
    from pmd.serving.tables import Tables
    from pmd.serving.vectors import VectorTable
    from tests.tiny_bundle import RELATIONS, WIDTH, write_tiny_bundle

    write_tiny_bundle(folder)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(ENTITIES, WIDTH)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    triples = np.stack(
        [rng.integers(ENTITIES, size=1000), np.zeros(1000, int), rng.integers(ENTITIES, size=1000)], 1
    )
    triples = np.unique(triples, axis=0)
    known = KnownAnswers.from_triples(ENTITIES, len(RELATIONS), triples, triples[:0], triples[:0])
    rows = tuple(EntityRow(f"e{number}", f"heart {number}", "") for number in range(ENTITIES))
    graph = NeighbourGraph.from_triples(ENTITIES, triples)
    write_tables(folder, Tables(rows, RELATIONS, VectorTable(vectors), known, graph))
    facts = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    (folder / MANIFEST).unlink()
    seal(folder, {name: fact for name, fact in facts.items() if name not in ("files", "digest")})


def _chunked(out: Path) -> bool:
    events = out / "events.jsonl"
    return events.exists() and '"out_of_memory"' in events.read_text(encoding="utf-8")


def starve(ground: Ground) -> Tally:
    """Each case does one piece of work with a random share of the address space that it needs."""
    tally = Tally()
    field = Field(ground.folder)
    for number in range(ground.count):
        kind = KINDS[number % len(KINDS)]
        own = randomness.Random(f"{ground.seed} {number}")
        extra = own.randrange(int(1.1 * field.growth[kind]))
        outcome = getattr(field, kind)(extra)
        if outcome.startswith("BROKEN"):
            tally.failed(f"case {number}, {kind} with {extra:,} bytes more: {outcome}")
        else:
            tally.saw(f"{kind}: {outcome}")
    tally.figures |= {f"{kind}_needs_bytes": size for kind, size in field.growth.items()}
    return tally


def _not_here() -> str | None:
    return None if sys.platform.startswith("linux") else "RLIMIT_AS is not enforced here"


ATTACKS = (
    Attack(
        name="out-of-memory",
        part="numbers",
        what="training, export and serving with a random share of the address space they need: smaller chunks or "
        "one line, nothing half-written, the run resumes, and a Scorer answers as before once memory is back",
        run=starve,
        quick=12,
        full=300,
        skip=_not_here,
    ),
)
