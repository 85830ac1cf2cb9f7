"""The page: everything in it, nothing from outside, and the same in a real browser."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import bench_rows
import pytest

from pmd.benchmarks import page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NAMESPACES = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Structure(HTMLParser):
    """Checks that elements nest, and collects ids, references, visible text, and what tables and drawings tell."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.text: list[str] = []
        self.told: list[tuple[str, list[str]]] = []
        """Each table and outer svg, with the captions, titles and descriptions directly in it."""
        self.attributes: set[str] = set()
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        parent = self.open[-1] if self.open else ""
        self.handle_startendtag(tag, attrs)
        if tag in ("table", "svg"):
            self.told.append((tag, []))
        if (parent, tag) in (("table", "caption"), ("svg", "title"), ("svg", "desc")) and "hidden" not in dict(
            attrs
        ):
            self.told[-1][1].append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        names = dict(attrs)
        self.attributes |= set(names)
        self.ids += [names["id"]] if "id" in names else []
        self.references += [
            value for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "action")
        ]
        for name in ("aria-labelledby", "aria-describedby"):
            self.references += [f"#{one}" for one in names.get(name, "").split()]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)


@pytest.fixture(scope="module")
def text() -> str:
    return page.render(bench_rows.report([*bench_rows.ladder_rows(), bench_rows.failed_row("damaged <here>")]))


def test_it_is_well_formed_and_self_contained(text):
    structure = Structure(text)
    assert len(set(structure.ids)) == len(structure.ids)
    for reference in structure.references:
        assert reference.startswith(("#", "data:"))
        if reference.startswith("#"):
            assert reference[1:] in structure.ids
    assert set(re.findall(r"https?://[^\s\"'<>)]+", text)) <= NAMESPACES
    assert not re.search(r"@import|url\((?!#)", text)
    assert "default-src 'none'" in text


def test_every_table_and_drawing_is_told_in_words(text):
    told = Structure(text).told
    assert [tag for tag, _ in told].count("table") >= 3
    assert [tag for tag, _ in told].count("svg") == 4 + len(bench_rows.ladder_rows())
    for tag, words in told:
        assert ("caption" if tag == "table" else "title") in words
    assert "grade 4 int8: 45.4 MB, MRR 0.857" in text
    assert "grade 4 int8: p50 2.27 ms, p95 3.02 ms, p99 4.54 ms" in text


def test_its_policy_lets_its_own_script_run_and_no_other(text):
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    rules = dict(rule.strip().split(" ", 1) for rule in html.unescape(policy).split(";"))
    assert rules == {
        "default-src": "'none'",
        "style-src": "'unsafe-inline'",
        "script-src": f"'sha256-{digest}'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert not {name for name in Structure(text).attributes if name.startswith("on")}


def test_without_scripts_there_are_no_dead_controls(text):
    """Headings are plain, and the filters are hidden, until the script makes them work."""
    outside = re.sub(r'<div class="filters" id="filters"[^>]*hidden>.*?</div>\n</div>', "", text, flags=re.DOTALL)
    assert outside != text
    assert "<button" not in outside


def test_it_tells_everything(text):
    seen = " ".join(" ".join(Structure(text).text).split())
    for wanted in ("teacher", "baseline", "0.8720", "182", "99.5 %", "A processor", "pmd-bench bundles/x"):
        assert wanted in seen
    for heading in (
        "p50, ms",
        "queries/s",
        "cold start, ms",
        "peak memory, MB",
        "Hits@10",
        "head MRR",
        "tail MRR",
        "kept",
    ):
        assert heading in seen
    assert "1 bundle could not be measured" in seen
    assert "damaged <here>" in seen
    assert "teacher fp32: 182.0 MB, MRR 0.872" in html.unescape(text)


def test_what_comes_from_a_bundle_is_escaped():
    evil = "<script>alert(1)</script>"
    rows = [
        bench_rows.row(method=evil, bundle=evil),
        {**bench_rows.failed_row(evil), "stage": None, "bundle": evil},
    ]
    rendered = page.render(bench_rows.report(rows, dataset=evil, command=evil))
    assert evil not in rendered
    assert "&lt;script&gt;alert(1)" in rendered


@pytest.mark.parametrize("rows", [[], [bench_rows.failed_row()], [bench_rows.row()]])
def test_it_is_made_of_few_rows_or_none(rows):
    Structure(page.render(bench_rows.report(rows, dataset=None)))


def test_highlights_name_each_bundle_once():
    rows = [
        bench_rows.row("teacher", "fp32", 0.872, 182),
        bench_rows.row("grade-4", "int8", 0.857, 45),
        bench_rows.row("grade-3", "int8", 0.80, 43),
    ]
    found = {card["title"]: card for card in page.highlights(rows)}
    assert list(found) == ["Most accurate", "Smallest keeping 97 %", "Smallest, fastest"]
    assert found["Most accurate"]["against"] == ""
    against = found["Smallest keeping 97 %"]["against"]
    assert against == "Against teacher fp32: 4.0 × smaller, 4.0 × as fast, 98.3 % of its MRR."


def open_in_browser(file: Path, folder: Path) -> tuple[list[str], list[str], str]:
    """Console lines, URLs that the page asked for, and the page's DOM once its script has run."""
    log = folder / "net.json"
    switches = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    done = subprocess.run(
        [
            *(str(CHROMIUM), *switches.split(), "--disable-component-update", "--disable-sync"),
            *(f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--v=0", f"--log-net-log={log}"),
            *("--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom", file.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    requests = [event.get("params", {}) for event in json.loads(log.read_text(encoding="utf-8"))["events"]]
    # The browser's own housekeeping has no page as its initiator.
    asked = [r["url"] for r in requests if "url" in r and r.get("initiator", "not an origin") != "not an origin"]
    return console, [url for url in asked if not url.startswith(("file:", "data:"))], done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; apt-get install chromium to run this")
def test_a_browser_opens_it_without_errors_and_asks_for_nothing(text, tmp_path):
    (tmp_path / "report.html").write_text(text, encoding="utf-8")
    console, asked, dom = open_in_browser(tmp_path / "report.html", tmp_path / "good")
    assert console == []
    assert asked == []
    assert dom.count("<button") > text.count("<button")  # its script ran: headings became buttons


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; apt-get install chromium to run this")
def test_the_browser_check_sees_errors_and_requests(tmp_path):
    bad = "<!doctype html><img src='http://example.invalid/x.png'><script>undefinedCall()</script>"
    (tmp_path / "bad.html").write_text(bad, encoding="utf-8")
    console, asked, _ = open_in_browser(tmp_path / "bad.html", tmp_path / "bad")
    assert any("undefinedCall is not defined" in line for line in console)
    assert asked == ["http://example.invalid/x.png"]
