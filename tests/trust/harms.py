"""What makes a bundle hostile: a change of its files that its manifest agrees with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

Harm: TypeAlias = Callable[[Path], Path | None]
"""Harms a sealed bundle in a folder; gives the path to open where it is another."""
MODEL, TOKENIZER = "query/onnx/model.onnx", "query/tokenizer.json"


def sealed_file(name: str, data: Callable[[bytes], bytes]) -> Harm:
    """A file with other content, and a manifest that fits it."""

    def harm(bundle: Path) -> None:
        from pmd.serving.bundle import seal

        facts = json.loads((bundle / "manifest.json").read_text())
        (bundle / name).write_bytes(data((bundle / name).read_bytes()))
        seal(bundle, facts)

    return harm
