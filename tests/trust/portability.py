"""Attack: the same bundles in other Pythons, runtimes and processors; answers are compared with those here."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.trust import emulation
from tests.trust.attack import Attack, Ground, Tally
from tests.trust.portable_bundles import no_encoder, tiny_bundles, wide_bundles

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("answering.py")
PART = "portability"
TINY = 7
"""Bundles that `tiny_bundles` makes."""
MOST_APART = {"fp32": 1e-5, "fp16": 5e-3, "int8": 3e-2, "int8-static": 3e-2, "int4": 6e-2}
"""An element of a vector may differ so much from kernel to kernel; the last three round activations to 8 bits."""
PINS = (
    ("onnxruntime==1.20.0", "numpy==1.26.0", "tokenizers==0.20.0"),
    ("onnxruntime==1.21.1",),
    ("onnxruntime==1.22.1",),
    ("onnxruntime==1.23.2", "numpy==2.0.0"),
    ("onnxruntime==1.24.4",),
    ("onnxruntime==1.26.0", "tokenizers==0.21.0"),
    ("onnxruntime==1.28.0",),
    ("onnxruntime==1.30.0",),
    ("numpy==2.2.0", "tokenizers==0.22.2"),
)
"""Beside the packages of this environment; the first are the oldest that setup.py admits."""


def other_pythons(ground: Ground) -> Tally:
    """The wheel with its extra `cpu` in other Pythons: the same bits where onnxruntime is the same."""
    tally = Tally()
    bundles = tiny_bundles(ground.folder / "bundles")
    here, wheel = _answers([sys.executable], bundles), _wheel(ground.folder)
    for python in _pythons()[: math.ceil(ground.count / TINY)]:
        home = ground.folder / "venv"
        shutil.rmtree(home, ignore_errors=True)
        subprocess.run([python, "-m", "venv", str(home)], check=True, capture_output=True)
        if why := _pip(home / "bin/python", "install", f"{wheel}[cpu]"):
            tally.saw(f"could not be installed: {why}", TINY)
            continue
        there = _answers([str(home / "bin/python")], bundles, paths=())
        alike = there.get("onnxruntime") == here["onnxruntime"]
        _compare(tally, here, there, bundles, bits=alike)
        tally.figures[f"python_{there.get('python')}"] = f"onnxruntime {there.get('onnxruntime')}"
    return tally


def other_runtimes(ground: Ground) -> Tally:
    """Older onnxruntime, numpy and tokenizers; a larger count brings bundles of real width, too."""
    tally = Tally()
    bundles = tiny_bundles(ground.folder / "bundles")
    if ground.count > TINY and no_encoder() is None:
        bundles |= wide_bundles(ground.folder / "bundles", tuple(MOST_APART))
    here = _answers([sys.executable], bundles)
    for pins in PINS[: math.ceil(ground.count / len(bundles))]:
        place = ground.folder / "pinned"
        shutil.rmtree(place, ignore_errors=True)
        options = ["--no-deps", "--only-binary=:all:", "--target", str(place)]
        if why := _pip(Path(sys.executable), "install", *options, *pins):
            tally.saw(f"could not be installed: {why}", len(bundles))
            continue
        there = _answers([sys.executable], bundles, paths=(place, ROOT))
        wrong = [
            pin for pin in pins if there.get(pin.split("==")[0]) != pin.split("==")[1] and "error" not in there
        ]
        for pin in wrong:
            tally.failed(f"{pin} was asked for and {there.get(pin.split('==')[0])} was loaded")
        _compare(tally, here, there, bundles, bits=not any("onnxruntime" in pin for pin in pins))
    return tally


def on_aarch64(ground: Ground) -> Tally:
    """onnxruntime's own wheel for aarch64, emulated."""
    tally = Tally()
    bundles = dict(list(tiny_bundles(ground.folder / "bundles").items())[: ground.count])
    here = _answers([sys.executable], bundles)
    done = emulation.python_on("aarch64", str(SCRIPT), *map(str, bundles.values()))
    there = _parsed(done)
    _compare(tally, here, there, bundles, bits=False)
    tally.figures["machine"] = str(there.get("machine"))
    tally.figures["onnxruntime"] = str(there.get("onnxruntime"))
    return tally


def on_foreign_processors(ground: Ground) -> Tally:
    """Big-endian and 32 bits, told so to this Python and on emulated processors: one line, exit code 2."""
    from tests.tiny_bundle import write_tiny_bundle

    tally = Tally()
    bundle = write_tiny_bundle(ground.folder / "bundle")
    for kind, run in list(_foreign(bundle))[: ground.count]:
        done = run()
        if done is None:
            tally.saw(f"{kind} is not emulated here")
        elif done.returncode == 2 and done.stderr.startswith("error: this ") and done.stderr.count("\n") == 1:
            tally.saw(f"{kind}: refused in one line")
        else:
            tally.failed(f"{kind} ended with {done.returncode}: {done.stderr[-300:] or done.stdout[-300:]}")
    return tally


def _foreign(bundle: Path) -> Iterator[tuple[str, Any]]:
    asked = [str(bundle), "--head", "aspirin", "--relation", "treats"]
    for fact, value in (("byteorder", "'big'"), ("maxsize", "2**31 - 1")):
        code = f"import sys; from pmd.serving.cli import main; sys.{fact} = {value}; main({asked})"
        command = [sys.executable, "-c", code]
        yield (
            f"a Python that says {fact} {value}",
            lambda command=command: subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120),
        )
    for name in ("s390x", "armhf"):
        command = ["-m", "pmd.serving.cli", *asked]
        yield name, lambda name=name, command=command: _emulated(name, command)


def _emulated(name: str, command: Sequence[str]) -> subprocess.CompletedProcess[str] | None:
    return None if emulation.absent(name) else emulation.python_on(name, *command)


def _answers(python: Sequence[str], bundles: dict[str, Path], paths: Sequence[Path] = (ROOT,)) -> dict[str, Any]:
    """What `answering.py` says in that Python, or {"error": …}."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    if paths:
        outside["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    command = [*python, str(SCRIPT), *map(str, bundles.values())]
    return _parsed(subprocess.run(command, env=outside, capture_output=True, text=True, timeout=900))


def _parsed(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    if done.returncode:
        return {"error": f"ended with {done.returncode}: {done.stderr.strip()[-300:]}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _compare(
    tally: Tally, here: dict[str, Any], there: dict[str, Any], bundles: dict[str, Path], *, bits: bool
) -> None:
    for name, path in bundles.items():
        kind = name.split("-", 1)[1]
        if "error" in there:
            tally.failed(f"{name}: {there['error']}")
            continue
        ours, theirs = here["bundles"][str(path)], there["bundles"][str(path)]
        where = " ".join(
            f"{key} {there[key]}" for key in ("machine", "python", "onnxruntime", "numpy", "tokenizers")
        )
        if why := _broken(ours, theirs, 0.0 if bits else MOST_APART[kind]):
            tally.failed(f"{name} on {where}: {why}")
            continue
        same = _row(ours) == _row(theirs)
        exact = ours["vectors"] == theirs["vectors"] and ours["answers"] == theirs["answers"]
        tally.saw("same bits" if exact else "same answers" if same else "same scores, near ties in another order")
        most = f"largest_difference_{kind}"
        tally.figures[most] = max(float(tally.figures.get(most, 0.0)), _apart(ours, theirs))


def _broken(ours: dict[str, Any], theirs: dict[str, Any], most: float) -> str | None:
    """Why their answers are not ours, where vectors may be `most` apart and scores a few times that."""
    if "error" in theirs or "error" in ours:
        return str(theirs.get("error") or ours.get("error"))
    if ours["exact"] != theirs["exact"]:
        return "the search gave other bits for the same vectors"
    if (apart := _apart(ours, theirs)) > most:
        return f"vectors are {apart:.2g} apart, expected at most {most:.2g}"
    for ours_row, theirs_row in zip(ours["answers"], theirs["answers"], strict=True):
        pairs = zip(ours_row, theirs_row, strict=True)
        gap = max(abs(float.fromhex(one) - float.fromhex(other)) for (_, one), (_, other) in pairs)
        if gap > 4 * most:
            return f"the scores of the best answers are {gap:.2g} apart, expected at most {4 * most:.2g}"
    return None


def _apart(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    one, other = (np.frombuffer(bytes.fromhex(found["vectors"]), "<f4") for found in (ours, theirs))
    return float(np.abs(one - other).max()) if one.shape == other.shape else math.inf


def _row(found: dict[str, Any]) -> list[list[str]]:
    return [[entity for entity, _ in row] for row in found["answers"]]


def _pythons() -> list[str]:
    """Pythons of another version than this, 3.11 or newer, the newest first: on PATH and of pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", "") or Path.home() / ".pyenv") / "versions"
    found = {}
    for minor in range(11, 20):
        places = [*pyenv.glob(f"3.{minor}.*/bin/python3"), shutil.which(f"python3.{minor}")]
        works = [str(place) for place in places if place and _version(str(place)) == (3, minor)]
        if works and minor != sys.version_info.minor:
            found[minor] = works[0]
    return [found[minor] for minor in sorted(found, reverse=True)]


def _version(python: str) -> tuple[int, ...] | None:
    code = "import sys; print(*sys.version_info[:2])"
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True)
    return tuple(map(int, done.stdout.split())) if done.returncode == 0 else None


def _wheel(folder: Path) -> Path:
    """The wheel of this checkout, built from a copy: a build leaves folders behind."""
    copy = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("pmd", "export", "serving", "benchmarks"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    options = ["--no-deps", "--no-build-isolation", "-w", str(folder), str(copy)]
    if why := _pip(Path(sys.executable), "wheel", *options):
        raise RuntimeError(f"the wheel cannot be built: {why}")
    return next(folder.glob("pmd_kgc-*.whl"))


def _pip(python: Path, *arguments: str) -> str | None:
    """Run pip; what it says where it fails, None where it does not."""
    quiet = ["-q", "--disable-pip-version-check", "--no-input"]
    command = [str(python), "-m", "pip", *arguments[:1], *quiet, *arguments[1:]]
    # not in the checkout, whose egg-info would pass for an install
    done = subprocess.run(command, cwd=python.parent, capture_output=True, text=True, timeout=600)
    said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return None if done.returncode == 0 else (said or done.stderr.splitlines() or ["nothing on stderr"])[-1][:200]


ATTACKS = (
    Attack(
        "python-versions",
        PART,
        "The wheel is installed into other Pythons; seven bundles in five precisions answer as here, to the bit.",
        other_pythons,
        TINY,
        2 * TINY,
        skip=lambda: None if _pythons() else "no other Python of 3.11 or newer is installed",
    ),
    Attack(
        "onnxruntime-versions",
        PART,
        "The oldest and other versions of onnxruntime, numpy and tokenizers open every precision and answer alike.",
        other_runtimes,
        TINY,
        len(PINS) * (TINY + len(MOST_APART)),
    ),
    Attack(
        "foreign-platforms",
        PART,
        "Big-endian and 32-bit Pythons, pretended and emulated, are refused in one line.",
        on_foreign_processors,
        2,
        4,
    ),
    Attack(
        "aarch64",
        PART,
        "On an emulated aarch64 the search gives the same bits, the models the same answers within their rounding.",
        on_aarch64,
        2,
        TINY,
        skip=lambda: emulation.absent("aarch64"),
    ),
)
