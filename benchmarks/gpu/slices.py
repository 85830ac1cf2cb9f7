"""Which slices there are: slices.yaml, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from pmd.benchmarks.gpu.errors import SliceError

LIMIT_MINUTES = 10


@dataclass(frozen=True)
class Slice:
    """What one sitting of at most ten minutes trains."""

    name: str
    why: str
    minutes: int
    """Expected on one H100."""
    recipe: str
    runs: Mapping[str, Mapping[str, Any]]
    """Recipe keys that differ, by run; trained in this order."""
    needs: tuple[str, ...] = ()
    """Slices whose finished stages are taken over."""
    returns: tuple[tuple[str, str], ...] = ()
    """(run, stage) whose weights come back."""

    def label(self, seed: int) -> str:
        """The name of this slice's files."""
        return label_of(self.name, seed)


def label_of(name: str, seed: int) -> str:
    """The name of a slice's files: with its seed, unless that is 0."""
    return f"{name}-seed-{seed}" if seed else name


def shipped_slices() -> dict[str, Slice]:
    """The slices of this package, by name, in order of worth."""
    return read_slices(Path(str(resources.files("pmd.benchmarks.gpu"))) / "slices.yaml")


def read_slices(path: Path) -> dict[str, Slice]:
    """Slices from a YAML file. Raises SliceError if one is not laid out as a slice, or needs an unknown one."""
    import yaml

    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise SliceError(f"{path} is not a mapping of slice names to slices")
    slices = {name: _slice(name, facts) for name, facts in found.items()}
    for entry in slices.values():
        for needed in entry.needs:
            if needed not in slices:
                raise SliceError(f"slice {entry.name} needs {needed}, which {path} does not have")
    return slices


def choose(slices: Mapping[str, Slice], name: str) -> Slice:
    """The slice of this name. Raises SliceError naming those there are."""
    if name not in slices:
        raise SliceError(f"no slice {name!r}; there are {', '.join(slices)}")
    return slices[name]


def _slice(name: str, facts: Mapping[str, Any]) -> Slice:
    try:
        returns = tuple(tuple(entry.split("/")) for entry in facts.get("returns", ()))
        made = Slice(**{**facts, "name": name, "needs": tuple(facts.get("needs", ())), "returns": returns})
    except (TypeError, AttributeError) as error:
        raise SliceError(f"slice {name} is not laid out as a slice: {error}") from error
    if any(len(entry) != 2 or entry[0] not in made.runs for entry in returns):
        raise SliceError(f"slice {name}: returns must name RUN/STAGE of its runs, {', '.join(made.runs)}")
    return made
