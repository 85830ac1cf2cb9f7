"""The page in a headless Chromium: quiet, asked by the keyboard alone, narrow, dark, printed, without scripts."""

from __future__ import annotations

import itertools
import re
import time

import bench_rows
import pytest

from pmd.benchmarks import page as report_page
from pmd.benchmarks.peers.against import UNCOMPARED
from pmd.benchmarks.series import SERIES_COLOURS

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser; it is not installed")
expect = sync_api.expect
pytestmark = pytest.mark.slow
GROWTH = {"points": [{"entities": 10**n, "query_ms": 0.5 + 10**n / 1e5} for n in (3, 4, 5)], "fit": None}
PEER = UNCOMPARED | {"ratio": 2.0, "interval": [1.9, 2.1], "shared_top": 0.99, "versions": {"torch": "2.0"}}
NAMES = "rows => rows.filter(row => !row.hidden).map(row => row.cells[0].firstChild.textContent)"
MAX_TABS = 120
PATIENCE_MS = 120_000
PAPER = 710
"""Pixels between the margins of an A4 sheet."""


def full_report():
    """A report with every part of the page, and long names that want room."""
    long = "a_relation_with_a_rather_long_name_" * 4
    side = {"mrr": 0.5, "mean_rank": 2.0, "hits@1": 0.25, "hits@3": 0.5, "hits@10": 1.0, "queries": 20}
    analysis = {"by_relation": {"isa": side, "inverse isa": side, long: side}, "by_category": {"1-N": side}}
    extra = {
        "analysis": analysis,
        "against": {"torch": PEER},
        "batches": [{"size": 8, "queries_per_second": 900.0}],
    }
    rows = [{**row, **extra} for row in bench_rows.ladder_rows()]
    failed = bench_rows.failed_row("an error that is a very long word: " + "x" * 200)
    return bench_rows.report([*rows, failed], command="pmd-bench " + "bundles/a-long-name-" * 20)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(report_page.render(full_report()), encoding="utf-8")
    return file.as_uri()


@pytest.fixture
def opened(browser, address):
    """Opens the page in a context of its own; at the end nothing was complained of, and nothing asked for."""
    contexts, faults, asked = [], [], []

    def open_page(**settings):
        contexts.append(browser.new_context(**settings))
        contexts[-1].set_default_timeout(PATIENCE_MS)
        tab = contexts[-1].new_page()
        tab.on("console", lambda message: faults.append(message.text))
        tab.on("pageerror", lambda fault: faults.append(str(fault)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(address)
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []
    assert [url for url in asked if not url.startswith("data:")] == [address] * len(contexts)


def until(tab, holds):
    """Until a JavaScript expression holds: a busy machine may take a while to do what a key asks for."""
    last = time.monotonic() + PATIENCE_MS / 1000
    while not tab.evaluate(holds):
        assert time.monotonic() < last, holds


def reach(tab, selector):
    """Press Tab until the element has the focus, and shows it."""
    for _ in range(MAX_TABS):
        tab.evaluate("window.before = document.activeElement")
        tab.keyboard.press("Tab")
        until(tab, "document.activeElement !== window.before")
        if tab.evaluate("wanted => document.activeElement.matches(wanted)", selector):
            assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
            return
    pytest.fail(f"{selector} was not reached by {MAX_TABS} tabs")


def shown(tab, table="speed"):
    return [name.strip() for name in tab.locator(f"#{table}-table tbody tr").evaluate_all(NAMES)]


def sizes(tab):
    column = "rows => rows.map(row => row.cells[5].dataset.value).filter(value => value !== '').map(Number)"
    return tab.locator("#speed-table tbody tr").evaluate_all(column)


def test_a_heading_sorts_by_the_keyboard(opened):
    tab = opened()
    before = sizes(tab)
    reach(tab, "#speed-table th:nth-child(6) button")
    tab.keyboard.press("Enter")
    expect(tab.locator("#speed-table th:nth-child(6)")).to_have_attribute("aria-sort", "ascending")
    assert sizes(tab) == sorted(before) != before
    tab.keyboard.press("Space")
    expect(tab.locator("#speed-table th:nth-child(6)")).to_have_attribute("aria-sort", "descending")
    assert sizes(tab) == sorted(before, reverse=True)
    reach(tab, "#speed-table th:nth-child(7) button")
    tab.keyboard.press("Enter")
    expect(tab.locator("#speed-table th[aria-sort]")).to_have_count(1)
    expect(tab.locator("#speed-table th:nth-child(7)")).to_have_attribute("aria-sort", "ascending")


def test_what_is_unknown_sorts_last_both_ways(opened):
    tab = opened()
    button = tab.locator("#accuracy-table th:nth-child(4) button")
    for _ in range(2):
        button.press("Enter")
        value = tab.locator("#accuracy-table tbody tr:last-child td:nth-child(4)").get_attribute("data-value")
        assert value == ""


def test_filters_work_by_the_keyboard_on_tables_spread_and_relations(opened):
    tab = opened()
    everything = shown(tab)
    assert tab.text_content("#shown") == f"All {len(everything)} bundles shown."
    reach(tab, '#filters [data-value="int8"]')
    tab.keyboard.press("Space")
    expect(tab.locator('#filters [data-value="int8"]')).to_have_attribute("aria-pressed", "true")
    assert shown(tab) == shown(tab, "accuracy") == ["teacher", "grade 4", "grade 3"]
    reach(tab, '#filters [data-value="pmd"]')
    tab.keyboard.press("Enter")
    expect(tab.locator("#shown")).to_have_text(f"2 of {len(everything)} bundles shown.")
    assert shown(tab) == ["teacher", "grade 4"]
    assert tab.locator(".boxes tbody tr:visible").count() == tab.locator("details:visible").count() == 2
    reach(tab, "#show-all")
    tab.keyboard.press("Enter")
    expect(tab.locator("#shown")).to_have_text(f"All {len(everything)} bundles shown.")
    assert shown(tab) == everything
    assert tab.locator('#filters [aria-pressed="true"]').count() == 0


def test_two_of_one_group_show_both(opened):
    tab = opened()
    for value in ("grade 3", "grade 4"):
        tab.locator(f'#filters [data-value="{value}"]').press("Enter")
    assert set(shown(tab)) == {"grade 3", "grade 4"}
    tab.locator('#filters [data-key="front"]').press("Enter")
    assert tab.locator("#speed-table tbody tr:visible .front").count() == len(shown(tab)) > 0


def test_a_bundle_opens_by_the_keyboard_and_its_relations_sort(opened):
    tab = opened()
    reach(tab, "#relations-2 summary")
    tab.keyboard.press("Enter")
    until(tab, "document.getElementById('relations-2').open")
    names = "rows => rows.map(row => row.cells[0].textContent)"
    rows = tab.locator("#relations-2 tbody tr")
    before = rows.evaluate_all(names)
    tab.locator("#relations-2 th:nth-child(2) button").press("Enter")
    assert rows.evaluate_all(names) == before[::-1] != before


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_the_page_itself_never_scrolls_sideways(opened, width):
    tab = opened(viewport={"width": width, "height": 780})
    tab.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    shapes = [tab.locator(f"svg.{shape}:visible").count() for shape in ("narrow", "wide")]
    assert shapes == ([0, 2] if width == 768 else [2, 0])
    tops = [tab.locator(f"#{name}").bounding_box()["y"] for name in ("size", "latency")]
    assert (tops[0] == tops[1]) == (width == 1280)  # side by side where there is room


def luminance(colour):
    channels = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_reads_in_both_schemes(opened, scheme):
    tab = opened(color_scheme=scheme)
    colour = "([selector, what]) => getComputedStyle(document.querySelector(selector))[what]"
    page = tab.evaluate(colour, ["body", "backgroundColor"])
    assert (luminance(page) < 0.1) == (scheme == "dark")
    for selector in ("body", ".lead", "a", ".failed h2"):
        assert contrast(tab.evaluate(colour, [selector, "color"]), page) >= 4.5, selector
    paper = tab.evaluate(colour, ["figure", "backgroundColor"])
    line = tab.locator("svg.wide .spot, svg.narrow .spot").first.evaluate(
        "one => getComputedStyle(one.querySelector('use')).stroke"
    )
    assert contrast(line, paper) >= 3  # the drawing follows the scheme


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_paper_is_white_without_controls_and_nothing_is_cut_off(opened, scheme):
    tab = opened(color_scheme=scheme, viewport={"width": PAPER, "height": 1040})
    tab.emulate_media(media="print", color_scheme=scheme)
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    colour = "getComputedStyle(document.documentElement).getPropertyValue('--series-0')"
    assert tab.evaluate(colour).strip() == SERIES_COLOURS[0]
    assert not tab.is_visible("#filters")
    assert not tab.is_visible("nav")
    wide = "all => all.filter(one => one.scrollWidth > one.clientWidth + 1).map(one => one.id)"
    assert tab.locator("table").evaluate_all(wide) == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= PAPER
    assert tab.pdf(prefer_css_page_size=True).startswith(b"%PDF")


def test_without_scripts_everything_is_there_and_no_control_is_dead(opened):
    tab = opened(java_script_enabled=False)
    assert tab.locator("button:visible").count() == 0
    assert tab.locator("#speed-table tbody tr:visible").count() == len(full_report()["results"])
    tab.locator("#relations-1 summary").click()
    assert tab.is_visible("#relations-1 table")


def test_a_screen_reader_is_told_what_is_drawn(opened):
    tab = opened()
    size = tab.get_by_role("img", name="Accuracy against size")
    assert size.count() == 1  # the other shape is not there for anyone
    words = size.evaluate("one => document.getElementById(one.getAttribute('aria-describedby')).textContent")
    assert "grade 4 int8: 45.4 MB, MRR 0.857" in words
    assert tab.get_by_role("img", name=re.compile("^teacher fp32: p50 9.10 ms")).count() == 1
    assert tab.get_by_role("table", name=re.compile("^Accuracy of each bundle")).count() == 1
    assert tab.get_by_role("columnheader", name="size, MB").first.get_by_role("button").count() == 1
    assert tab.get_by_role("navigation", name="Contents").count() == 1
    levels = tab.locator("h1, h2, h3").evaluate_all("all => all.map(one => Number(one.tagName[1]))")
    assert levels[0] == 1
    assert all(later - earlier <= 1 for earlier, later in itertools.pairwise(levels))


def test_every_link_of_the_contents_leads_somewhere(opened):
    tab = opened()
    links = tab.locator("nav a, a.skip").evaluate_all("all => all.map(one => one.getAttribute('href'))")
    assert len(links) >= 10
    for link in links:
        assert tab.locator(link).count() == 1, link
