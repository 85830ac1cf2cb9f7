"""The pages in a real browser, driven by the keyboard alone."""

from __future__ import annotations

import time

import pytest
from serving_http import PATIENCE, running

from pmd.serving import Scorer
from pmd.serving.server.app import create_app

pytestmark = pytest.mark.slow


@pytest.fixture
def page(browser):
    context = browser.new_context()
    context.set_default_timeout(1000 * PATIENCE)
    page = context.new_page()
    page.faults = []
    page.on("pageerror", lambda fault: page.faults.append(str(fault)))
    page.on("console", lambda message: page.faults.append(message.text) if message.type == "error" else None)
    yield page
    context.close()


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def wait_for(page, holds):
    """Until a JavaScript expression holds; the page's policy forbids Playwright's own way, which evaluates text."""
    last = time.monotonic() + PATIENCE
    while not page.evaluate(holds):
        assert time.monotonic() < last, holds


def reach(page, name):
    """Press Tab until the element of this id has the focus, and shows it."""
    for _ in range(40):
        if page.evaluate("document.activeElement.id") == name:
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
            return
        press(page, "Tab")
    raise AssertionError(f"Tab does not lead to {name}")


def loaded(page, url):
    page.goto(url)
    wait_for(page, "document.querySelector('#relation').options.length > 0")


def answers(page):
    wait_for(page, "document.querySelector('#status').textContent.includes('answer')")
    rows = page.locator("#answers tbody tr").all()
    return [row.locator("td").all_inner_texts()[:4] for row in rows]


def rows_of(predictions):
    return [
        [str(rank), f"{found.score:.4f}", found.name, found.entity] for rank, found in enumerate(predictions, 1)
    ]


def test_a_question_is_asked_and_explained_by_keyboard(page, tiny_scorer):
    with running(create_app({"tiny": tiny_scorer})) as url:
        loaded(page, url)
        assert "12 entities" in page.locator("#about").inner_text()
        reach(page, "entity")
        page.keyboard.type("heart_a")
        wait_for(page, "document.querySelectorAll('#entities option').length === 1")
        assert page.locator("#entities option").get_attribute("value") == "heart_attack"
        page.keyboard.type("ttack")
        reach(page, "relation")
        press(page, "c")  # a select goes to the option that begins so
        reach(page, "k")
        press(page, "Control+A")
        page.keyboard.type("3")
        press(page, "Enter")
        assert answers(page) == rows_of(tiny_scorer.top_tails("heart_attack", "causes", 3))
        assert page.locator("#status").inner_text().startswith("3 answers in ")
        assert page.locator("#asked").inner_text() == "heart_attack – causes – ?"

        while page.evaluate("document.activeElement.textContent") != "Explain":
            press(page, "Tab")
        press(page, "Enter")
        page.wait_for_selector("tr.why")
        best = tiny_scorer.top_tails("heart_attack", "causes", 1)[0]
        explanation = tiny_scorer.explain("heart_attack", "causes", best.entity)
        shown = page.locator("tr.why").inner_text()
        assert explanation.answer_text in shown and explanation.nearest[0].head in shown
        assert page.evaluate("document.activeElement.getAttribute('aria-expanded')") == "true"
        press(page, "Enter")
        page.wait_for_selector("tr.why", state="detached")
    assert page.faults == []


def test_heads_known_answers_and_texts(page, tiny_scorer):
    tiny_scorer.add_entity("marked", name="<b>pain</b>")
    with running(create_app({"tiny": tiny_scorer})) as url:
        loaded(page, url)
        page.locator("input[name=asks]:checked").focus()
        press(page, "ArrowDown")
        assert page.locator("#entity-label").inner_text() == "Tail"
        reach(page, "entity")
        page.keyboard.type("pain")
        reach(page, "include-known")
        press(page, "Space")
        reach(page, "k")  # behind this box: Tab goes round the page
        press(page, "Control+A")
        page.keyboard.type("13")
        press(page, "Enter")
        expected = tiny_scorer.top_heads("treats", "pain", 13, exclude_known=False)
        assert answers(page) == rows_of(expected) and "<b>pain</b>" in str(rows_of(expected))
        reach(page, "entity")
        page.keyboard.type("pain in the <b>heart</b>")
        reach(page, "is-text")
        press(page, "Space", "Enter")
        wait_for(page, "document.querySelector('#asked').textContent.includes('<b>heart</b>')")
        text = "pain in the <b>heart</b>"
        expected = tiny_scorer.top_heads("treats", text, k=13, tail_is_text=True, exclude_known=False)
        assert answers(page) == rows_of(expected)
        assert page.locator("main b").count() == 0  # shown as text
    assert page.faults == []


def test_mistakes_are_announced(page, tiny_scorer):
    with running(create_app({"tiny": tiny_scorer})) as url:
        loaded(page, url)
        reach(page, "entity")
        page.keyboard.type("asprin")
        press(page, "Enter")
        wait_for(page, "document.querySelector('#error').textContent !== ''")
        error = page.locator("#error")
        assert "nearest: aspirin" in error.inner_text() and error.get_attribute("role") == "alert"
        assert not page.locator("#answers").is_visible()
        press(page, "Control+A")
        page.keyboard.type("aspirin")
        press(page, "Enter")
        assert answers(page) == rows_of(tiny_scorer.top_tails("aspirin", "treats"))
        assert error.inner_text() == ""
    assert [fault for fault in page.faults if "422" not in fault] == []


def test_the_pages_ask_for_the_key(page, tiny_scorer):
    with running(create_app({"tiny": tiny_scorer}, api_key=b"a-key")) as url:
        for path, done in (("/", "#relation option"), ("/docs", "#document h2")):
            page.goto(url + path)
            wait_for(page, "document.activeElement.id === 'key'")
            page.keyboard.type("wrong")
            press(page, "Enter")
            wait_for(page, "document.querySelector('#error').textContent.includes('Bearer')")
            press(page, "Control+A")
            page.keyboard.type("a-key")
            press(page, "Enter")
            page.wait_for_selector(done, state="attached")
            assert not page.locator("#key-form").is_visible()
            assert page.locator("#error").inner_text() == ""
    assert [fault for fault in page.faults if "401" not in fault] == []


def test_another_bundle_brings_its_own_relations(page, tiny_scorer, tiny_int8_folder):
    with running(create_app({"first": tiny_scorer, "second": Scorer.load(tiny_int8_folder, threads=1)})) as url:
        loaded(page, url)
        assert "fp32" in page.locator("#about").inner_text()
        reach(page, "bundle")
        press(page, "s")
        wait_for(page, "document.querySelector('#about').textContent.includes('int8')")
    assert page.faults == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_all_and_its_colours_are_told_apart(browser, tiny_scorer, scheme):
    with running(create_app({"tiny": tiny_scorer})) as url:
        context = browser.new_context(viewport={"width": 360, "height": 640}, color_scheme=scheme)
        page = context.new_page()
        for path, ready in (("/", "#relation option"), ("/docs", "#document h2")):
            page.goto(url + path)
            page.wait_for_selector(ready, state="attached")
            assert page.evaluate("document.documentElement.scrollWidth") <= 360
            ink, paper = page.evaluate(
                "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
            )
            assert (brightness(ink) < brightness(paper)) == (scheme == "light")
            assert abs(brightness(ink) - brightness(paper)) > 150
            unnamed = page.evaluate(
                "[...document.querySelectorAll('input, select')].filter((one) => !one.labels.length).length"
            )
            assert unnamed == 0
        context.close()


def brightness(colour):
    """Mean of a CSS colour `rgb(r, g, b)`, 0 to 255."""
    return sum(int(part) for part in colour.removeprefix("rgb(").rstrip(")").split(",")) / 3


def test_the_docs_page_shows_every_address(page, tiny_scorer):
    app = create_app({"tiny": tiny_scorer})
    with running(app) as url:
        page.goto(f"{url}/docs")
        page.wait_for_selector("#document h2")
        titles = page.locator("#document h2").all_inner_texts()
        assert "POST /v1/bundles/{bundle}/tails" in titles and "GET /ready" in titles
        assert "from 1, to 1000" in page.locator("#TailsQuestion").inner_text()
    assert page.faults == []
