"""The page of examples/browser on a server of its own, asked through playwright and compared with `Scorer`."""

from __future__ import annotations

import json
import shutil
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from playwright.sync_api import expect

from pmd.serving.bundle import MANIFEST

PAGE = Path(__file__).parents[1] / "examples" / "browser"
FIRST_LOAD_MS = 60_000


class Site(ThreadingHTTPServer):
    """The page, its packages, and bundles under `bundles/NAME/`, on a free port of this machine."""

    def __init__(self, packages):
        self.packages, self.bundles, self.headers = packages, {}, {}
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(SimpleHTTPRequestHandler):
    def translate_path(self, path):
        first, _, rest = unquote(urlsplit(path).path).lstrip("/").partition("/")
        if first == "node_modules":
            return str(self.server.packages / rest)
        if first == "bundles":
            name, _, rest = rest.partition("/")
            return str(self.server.bundles.get(name, PAGE / name) / rest)
        return str(PAGE / (first or "index.html"))

    def end_headers(self):
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *_):
        """Nothing: the test says what went wrong."""


def opened(page, site, bundle, query=""):
    """The page with a bundle that stands beside it."""
    site.bundles[bundle.parent.name] = bundle
    page.goto(f"{site.address}?bundle=bundles/{bundle.parent.name}{query}")
    return settled(page)


def settled(page):
    expect(page.locator("#status")).not_to_have_text("Working…", timeout=FIRST_LOAD_MS)
    return page


def ask(page, entity, relation, *, asked="tails", is_text=False, known=False, reranked=False, k=10):
    """[(id, score)] as the page shows them."""
    page.fill("#entity", entity)
    page.select_option("#relation", relation)
    page.select_option("#asked", asked)
    page.fill("#k", str(k))
    for box, ticked in (("is-text", is_text), ("exclude-known", not known), ("reranked", reranked)):
        if page.is_enabled(f"#{box}"):
            page.set_checked(f"#{box}", ticked)
    page.press("#entity", "Enter")
    settled(page)
    assert page.text_content("#error") == ""
    rows = "rows => rows.map(row => [row.cells[2].textContent, Number(row.querySelector('data').value)])"
    return [tuple(row) for row in page.locator("#answers tbody tr").evaluate_all(rows)]


def wanted(scorer, entity, relation, *, asked="tails", is_text=False, known=False, reranked=False):
    """Every answer that Scorer gives, best first."""
    how = {"exclude_known": not known, "reranked": reranked}
    if asked == "tails":
        return scorer.top_tails(entity, relation, scorer.num_entities, head_is_text=is_text, **how)
    return scorer.top_heads(relation, entity, scorer.num_entities, tail_is_text=is_text, **how)


def check(found, expected, tolerance, k=10):
    """The same answers, scores within the tolerance, in an order that such a difference can explain."""
    scores = {answer.entity: answer.score for answer in expected}
    assert len({entity for entity, _ in found}) == len(found) == min(k, len(expected))
    for (entity, score), best in zip(found, expected, strict=False):
        assert score == pytest.approx(scores[entity], abs=tolerance)
        assert entity == best.entity or scores[entity] == pytest.approx(best.score, abs=2 * tolerance)
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)


def check_all(page, scorer, tolerance, **how):
    """Every question of the graph in both directions; most have the very same order."""
    same = []
    for entity in scorer.entity_ids:
        for relation in scorer.relation_ids:
            for asked in ("tails", "heads"):
                found = ask(page, entity, relation, asked=asked, **how)
                expected = wanted(scorer, entity, relation, asked=asked, **how)
                check(found, expected, tolerance)
                same.append([one for one, _ in found] == [one.entity for one in expected[:10]])
    assert len(same) == 72
    assert np.mean(same) >= 0.95


def edited(bundle, target, name, change):
    """A copy of a bundle with one file changed, and its size in the manifest."""
    shutil.copytree(bundle, target / "bundle")
    file, manifest = target / "bundle" / name, target / "bundle" / MANIFEST
    file.write_bytes(change(file.read_bytes()))
    if name != MANIFEST:
        facts = json.loads(manifest.read_bytes())
        facts["files"][name]["bytes"] = file.stat().st_size
        manifest.write_text(json.dumps(facts), encoding="utf-8")
    return target / "bundle"
