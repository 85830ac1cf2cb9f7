"""Turns, ratios, what sides read, and the processes that they are."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tiny_bundle
from tiny_bundle import tower_vectors

from pmd.benchmarks import side_process
from pmd.benchmarks.errors import MeasureError
from pmd.benchmarks.peers import rounds
from pmd.benchmarks.peers.material import Material, write_material
from pmd.benchmarks.peers.ours import pmd_side
from pmd.benchmarks.peers.ratios import ratio_of_medians
from pmd.benchmarks.peers.rounds import rotated, take_rounds, turns_of
from pmd.benchmarks.side_process import SideProcess
from pmd.serving.archive import pack

QUESTIONS = 16
BUSY = "import threading; threading.Event().wait()"


# ---- turns --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("questions", "count"), [(1, 1), (12, 3), (100, 20), (200, 20), (1000, 20), (5000, 100)])
def test_turns_cover_every_question_once(questions, count):
    turns = turns_of(questions)
    assert len(turns) == count
    assert (turns[0][0], turns[-1][1]) == (0, questions)
    assert all(before[1] == after[0] for before, after in pairwise(turns))
    assert all(1 <= last - first <= 50 for first, last in turns)


def test_each_side_begins_in_turn(monkeypatch):
    asked: list[tuple[str, tuple]] = []

    class Fake:
        def __init__(self, command, **_):
            self.name = command[-1].strip('"')

        def __enter__(self):
            return self

        def __exit__(self, *_):
            asked.append((self.name, ("end",)))

        end = __exit__

        def answer(self):
            return {}

        def ask(self, order):
            asked.append((self.name, tuple(order.items())))
            if self.name == "two" and order.get("first") == 5:
                raise MeasureError("enough")
            return {"top": [["a"]]} if "top" in order else {"laps_ns": [1]}

    monkeypatch.setattr(rounds, "SideProcess", Fake)
    given = {"command": ["x"], "environment": {}, "questions": 20, "limit_s": 1}
    found = take_rounds({name: name for name in ("one", "two", "three")}, **given)
    orders = [(name, dict(order)["first"]) for name, order in asked if order[0][0] == "first"]
    assert orders[:3] == [("one", 0), ("two", 0), ("three", 0)]  # untimed
    assert orders[3:6] == [("one", 0), ("two", 0), ("three", 0)]
    assert orders[6:9] == [("two", 5), ("three", 5), ("one", 5)]
    assert orders[9:] == [("three", 10), ("one", 10), ("one", 15), ("three", 15)]  # without the one that failed
    assert {name: len(turns) for name, turns in found.turns.items()} == {"one": 4, "three": 4}
    assert found.tops == {"one": [["a"]], "three": [["a"]]}
    assert found.failed == {"two": "enough"}
    with pytest.raises(MeasureError, match="enough"):  # the side that all are compared with
        take_rounds({"two": "two", "one": "one"}, **given)
    assert rotated("abc", 4) == ["b", "c", "a"]


# ---- ratios -------------------------------------------------------------------------------------------------


def laps(rng: np.random.Generator, scale: np.ndarray, spread: float = 0.1) -> list[np.ndarray]:
    """20 rounds of 10 laps around `scale` (20,) microseconds each."""
    noise = rng.lognormal(0, spread, size=(20, 10))
    return list((noise * scale[:, None] * 1000).astype(np.int64))


def test_a_ratio_is_of_medians():
    theirs, ours = [np.array([6, 6, 900])], [np.array([2, 3, 4])]
    assert ratio_of_medians(theirs, ours) == (2.0, [None, None])
    assert ratio_of_medians(theirs * 3, ours * 3) == (2.0, [2.0, 2.0])


def test_what_slows_both_sides_of_a_round_does_not_widen_the_interval():
    rng = np.random.default_rng(1)
    phases = np.repeat([100.0, 300.0], 10)
    drifting = ratio_of_medians(laps(rng, 3 * phases, 0.02), laps(rng, phases, 0.02))[1]
    apart = ratio_of_medians(laps(rng, 3 * phases[::-1], 0.02), laps(rng, phases, 0.02))[1]
    assert drifting[1] - drifting[0] < (apart[1] - apart[0]) / 3


def test_the_interval_holds_the_true_ratio_about_as_often_as_it_says():
    rng, held = np.random.default_rng(0), 0
    for _ in range(60):
        phases = rng.lognormal(4.6, 0.2, size=20)
        ratio, (low, high) = ratio_of_medians(laps(rng, 2 * phases), laps(rng, phases))
        assert low <= ratio <= high
        held += low <= 2 <= high
    assert 50 <= held <= 60
    again = laps(np.random.default_rng(5), phases), laps(np.random.default_rng(6), phases)
    assert ratio_of_medians(*again) == ratio_of_medians(*again)  # seeded


# ---- what they read -----------------------------------------------------------------------------------------


def written(bundle: Path, folder: Path) -> tuple[Material, dict]:
    folder.mkdir(exist_ok=True)
    request = {"bundle": str(bundle), "split": "test", "questions": QUESTIONS, "out": str(folder)}
    told = write_material(request)
    return Material.read(folder), told


def test_plain_numpy_and_an_index_answer_as_the_bundle_does(tiny_folder, tmp_path):
    """Known answers are left out on all three ways, and on all three equally many are named."""
    material, _ = written(tiny_folder, tmp_path)
    vectors = material.vectors()
    assert (vectors.dtype, vectors.flags.c_contiguous) == (np.float32, True)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)

    def search(vector: np.ndarray, count: int) -> list[int]:
        return np.argsort(-(vectors @ vector), kind="stable")[:count].tolist()

    def encode(pair: tuple[str, str]) -> np.ndarray:
        return tower_vectors([pair])[0]

    own = pmd_side({"bundle": str(tiny_folder), "threads": 1}, material)
    cosine, index = material.by_cosine(encode), material.by_search(encode, search)
    assert any(len(known) > 2 for known in material.known)
    for number, known in enumerate(material.known):
        best = own.top(number)
        assert cosine.top(number) == index.top(number) == best
        assert len(best) == min(10, len(material.ids) - len(known))
        assert not {material.ids[one] for one in known} & set(best)
        assert [material.ids[one] for one in cosine.ask(number)] == best


def test_known_answers_are_those_of_every_split(tiny_folder, tmp_path):
    material, _ = written(tiny_folder, tmp_path)
    triples = [*tiny_bundle.TRAIN, *tiny_bundle.VALID_TRIPLES, *tiny_bundle.TEST_TRIPLES]
    for question, known in zip(material.questions, material.known, strict=True):
        own, other = (2, 0) if question.inverse else (0, 2)
        expected = {t[other] for t in triples if (t[own], t[1]) == (question.entity, question.relation)}
        assert {material.ids[one] for one in known} == expected


def test_a_zip_gives_what_its_folder_gives(tiny_int8_folder, tmp_path):
    pack(tiny_int8_folder, tmp_path / "tiny.zip")
    (of_zip, zip_told), (of_folder, folder_told) = (
        written(tmp_path / "tiny.zip", tmp_path / "zip"),
        written(tiny_int8_folder, tmp_path / "folder"),
    )
    assert (of_zip.texts, of_zip.known, of_zip.ids) == (of_folder.texts, of_folder.known, of_folder.ids)
    np.testing.assert_array_equal(of_zip.vectors(), of_folder.vectors())
    own = tiny_int8_folder / "query"
    assert folder_told == {"query": str(own), "entities": 12, "questions": QUESTIONS}
    assert zip_told["query"] == str(tmp_path / "zip" / "query")
    for path in own.rglob("*"):
        assert path.is_dir() or (tmp_path / "zip/query" / path.relative_to(own)).read_bytes() == path.read_bytes()


# ---- processes ----------------------------------------------------------------------------------------------


def side_of(code: str, **given: float) -> SideProcess:
    return SideProcess([sys.executable, "-c", code], **given)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (
            "import sys; sys.exit('no space left')",
            "a side ended without an answer: exit code 1: no space left",
        ),
        ("print('chatter')", "a side said 'chatter', expected a JSON object"),
        ("print('[1]')", "a side said '[1]', expected a JSON object"),
        ('print(\'{"error": "planted"}\')', "planted"),
        ("input()", "no answer within 0.5 s, given up"),
    ],
)
def test_a_side_that_says_nothing_of_use(code, reason):
    with side_of(code, limit_s=0.5 if "input" in code else 60) as side, pytest.raises(MeasureError) as caught:
        side.answer()
    assert str(caught.value) == reason


def test_a_side_that_has_ended_before_its_turn():
    with side_of("print('{}', flush=True)") as side:
        assert side.answer() == {}
        side._process.wait()
        with pytest.raises(MeasureError, match=r"a side ended (before its turn|without an answer): exit code 0"):
            side.ask({"top": 1})
        side.end()  # and once more at the end of the block


def test_a_failure_of_the_parent_ends_a_busy_side_at_once(monkeypatch):
    monkeypatch.setattr(side_process, "PATIENCE_SECONDS", None)  # it would be waited for without end
    done: list[str] = []
    with pytest.raises(KeyError), side_of(BUSY) as side:
        kill, end = side._process.kill, side.end
        monkeypatch.setattr(side._process, "kill", lambda: (done.append("kill"), kill()))
        monkeypatch.setattr(side, "end", lambda: done.append("end") if "kill" not in done else end())
        raise KeyError
    assert done == ["kill"]
    assert side._process.returncode == -9


def test_a_side_that_does_not_end_when_told_is_killed(monkeypatch):
    monkeypatch.setattr(side_process, "PATIENCE_SECONDS", 0.1)
    with side_of(BUSY) as side:
        pass
    assert side._process.returncode == -9
