"""One run of a slice: the pmd-train command it is, and what its run folder holds afterwards."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from pmd.serving.cores import affinity

Train = Callable[[Sequence[str], float, Path], int]
"""pmd-train's arguments, seconds after which it is killed, a folder for its cache; returns its exit code."""
TIMED_OUT = 75


@dataclass(frozen=True)
class Training:
    """A pmd-train command, with the folders that a shown command names by placeholders."""

    name: str
    recipe: str
    data: Path
    encoder: Path
    out: Path
    settings: Mapping[str, Any]
    seed: int
    device: str
    reuse: tuple[Path, ...]

    def arguments(self, seconds: float) -> list[str]:
        """The arguments of pmd-train, to be done in `seconds`."""
        words = ["--recipe", self.recipe, "--data", str(self.data), "--encoder", str(self.encoder)]
        words += ["--out", str(self.out), "--seed", str(self.seed), "--device", self.device]
        for key, value in self.settings.items():
            words += ["--set", f"{key}={json.dumps(value)}"]  # JSON is YAML
        for run in self.reuse:
            words += ["--reuse", str(run)]
        return [*words, "--resume", "--time-limit", str(max(1, int(seconds)))]

    def shown(self, kit: Path, work: Path, seconds: float) -> str:
        """The command for people: KIT and WORK stand for this machine's folders."""
        words = ["pmd-train"]
        for word in self.arguments(seconds):
            for root, name in ((kit, "KIT"), (work, "WORK")):
                if word == str(root) or word.startswith(f"{root}{os.sep}"):
                    word = name + word.removeprefix(str(root))
            words.append(word)
        return shlex.join(words)


def pmd_train(arguments: Sequence[str], kill_after: float, cache: Path) -> int:
    """Run pmd-train in a process of its own, its talk on our stderr; killed, it counts as stopped at its limit."""
    command = [sys.executable, "-m", "pmd.cli", *arguments]
    environment = {**os.environ, "PMD_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, timeout=kill_after, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return TIMED_OUT
    for line in done.stdout.splitlines()[:-1]:
        click.echo(line, err=True)
    return done.returncode


def report(training: Training, command: str, *, done: bool) -> dict[str, Any] | None:
    """What a run folder says, for the result file; None if the run did not get as far as run.json."""
    facts = _read(training.out / "run.json")
    if facts is None:
        return None
    facts["recipe"] = {**facts["recipe"], "dataset": training.data.name, "encoder": training.encoder.name}
    facts["machine"] = {**facts["machine"], "cores": affinity()}
    ladder = _read(training.out / "ladder.json") or {"stages": []}
    finished = {stage["stage"] for stage in ladder["stages"]}
    events = list(_events(training.out / "events.jsonl"))
    return {
        "run": training.name,
        "command": command,
        "done": done,
        "facts": facts,
        "ladder": ladder,
        "rates": {
            event["stage"]: _rate(event) for event in events if event["event"] == "step" and event["epoch"] == 1
        },
        "unfinished": [
            {key: event[key] for key in ("stage", "epoch", "step", "valid_mrr", "seconds")}
            for event in events
            if event["event"] == "epoch" and event["stage"] not in finished
        ],
    }


def _rate(event: Mapping[str, Any]) -> dict[str, Any]:
    """Of a stage's first epoch, whose last report stands before any validation: steps alone."""
    return {"step": event["step"], "triples_per_second": event["triples_per_second"]}


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def _events(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:  # the line that a kill cut short
            continue
