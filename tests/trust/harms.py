"""Harms done to good files, and the cases made of them."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from tests.trust.case_child import Case
from tests.trust.fuzz_engine import Broken

Harm: TypeAlias = Callable[[Path], Path | None]
"""Harms good files in a folder; gives the path to open where it is another."""
NamedHarm: TypeAlias = tuple[str, Harm, bool]
"""Name, harm, and whether taking the files is right as well as refusing them."""
SLOW_SECONDS = 60.0
TAKEN = ("answered", "read")
MODEL, TOKENIZER = "query/onnx/model.onnx", "query/tokenizer.json"


def sealed_file(name: str, data: Callable[[bytes], bytes]) -> Harm:
    """A file with other content, and a manifest that fits it."""

    def harm(bundle: Path) -> None:
        from pmd.serving.bundle import seal

        facts = json.loads((bundle / "manifest.json").read_text())
        (bundle / name).write_bytes(data((bundle / name).read_bytes()))
        seal(bundle, facts)

    return harm


def harmed(
    folder: Path, harms: Sequence[NamedHarm], good: Callable[[Path], object], ask: Callable[[Path], str]
) -> Case:
    """Cases in turn: what each harm leaves of good files is asked.

    good: makes the files in a new folder. ask: opens them and says how that ended: one of TAKEN if they were taken.
    """
    harms = list(harms)
    random.Random(0).shuffle(harms)  # so that a part of them has some of each kind

    def case(number: int, _: random.Random) -> str:
        name, harm, may_take = harms[number % len(harms)]
        place = folder / f"case-{number}"
        good(place)
        path = harm(place) or place
        start = time.monotonic()
        try:
            found = ask(path)
        except Broken as broken:
            raise Broken(f"{name}: {broken}") from broken
        except BaseException as error:
            error.case = name  # type: ignore[attr-defined]
            raise
        finally:
            shutil.rmtree(place, ignore_errors=True)
        if time.monotonic() - start > SLOW_SECONDS:
            raise Broken(f"{name}: took {time.monotonic() - start:.0f} s")
        if found in TAKEN and not may_take:
            raise Broken(f"{name}: was {found}")
        return found

    return case
