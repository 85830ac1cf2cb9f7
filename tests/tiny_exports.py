"""Bundles of the tiny run in every precision, made by `pmd-export` as a user makes them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from click.testing import CliRunner

from pmd.export.cli import main
from pmd.export.parity import GATES
from tests.tiny_run import write_run

PRECISIONS = tuple(GATES)
"""Every precision that pmd-export can write."""


def export_bundles(
    root: Path, precisions: Iterable[str] = PRECISIONS, *options: str, run: Path | None = None
) -> dict[str, Path]:
    """Grade 2 of the tiny run (or of another), below ROOT/bundles: precision -> bundle."""
    source = run or write_run(root)
    chosen = [option for precision in precisions for option in ("--precision", precision)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        result = CliRunner().invoke(main, ["--grade", "2", "--run", str(source), *chosen, *options])
    assert result.exit_code == 0, result.stderr
    made = json.loads(result.stdout.splitlines()[-1])["bundles"]
    return {bundle["precision"]: root / bundle["path"] for bundle in made}
