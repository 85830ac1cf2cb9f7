"""Towers of real bundles in transformers.js on Node, which sees the vectors that pmd sees."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from pmd.serving.bundle import ENTITY, QUERY, Bundle
from pmd.serving.encoder import DYNAMIC_PRECISIONS, TowerEncoder
from tests.tiny_exports import PRECISIONS, export_bundles

pytestmark = pytest.mark.slow

SOURCE = Path(__file__).with_name("node")
INSTALL_SECONDS, RUN_SECONDS = 600, 120
TEXTS = ["alpha", "Beta: big old", "never seen before, so unknown", "a part of alpha near beta near gamma"]
PAIRS = [("alpha", "is a"), ("beta: big old", "part of"), ("gamma near delta", "inverse near")]
# Node brings an onnxruntime of its own, of another version, and other sums round otherwise.
TOLERANCE = {"fp32": 1e-5, "fp16": 2e-3, "int8": 5e-3, "int8-static": 5e-3, "int4": 5e-3}


@pytest.fixture(scope="module")
def reader():
    """The folder of the reader and its packages, outside the checkout and kept from run to run; else skipped."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    digest = hashlib.sha256((SOURCE / "package-lock.json").read_bytes()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pmd-kgc" / f"node-{digest}"
    cache.mkdir(parents=True, exist_ok=True)
    for file in SOURCE.iterdir():
        if file.is_file():
            shutil.copy(file, cache)
    if not (cache / "installed").exists():
        install(cache)
    return cache


def install(folder):
    """Fetch the pinned packages; their install scripts would only fetch what a GPU needs."""
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm did not finish within {INSTALL_SECONDS} s")
    if done.returncode:
        pytest.skip(
            f"npm cannot install transformers.js: {(done.stderr.strip() or 'no reason given').splitlines()[0]}"
        )
    (folder / "installed").touch()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    return export_bundles(tmp_path_factory.mktemp("exports"))


def ask(reader, tower, batches):
    """What the script answers to batches of texts or pairs."""
    return subprocess.run(
        ["node", "reader.mjs", str(tower)],
        cwd=reader,
        input=json.dumps(batches),
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
    )


@pytest.mark.parametrize("tower", [QUERY, ENTITY])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_transformers_js(reader, bundles, precision, tower):
    asked = [TEXTS, PAIRS] if tower == QUERY else [TEXTS]
    together = precision not in DYNAMIC_PRECISIONS  # else the scale of activations is the batch's
    batches = asked if together else [[text] for kind in asked for text in kind]
    done = ask(reader, bundles[precision] / tower, batches)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    answers = json.loads(done.stdout)
    encode = TowerEncoder.load(Bundle.open(bundles[precision]), tower, threads=1)
    for batch, answer in zip(batches, answers, strict=True):
        expected = encode(batch)
        for found in (answer["vectors"], answer["pooled"]):
            if found is not None:
                np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE[precision])
    assert [answer["pooled"] is None for answer in answers] == [isinstance(batch[0], tuple) for batch in batches]


def test_the_documentations_snippet(reader, bundles):
    documentation = (Path(__file__).parents[1] / "docs" / "hub.md").read_text(encoding="utf-8")
    snippet = documentation.split("```js\n")[1].split("```")[0]
    shown = "console.log(JSON.stringify([vectors.tolist(), sentence_embedding.tolist()]));\n"
    code = snippet.replace("bundles/umls-pmd-grade-3-fp32", str(bundles["fp32"])) + shown
    (reader / "snippet.mjs").write_text(code, encoding="utf-8")
    done = subprocess.run(["node", "snippet.mjs"], cwd=reader, capture_output=True, text=True, timeout=RUN_SECONDS)
    assert (done.returncode, done.stderr) == (0, "")
    encode = TowerEncoder.load(Bundle.open(bundles["fp32"]), QUERY, threads=1)
    for found, text in zip(json.loads(done.stdout), ["bacterium", ("bacterium", "causes")], strict=True):
        np.testing.assert_allclose(found, encode([text]), rtol=0, atol=TOLERANCE["fp32"])


def test_a_text_that_is_too_long_is_refused(reader, bundles):
    """transformers.js would cut it in another place than all other readers."""
    done = ask(reader, bundles["fp32"] / QUERY, [[" ".join(["alpha"] * 30)]])
    assert done.returncode == 1
    assert "32 tokens, at most 20 can be read" in done.stderr
