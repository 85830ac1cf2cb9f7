"""Other processors, emulated: Debian's Python for them, the wheels of PyPI for them, and QEMU's user mode.

    python -m tests.trust.emulation          # once, minutes: aarch64, s390x (big-endian), armhf (32 bits)

It needs Linux on x86-64, root, `debootstrap`, `dpkg-deb`, `apt-get`, `pip`, and the address of a mirror of Debian
in `PMD_DEBIAN_MIRROR`; it writes below `PMD_TRUST_CACHE` (default ~/.cache/pmd-trust). Nothing is installed and no
binfmt is registered: QEMU is started by its path.

QEMU 7.2 dies as onnxruntime for aarch64 is imported, on every processor it emulates; 10.0 does not. So QEMU is
taken from Debian 13 whatever the machine runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SUITE, QEMU_SUITE, PYTHON = "bookworm", "trixie", "3.11"
MIRROR = os.environ.get("PMD_DEBIAN_MIRROR", "")
"""Where Debian's packages are fetched, as in sources.list."""


class Processor(NamedTuple):
    """One that can be emulated. wheels: what pip calls it; packages: what comes from PyPI, all else from Debian."""

    debian: str
    qemu: str
    triplet: str
    wheels: str
    packages: tuple[str, ...]


PROCESSORS = {
    "aarch64": Processor(
        "arm64", "aarch64", "aarch64-linux-gnu", "aarch64", ("numpy", "onnxruntime", "tokenizers", "click")
    ),
    "s390x": Processor("s390x", "s390x", "s390x-linux-gnu", "s390x", ("tokenizers", "click", "huggingface-hub")),
    "armhf": Processor("armhf", "arm", "arm-linux-gnueabihf", "armv7l", ("tokenizers", "click", "huggingface-hub")),
}
"""PyPI has no numpy and no onnxruntime for the last two; Debian's numpy is enough to be refused with."""


def cache() -> Path:
    """Where emulated systems are kept."""
    return Path(os.environ.get("PMD_TRUST_CACHE", "") or Path.home() / ".cache/pmd-trust")


def absent(*names: str) -> str | None:
    """Why these processors cannot be emulated here, or None."""
    missing = [name for name in names if not (_python(name).exists() and _qemu(name).exists())]
    if missing:
        return f"no emulated {', '.join(missing)}; make it with: python -m tests.trust.emulation"
    return None


def python_on(name: str, *arguments: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Run this checkout's Python code on an emulated processor, with these arguments of `python`."""
    one, system = PROCESSORS[name], _system(name)
    libraries = ":".join(str(system / "usr/lib" / one.triplet / kind) for kind in ("blas", "lapack"))
    emulator = [str(_qemu(name)), "-E", f"LD_LIBRARY_PATH={libraries}", "-L", str(system), str(_python(name))]
    outside = {"PATH": os.environ["PATH"], "PYTHONHOME": str(system / "usr")}
    outside["PYTHONPATH"] = f"{ROOT}:{system / 'opt/site'}"
    command = [*emulator, "-B", *arguments]
    return subprocess.run(command, env=outside, cwd=ROOT, capture_output=True, text=True, timeout=timeout)


def prepare(names: Sequence[str] = tuple(PROCESSORS)) -> None:
    """Make what is absent. Raises CalledProcessError, whose output says why."""
    cache().mkdir(parents=True, exist_ok=True)
    if not all(_qemu(name).exists() for name in names):
        _fetch_qemu(cache() / "qemu")
    for name in names:
        if not _python(name).exists():
            _bootstrap(name)


def _system(name: str) -> Path:
    return cache() / f"root-{name}"


def _python(name: str) -> Path:
    return _system(name) / f"usr/bin/python{PYTHON}"


def _qemu(name: str) -> Path:
    return cache() / "qemu/usr/bin" / f"qemu-{PROCESSORS[name].qemu}"


def _run(*command: str | Path, cwd: Path | None = None) -> None:
    print(*command, file=sys.stderr)  # noqa: T201
    subprocess.run([str(part) for part in command], cwd=cwd, check=True, stdout=sys.stderr)


def _fetch_qemu(folder: Path) -> None:
    """QEMU's user mode of Debian 13, unpacked and not installed, through lists of apt's that are our own."""
    for part in ("lists/partial", "archives/partial"):
        (folder / "apt" / part).mkdir(parents=True, exist_ok=True)
    source, status = folder / "apt/sources.list", folder / "apt/status"
    source.write_text(f"deb {MIRROR} {QEMU_SUITE} main\n", encoding="utf-8")
    status.touch()
    settings = {
        "Dir::State": folder / "apt",
        "Dir::State::status": status,
        "Dir::Cache": folder / "apt",
        "Dir::Etc::sourcelist": source,
        "Dir::Etc::sourceparts": "-",
        "APT::Sandbox::User": "root",
    }
    options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
    _run("apt-get", *options, "update")
    _run("apt-get", *options, "download", "qemu-user", cwd=folder)
    for package in folder.glob("qemu-user_*.deb"):
        _run("dpkg-deb", "-x", package, folder)


def _bootstrap(name: str) -> None:
    one, system = PROCESSORS[name], _system(name)
    wanted = [f"--arch={one.debian}", "--include=python3,python3-numpy", SUITE, str(system), MIRROR]
    _run("debootstrap", "--foreign", "--variant=minbase", *wanted)
    for package in sorted((system / "var/cache/apt/archives").glob("*.deb")):
        _run("dpkg-deb", "-x", package, system)
    wheels = system / "opt/wheels"
    tags = [f"{kind}_{one.wheels}" for kind in ("manylinux_2_28", "manylinux_2_27", "manylinux2014")]
    platforms = [part for tag in tags for part in ("--platform", tag)]
    options = ["--only-binary=:all:", "--python-version", PYTHON, *platforms, "-d", wheels]
    whole = [] if "numpy" in one.packages else ["--no-deps"]
    _run(sys.executable, "-m", "pip", "download", "-q", *options, *whole, *one.packages)
    for wheel in wheels.glob("*.whl"):
        _run(sys.executable, "-m", "zipfile", "-e", wheel, system / "opt/site")


if __name__ == "__main__":
    if not MIRROR:
        sys.exit("error: no PMD_DEBIAN_MIRROR; set it to the address of a mirror of Debian, as in sources.list")
    prepare()
