"""A toy ladder to attack: trained in forked processes, judged against a run that nothing disturbed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.trust.killing import Ended, end_call

STAGES = ("teacher", "pre-distilled", "grade-1")
TIMES = ("seconds", "train_seconds", "triples_per_second")


class SpoiltError(Exception):
    """The material of an attack could not be made: nothing was attacked."""


@dataclass(frozen=True)
class Toy:
    """Encoder, dataset and recipe in a folder, and an undisturbed run of them."""

    folder: Path

    @classmethod
    def made(cls, folder: Path, **settings: Any) -> Toy:
        """With recipe keys of its own. What forks later imports here, once."""
        os.environ |= {"OMP_NUM_THREADS": "1", "PMD_CACHE": str(folder / "cache")}
        import pmd.datasets
        import pmd.export.cli
        import pmd.export.jobs
        import pmd.ladder  # noqa: F401
        from tests.tiny_encoder import write_encoder, write_graph, write_recipe

        toy = cls(folder)

        def write() -> None:  # in a child, so that this process starts no threads that a fork would lose
            data, encoder = write_graph(folder / "tiny"), write_encoder(folder / "encoder", layers=2)
            write_recipe(toy.recipe, data, encoder, **{"grades": [2, 1], "batch_size": 8} | settings)

        toy._must(end_call(write, folder / "making"))
        toy._must(toy.train(toy.undisturbed))
        return toy

    @property
    def recipe(self) -> Path:
        """The recipe's file."""
        return self.folder / "toy.yaml"

    @property
    def undisturbed(self) -> Path:
        """The run that nothing disturbed."""
        return self.folder / "undisturbed"

    def command(self, out: Path, *options: str) -> list[str]:
        """Arguments of pmd-train."""
        return ["--recipe", str(self.recipe), "--out", str(out), "--device", "cpu", "--quiet", *options]

    def train(
        self,
        out: Path,
        *options: str,
        before: Callable[[], object] = lambda: None,
        kill_after: float | None = None,
        begun: Callable[[], bool] | None = None,
    ) -> Ended:
        """pmd-train in a forked process, which tells of every step in events.jsonl. before: called in it first."""

        def call() -> None:
            import pmd.events
            from pmd.cli import main

            pmd.events.STEP_EVENT_SECONDS = 0.0
            before()
            main(self.command(out, *options), prog_name="pmd-train")

        return end_call(call, self.folder / "said", kill_after=kill_after, begun=begun)

    def export(
        self,
        out: Path,
        *options: str,
        before: Callable[[], object] = lambda: None,
        kill_after: float | None = None,
    ) -> Ended:
        """pmd-export of the undisturbed run's grade 1 in a forked process."""
        arguments = ["--run", str(self.undisturbed), "--grade", "1", "--out", str(out), "--quiet", *options]

        def call() -> None:
            from pmd.export.cli import main

            before()
            main(arguments, prog_name="pmd-export")

        return end_call(call, self.folder / "said", kill_after=kill_after)

    def broken(self, out: Path) -> list[str]:
        """What a finished run lacks to be the undisturbed one, but for its times."""
        wrong = [*self.half_written(out)]
        wrong += [f"{name} is not finished" for name in STAGES if not (out / name).is_dir()]
        wrong += [f"{name} is left" for name in sorted(_names(out) - _names(self.undisturbed))]
        if not wrong and _timeless(_json(out / "ladder.json")) != _timeless(
            _json(self.undisturbed / "ladder.json")
        ):
            wrong.append("ladder.json differs in more than times")
        return wrong

    def half_written(self, out: Path) -> Iterator[str]:
        """What stands in a run folder, at any moment, and is not whole or not as in the undisturbed run."""
        for name in STAGES:
            for file in sorted(path.name for path in (self.undisturbed / name).iterdir()):
                if (out / name).is_dir():
                    yield from self._differs(out, f"{name}/{file}")
        for name in ("run.json", "ladder.json"):
            if (out / name).exists() and _json(out / name) is None:
                yield f"{name} is not whole"
        if (out / "checkpoint.safetensors").exists() and checkpoint_state(out) is None:
            yield "the checkpoint is not whole"

    def _differs(self, out: Path, name: str) -> Iterator[str]:
        path = out / name
        if not path.is_file():
            yield f"{name} is missing"
        elif name.endswith("metrics.json"):
            if _timeless(_json(path)) != _timeless(_json(self.undisturbed / name)):
                yield f"{name} differs in more than times"
        elif path.read_bytes() != (self.undisturbed / name).read_bytes():
            yield f"{name} has other bytes"

    def _must(self, ended: Ended) -> None:
        if ended.code != 0:
            raise SpoiltError(f"the toy could not be made: {ended.code}, {ended.last_words}")


def checkpoint_state(out: Path) -> dict[str, Any] | None:
    """The counters in a run's checkpoint; None where it is absent or cannot be read."""
    try:
        data = (out / "checkpoint.safetensors").read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        ends = [facts["data_offsets"][1] for name, facts in header.items() if name != "__metadata__"]
        whole = max(ends) == len(data) - 8 - length
        return json.loads(header["__metadata__"]["state"]) if whole else None
    except (OSError, ValueError, KeyError):
        return None


def last_sitting(out: Path) -> list[dict[str, Any]]:
    """The step events since a run's last start of a stage; a torn last line is left out."""
    try:
        lines = (out / "events.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    steps: list[dict[str, Any]] = []
    for line in lines:
        event = _parsed(line) or {}
        if event.get("event") == "stage":
            steps = []
        elif event.get("event") == "step":
            steps.append(event)
    return steps


def torn_lines(out: Path) -> int:
    """Lines of events.jsonl that are not JSON."""
    return sum(_parsed(line) is None for line in (out / "events.jsonl").read_text(encoding="utf-8").splitlines())


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        return dict(json.loads(line))
    except ValueError:
        return None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _timeless(part) for name, part in value.items() if name not in TIMES}
    return [_timeless(part) for part in value] if isinstance(value, list) else value
