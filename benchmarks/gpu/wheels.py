"""The small packages that a machine with torch and transformers may still lack, as wheels for its Python."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pmd.benchmarks.gpu.errors import KitError

# torch, transformers and what they pull in (numpy, tokenizers, safetensors, huggingface_hub) are expected there.
NEEDED = (
    *("accelerate", "annotated-types", "click", "markdown-it-py", "mdurl", "psutil", "pydantic", "pydantic-core"),
    *("pygments", "PyYAML", "rich", "typing-extensions", "typing-inspection"),
)
# pip takes these tags literally: each glibc age that wheels are published for.
PLATFORMS = tuple(f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 17, 12, 5))
PLATFORMS += ("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64")
TIMEOUT_SECONDS = 600


def download_wheels(folder: Path, python: str) -> None:
    """Fetch wheels of `NEEDED`, in the versions installed here, for CPython `python` ("3.12") on x86-64 Linux.

    Raises KitError if a package is not installed here, or pip cannot fetch one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    command += [word for platform in PLATFORMS for word in ("--platform", platform)]
    command += ["--dest", str(folder), *(_pin(name) for name in NEEDED)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise KitError(f"pip took more than {TIMEOUT_SECONDS} s to fetch wheels; try again") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise KitError(f"pip could not fetch the wheels for Python {python}: {reason}; leave them out: --no-wheels")


def _pin(name: str) -> str:
    try:
        return f"{name}=={version(name)}"
    except PackageNotFoundError as error:
        raise KitError(f"{name} is not installed here; run: pip install 'pmd-kgc[train,bench]'") from error
