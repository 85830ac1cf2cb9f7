"""Which optional packages are there: checked at the door, with the cure in the message."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from pmd.serving.errors import MissingExtra
from pmd.serving.exhausted import out_of_memory, ran_out_of_memory


def require(extra: str, *modules: str) -> None:
    """Raise `MissingExtra` naming the pip command if any module cannot be found; imports nothing."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        wanted = ", ".join(missing)
        raise MissingExtra(f"{wanted} not installed; run: pip install 'pmd-kgc[{extra}]'")


def load(extra: str, module: str) -> ModuleType:
    """Import a module of an optional extra.

    Raises `MissingExtra` where it is not there or cannot be loaded, OutOfMemory where memory does not suffice.
    """
    require(extra, module)
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        if ran_out_of_memory(error):
            raise out_of_memory(error) from error
        raise MissingExtra(
            f"{module} is installed and cannot be loaded ({reason}); give the process more memory, or install it "
            f"again for this Python and system: pip install --force-reinstall 'pmd-kgc[{extra}]'"
        ) from error
