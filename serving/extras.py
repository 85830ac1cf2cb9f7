"""Which optional packages are there: checked at the door, with the cure in the message."""

from __future__ import annotations

import importlib.util

from pmd.serving.errors import MissingExtra


def require(extra: str, *modules: str) -> None:
    """Raise `MissingExtra` naming the pip command if any module cannot be found; imports nothing."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        wanted = ", ".join(missing)
        raise MissingExtra(f"{wanted} not installed; run: pip install 'pmd-kgc[{extra}]'")
