"""Fixtures that several test modules use; nothing heavy is imported before a test asks for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

if TYPE_CHECKING:
    from pmd.serving import Scorer

# Tensors here are tiny and tests run side by side: a second thread only waits. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("seeded", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("seeded")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither read nor write the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PMD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with float32 vectors; never written to."""
    from tiny_bundle import write_tiny_bundle

    return write_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle")


@pytest.fixture(scope="session")
def tiny_int8_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with int8 vectors and a dynamically quantised graph; never written to."""
    from tiny_bundle import write_tiny_bundle

    return write_tiny_bundle(tmp_path_factory.mktemp("tiny-int8") / "bundle", precision="int8")


@pytest.fixture
def tiny_scorer(tiny_folder: Path) -> Iterator[Scorer]:
    """A fresh Scorer of the float32 bundle, one thread."""
    from pmd.serving import Scorer

    yield Scorer.load(tiny_folder, threads=1)


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium; skipped where playwright or the browser is not installed."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed; apt-get install chromium to run this")
    options = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # it has no sandbox for root
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=options)
        yield chromium
        chromium.close()
