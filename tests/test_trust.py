"""The runner of attacks itself: what counts as a failure, and what the page shows."""

from __future__ import annotations

import json
import sys

import pytest

from tests.trust.attack import Attack, Ground, Tally
from tests.trust.page import BEGIN, END, PAGE, RESULTS, shown, with_table
from tests.trust.runner import all_attacks, make, make_all, make_apart


def three_cases(ground: Ground) -> Tally:
    tally = Tally()
    (ground.folder / "a file").write_text("removed with the folder")
    tally.saw("BundleError", ground.count - 1)
    tally.failed(f"case {ground.random.randrange(10)}\nbroke")
    tally.figures["slowest_ms"] = 12.345
    return tally


def attack(**other) -> Attack:
    facts = {"name": "tried", "part": "crashes", "what": "It holds.", "run": three_cases, "quick": 3, "full": 30}
    return Attack(**facts | other)


def child(code: str) -> tuple[str, ...]:
    return sys.executable, "-c", code


def test_a_finding_counts_what_held_and_what_failed():
    finding = make(attack(), 3, seed=1)
    assert (finding["cases"], finding["failed"], finding["outcomes"]) == (3, 1, {"BundleError": 2})
    assert finding["failures"] == make(attack(), 3, seed=1)["failures"] == ["case 2 broke"]
    assert shown(finding).splitlines()[1] == "    case 2 broke"


def test_failures_are_all_counted_but_only_some_kept():
    tally = Tally()
    for number in range(50):
        tally.failed(f"case {number}")
    assert (tally.failed_cases, tally.cases, len(tally.failures)) == (50, 50, 20)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import os; os.kill(os.getpid(), 11)", "ended with -11"),
        ("raise SystemError('odd')", "SystemError: odd"),
        ("pass", "ended with 0"),
        ("import time; time.sleep(60)", "still running after 1 s"),
    ],
)
def test_an_attack_that_crashes_or_hangs_is_a_failure(code, why):
    finding = make_apart(attack(limit_seconds=1), 2, 0, child(code))
    assert finding["failed"] == 1
    assert why in finding["failures"][0]


def test_an_attack_that_cannot_be_made_says_why():
    finding = make_apart(attack(skip=lambda: "no emulator here"), 3, 0, child("1/0"))
    assert (finding["skipped"], finding["failed"]) == ("no emulator here", 0)
    assert shown(finding) == "skipped  tried: no emulator here"


def test_those_that_measure_time_come_last(monkeypatch):
    monkeypatch.setattr(
        "tests.trust.runner.make_apart", lambda attack, count, seed: {"attack": attack.name, "n": count}
    )
    attacks = [attack(name="timed", alone=True), attack(name="first"), attack(name="second")]
    found = list(make_all(attacks, lambda attack: attack.full, 0, jobs=2))
    assert found == [{"attack": name, "n": 30} for name in ("first", "second", "timed")]


def test_the_page_shows_the_recorded_findings():
    page = PAGE.read_text(encoding="utf-8")
    recorded = json.loads(RESULTS.read_text(encoding="utf-8"))["attacks"]
    assert with_table(page, recorded) == page
    assert {finding["attack"] for finding in recorded} == set(all_attacks())
    assert not [finding["attack"] for finding in recorded if finding["failed"]]


def test_a_page_without_a_place_for_figures_is_refused():
    with pytest.raises(ValueError, match="no place"):
        with_table("# Trust", [])
    assert with_table(f"a\n{BEGIN}old{END}b\n", []).startswith(f"a\n{BEGIN}")
