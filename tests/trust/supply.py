"""Attacks on where things come from: builds that differ, and doors to the network."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import random
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tests.trust.attack import Attack, Ground, Tally

ROOT = Path(__file__).resolve().parents[2]
ZONES = ("UTC", "Asia/Tokyo", "America/St_Johns", "Pacific/Kiritimati")
LANGUAGES = ("C", "C.UTF-8", "de_DE.UTF-8", "tr_TR.UTF-8")
UMASKS = (0o022, 0o077, 0o002, 0o000)
SERVING_SECONDS = 60


def same_bytes(ground: Ground) -> Tally:
    """Build wheel and source archive `count` times, from clones in other folders, of other times and habits."""
    tally, rng, first = Tally(), ground.random, dict[str, str]()
    for number in range(ground.count):
        clone = ground.folder / ("deep/" * rng.randrange(4)) / f"clone-{number}"
        habits = _cloned(clone, rng)
        done = subprocess.run(
            [sys.executable, "-m", "scripts.dist", "--out", str(clone / "out")],
            cwd=clone,
            env=os.environ | habits,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            tally.failed(f"build {number} {habits}: {done.stderr.strip()[-300:]}")
            continue
        for path in sorted((clone / "out").iterdir()):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            if first.setdefault(path.suffix, digest) == digest:
                tally.saw(f"the same {path.suffix}")
            else:
                tally.failed(f"build {number} {habits}: {path.name} is {digest}, at first {first[path.suffix]}")
        shutil.rmtree(clone)
    return tally


def _cloned(clone: Path, rng: random.Random) -> dict[str, str]:
    """A clone of HEAD with modes by another umask, other times, strangers beside it; returns the environment's."""
    before = os.umask(rng.choice(UMASKS))
    try:
        clone.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True, capture_output=True)
    finally:
        os.umask(before)
    moment = rng.randrange(400_000_000, 1_900_000_000)
    for path in clone.glob("*/*.py"):
        os.utime(path, (moment, moment))
    (clone / "serving/stranger.py").write_text("not committed\n")
    return {
        "TZ": rng.choice(ZONES),
        "LC_ALL": rng.choice(LANGUAGES),
        "PYTHONHASHSEED": str(rng.randrange(2**32)),
        "SOURCE_DATE_EPOCH": str(moment),
    }


# ---- the network ------------------------------------------------------------------------------------------------


def no_network(ground: Ground) -> Tally:
    """Import and use what serves, `count` times in turn, in processes that refuse every way out of the machine."""
    from tests.tiny_bundle import write_tiny_bundle

    tally, bundle = Tally(), write_tiny_bundle(ground.folder / "bundle", precision="int8")
    ways: list[tuple[str, Callable[[Path], subprocess.CompletedProcess[str]]]] = [*WAYS.items()]
    for number in range(ground.count):
        name, way = ways[number % len(ways)]
        done = way(bundle)
        if "NETWORK" in done.stderr or done.returncode:
            tally.failed(f"{name}: exit code {done.returncode}: {done.stderr.strip()[-300:]}")
        else:
            tally.saw("no way out was tried")
    return tally


def _python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", f"import tests.quiet_network\n{code}", *arguments]


def _run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(_python(code, *arguments), cwd=ROOT, capture_output=True, text=True)


def _imported(bundle: Path) -> subprocess.CompletedProcess[str]:
    return _run(
        "import pkgutil, importlib, pmd.serving, pmd.serving.server, pmd.export\n"
        "for package in (pmd.serving, pmd.serving.server):\n"
        "    for module in pkgutil.iter_modules(package.__path__, package.__name__ + '.'):\n"
        "        importlib.import_module(module.name)"
    )


def _answered(bundle: Path) -> subprocess.CompletedProcess[str]:
    return _run(
        "import sys\nfrom pmd.serving import Scorer\n"
        "scorer = Scorer.load(sys.argv[1], threads=1, verify=True)\n"
        "scorer.add_entity('new', name='a new drug against pain')\n"
        "scorer.top_tails('new', 'treats')\nscorer.evaluate()",
        str(bundle),
    )


def _predicted(bundle: Path) -> subprocess.CompletedProcess[str]:
    code = "import sys\nfrom pmd.serving.cli import main\nmain(sys.argv[1:])"
    return _run(code, str(bundle), "--head", "aspirin", "--relation", "treats")


def _served(bundle: Path) -> subprocess.CompletedProcess[str]:
    """The server, its page and an answer."""
    code = "import sys\nfrom pmd.serving.server.cli import main\nmain(sys.argv[1:])"
    command = _python(code, str(bundle), "--port", "0")
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    said: list[str] = []
    listener = threading.Thread(target=lambda: said.extend(iter(server.stderr.readline, "")))
    listener.start()
    try:
        url = _url(said)
        for page in ("", "/docs", "/v1/bundles", "/metrics"):
            with urllib.request.urlopen(url + page, timeout=SERVING_SECONDS) as answer:
                answer.read()
    finally:
        server.terminate()
        listener.join(SERVING_SECONDS)
    return subprocess.CompletedProcess(command, server.wait(SERVING_SECONDS), "", "".join(said))


def _url(said: list[str]) -> str:
    """Where a server says that it listens. Raises RuntimeError if it does not in time."""
    deadline = time.monotonic() + SERVING_SECONDS
    while time.monotonic() < deadline:
        for line in said:
            if line.startswith("listening on "):
                return line.removeprefix("listening on ").strip()
        time.sleep(0.05)
    raise RuntimeError(f"the server did not start: {said}")


WAYS = {"import": _imported, "Scorer": _answered, "pmd-predict": _predicted, "pmd-serve": _served}


def _unable_to_build() -> str | None:
    absent = [name for name in ("build", "setuptools") if importlib.util.find_spec(name) is None]
    if absent:
        return f"{', '.join(absent)} not installed"
    return None if shutil.which("git") and (ROOT / ".git").exists() else "not a clone of the repository"


def _unable_to_serve() -> str | None:
    absent = [name for name in ("onnx", "onnxruntime", "uvicorn") if importlib.util.find_spec(name) is None]
    return f"{', '.join(absent)} not installed" if absent else None


ATTACKS = (
    Attack(
        "reproducible-wheel",
        "supply chain",
        "Wheel and source archive are built from clones in other folders, by other umasks, zones and languages, "
        "with other times and strange files: the same bytes",
        same_bytes,
        quick=2,
        full=10,
        limit_seconds=240,
        skip=_unable_to_build,
    ),
    Attack(
        "no-network",
        "supply chain",
        "What serves is imported, loaded, asked and run as a server in processes that refuse every way out of the "
        "machine: none is tried",
        no_network,
        quick=4,
        full=20,
        limit_seconds=240,
        skip=_unable_to_serve,
    ),
)
