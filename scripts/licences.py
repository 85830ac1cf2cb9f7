"""The licences of all that an install brings, by extra; `python -m scripts.licences` writes docs/licences.md.

Read from the metadata of the packages that are installed. What is not installed is not listed, so run it where all
extras are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import click
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/licences.md"
PROJECT = "pmd-kgc"
EXTRAS = ("cpu", "train", "export", "bench", "data", "server", "ann", "sign", "study", "dev")
"""In the order of the page; "" is what every install brings. `gpu` and `track` exclude others or are large."""
ALLOWED = frozenset(
    {"0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "MIT"}
)
ALLOWED |= {"Apache-2.0 WITH LLVM-exception", "MIT-0", "MIT-CMU", "MPL-2.0", "PSF-2.0", "Zlib"}
"""Licences that ask no more than to be named, and MPL-2.0, which is about changes to its own files."""
IN_WORDS = {
    "3-clause bsd license": "BSD-3-Clause",
    "apache": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "python software foundation license": "PSF-2.0",
}
"""What packages say that do not yet use SPDX names; "BSD" alone is taken for its usual form."""
CLASSIFIER = re.compile(r"License :: (?:OSI Approved :: )?(.+)")
LONGEST_NAME = 60  # characters; longer is the text of a licence, not its name


def brought(extra: str) -> dict[str, Distribution]:
    """The installed packages that an extra ("" for none) brings, by their normal names, with all that they need."""
    found: dict[str, Distribution] = {}
    waiting = [(PROJECT, frozenset({extra}))]
    seen = set()
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            package = distribution(name)
        except PackageNotFoundError:  # of another platform, or not needed here
            continue
        if name != PROJECT:
            found[name] = package
        waiting += _needed(package, extras)
    return found


def _needed(package: Distribution, extras: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
    for line in package.requires or ():
        wanted = Requirement(line)
        if wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in extras | {""}):
            yield canonicalize_name(wanted.name), frozenset(wanted.extras)


def licence_of(package: Distribution) -> str:
    """A package's licence as an SPDX expression, or as the package words it where that is none that we know."""
    metadata = package.metadata
    if expression := metadata.get("License-Expression"):
        return expression
    named = [match[1] for line in metadata.get_all("Classifier") or () if (match := CLASSIFIER.fullmatch(line))]
    text = (metadata.get("License") or "").strip()
    if text and len(text) <= LONGEST_NAME and "\n" not in text:
        named.insert(0, text)
    known = [IN_WORDS.get(words.lower(), words) for words in named]
    return next((words for words in known if is_allowed(words)), known[0] if known else "not stated")


def is_allowed(expression: str) -> bool:
    """Whether one way of reading an SPDX expression keeps to the allowed licences. Nested ones must in full."""
    ways = [expression] if "(" in expression else expression.split(" OR ")
    parts = [re.split(r" AND | OR ", way.replace("(", "").replace(")", "")) for way in ways]
    return any(all(part.strip() in ALLOWED for part in way) for way in parts)


def page() -> str:
    """docs/licences.md."""
    base = brought("")
    extras = {extra: brought(extra) for extra in EXTRAS}
    everything = base | {name: package for packages in extras.values() for name, package in packages.items()}
    rows = []
    for name in sorted(everything):
        by = (
            "every install"
            if name in base
            else ", ".join(f"`{extra}`" for extra in EXTRAS if name in extras[extra])
        )
        rows.append(f"| {name} | {licence_of(everything[name])} | {by} |")
    return HEAD + "\n".join(rows) + "\n"


HEAD = f"""# Licences of what an install brings

Made by `make licences` from the packages' own metadata, on Linux with Python 3.11, in the versions of
`requirements/ci.txt`. A test fails where a package comes under none of these licences:
{", ".join(sorted(ALLOWED))}.

`dev` is for work on the project alone. The wheel itself holds nothing of other hands, and is under Apache-2.0.

| package | licence | brought by |
|---|---|---|
"""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Write docs/licences.md."""
    text = page()
    PAGE.write_text(text, encoding="utf-8")
    click.echo(f"{PAGE.relative_to(ROOT)}: {len(text.splitlines()) - len(HEAD.splitlines())} packages")


if __name__ == "__main__":
    main()
