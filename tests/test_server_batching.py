"""Batches: who is answered together, who is turned away, and that no one's mistake is another's."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from serving_http import PATIENCE, GatedScorer, client_of
from test_server import ONE, QUESTION, error, plain

from pmd.serving import QueryError
from pmd.serving.server.app import create_app
from pmd.serving.server.batching import Batcher, Busy
from pmd.serving.server.limits import Limits

HEADS = ["aspirin", "ibuprofen", "insulin", "heart", "pancreas", "body", "fever", "pain"]


class Calls:
    """A call that waits for its gate, keeps what it was asked, and refuses negative numbers."""

    def __init__(self, *, is_open: bool = False) -> None:
        self.asked: list[tuple[str, list[int]]] = []
        self.gate, self.entered = threading.Event(), threading.Semaphore(0)
        if is_open:
            self.gate.set()

    def __call__(self, options: str, numbers: list[int]) -> list[str]:
        self.asked.append((options, list(numbers)))
        self.entered.release()
        assert self.gate.wait(PATIENCE)
        if any(number < 0 for number in numbers):
            raise QueryError(f"negative: {numbers}")
        return [f"{options}{number}" for number in numbers]


async def entered(calls) -> None:
    """Wait until a call is running."""
    assert await asyncio.to_thread(calls.entered.acquire, timeout=PATIENCE)


def run(work, calls, **limits):
    async def working():
        batcher = Batcher(calls, **{"max_questions": 8, "max_waiting": 10} | limits)
        try:
            return await asyncio.wait_for(work(batcher), PATIENCE)
        finally:
            calls.gate.set()
            batcher.close()

    return asyncio.run(working())


def test_what_waits_meanwhile_is_one_call():
    calls = Calls()

    async def work(batcher):
        first = batcher.submit("a", [0])
        await entered(calls)
        others = [batcher.submit("a", [number]) for number in range(1, 6)]
        assert batcher.waiting == 5
        calls.gate.set()
        return [await future for future in (first, *others)]

    assert run(work, calls) == [[f"a{number}"] for number in range(6)]
    assert calls.asked == [("a", [0]), ("a", [1, 2, 3, 4, 5])]


def test_other_options_and_large_requests_wait_for_their_own_call():
    calls = Calls()

    async def work(batcher):
        first = batcher.submit("a", [0])
        await entered(calls)
        asked = [("b", [1]), ("c", [2]), ("b", [3, 4, 5, 6]), ("b", [7, 8, 9]), ("c", [10]), ("b", [11])]
        futures = [first, *(batcher.submit(*request) for request in asked)]
        calls.gate.set()
        return [await future for future in futures]

    answers = run(work, calls, max_questions=6)
    assert answers[3] == ["b3", "b4", "b5", "b6"] and answers[6] == ["b11"]
    assert calls.asked == [("a", [0]), ("b", [1, 3, 4, 5, 6, 11]), ("c", [2, 10]), ("b", [7, 8, 9])]


def test_an_idle_thread_waits_for_nobody():
    calls = Calls(is_open=True)

    async def work(batcher):
        return [await batcher.submit("a", [number]) for number in range(3)]

    assert run(work, calls) == [["a0"], ["a1"], ["a2"]]
    assert calls.asked == [("a", [0]), ("a", [1]), ("a", [2])]


def test_threads_answer_at_once_and_share_what_waits():
    calls = Calls()

    async def work(batcher):
        futures = [batcher.submit("a", [0])]
        await entered(calls)
        futures.append(batcher.submit("a", [1]))
        await entered(calls)  # while the first call is still running
        futures += [batcher.submit("a", [number]) for number in range(2, 6)]
        calls.gate.set()
        return [await future for future in futures]

    assert run(work, calls, threads=2) == [[f"a{number}"] for number in range(6)]
    assert calls.asked[:3] == [("a", [0]), ("a", [1]), ("a", [2, 3])]  # half of the four that waited


def test_a_mistake_fails_alone():
    calls = Calls()

    async def work(batcher):
        first = batcher.submit("a", [0])
        await entered(calls)
        futures = [batcher.submit("a", numbers) for numbers in ([1, 2], [-3], [4], [5, -6], [7])]
        calls.gate.set()
        await first
        return [await future for future in futures]

    fine, wrong, after, half, last = run(work, calls)
    assert (fine, after, last) == (["a1", "a2"], ["a4"], ["a7"])
    assert str(wrong[0]) == "negative: [-3]" and half[0] == "a5" and str(half[1]) == "negative: [-6]"


def test_a_full_queue_turns_away_and_says_when_to_come_back():
    calls = Calls()

    async def work(batcher):
        futures = [batcher.submit("a", [0])]
        await entered(calls)
        futures += [batcher.submit("a", [1]), batcher.submit("a", [2])]
        with pytest.raises(Busy, match="2 requests wait already; try again in 1 s") as busy:
            batcher.submit("a", [3])
        assert busy.value.retry_seconds == 1
        futures.pop().cancel()  # a client that left makes room
        futures.append(batcher.submit("a", [4]))
        calls.gate.set()
        return [await future for future in futures]

    assert run(work, calls, max_waiting=2) == [["a0"], ["a1"], ["a4"]]
    assert calls.asked == [("a", [0]), ("a", [1, 4])]


def test_nobody_left_is_no_call():
    calls = Calls()

    async def work(batcher):
        first = batcher.submit("a", [0])
        await entered(calls)
        batcher.submit("a", [1]).cancel()
        calls.gate.set()
        await first
        return await batcher.submit("a", [2])

    assert run(work, calls) == ["a2"]
    assert calls.asked == [("a", [0]), ("a", [2])]


# ---- over HTTP ----------------------------------------------------------------------------------------------


@pytest.fixture
def gated(tiny_scorer):
    gated = GatedScorer(tiny_scorer)
    yield gated
    gated.gate.set()


def ask(client: httpx.Client, head: str) -> httpx.Response:
    return client.post(f"{ONE}/tails", json=QUESTION | {"head": head})


def until(holds) -> None:
    """Ask again and again until something holds."""
    last = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < last, "it never came to hold"


def waiting(client: httpx.Client) -> int:
    (line,) = [
        line for line in client.get("/metrics").text.splitlines() if line.startswith("pmd_waiting_requests{")
    ]
    return int(float(line.split()[-1]))


def test_clients_under_load_share_calls_and_get_their_own_answers(gated, tiny_scorer):
    with client_of(create_app({"tiny": gated})) as client, ThreadPoolExecutor(len(HEADS) + 1) as pool:
        first = pool.submit(ask, client, "cold_weather")
        assert gated.entered.acquire(timeout=PATIENCE)
        others = {head: pool.submit(ask, client, head) for head in HEADS}
        until(lambda: waiting(client) == len(HEADS))
        gated.gate.set()
        assert first.result().json() == plain(tiny_scorer.top_tails("cold_weather", "treats"))
        for head, answer in others.items():
            assert answer.result().json() == plain(tiny_scorer.top_tails(head, "treats"))
    assert [len(call) for call in gated.calls] == [1, len(HEADS)]


def test_more_than_may_wait_get_429(gated):
    app = create_app({"tiny": gated}, limits=Limits(max_waiting=2))
    with client_of(app) as client, ThreadPoolExecutor(3) as pool:
        accepted = [pool.submit(ask, client, "aspirin")]
        assert gated.entered.acquire(timeout=PATIENCE)
        accepted += [pool.submit(ask, client, head) for head in ("fever", "heart")]
        until(lambda: waiting(client) == 2)
        refused = ask(client, "pain")
        assert error(refused)[:2] == (429, "busy") and refused.headers["Retry-After"] == "1"
        assert ask(client, "asprin").status_code == 422  # mistakes are told apart from the queue
        gated.gate.set()
        assert [answer.result().status_code for answer in accepted] == [200, 200, 200]
        assert ask(client, "pain").status_code == 200


def test_a_request_out_of_time_gets_504_and_leaves_the_queue(gated):
    app = create_app({"tiny": gated}, limits=Limits(timeout_seconds=0.2))
    with client_of(app) as client, ThreadPoolExecutor(2) as pool:
        running = pool.submit(ask, client, "aspirin")
        assert gated.entered.acquire(timeout=PATIENCE)
        queued = pool.submit(ask, client, "fever")
        assert error(running.result())[:2] == (504, "timeout") and error(queued.result())[0] == 504
        assert waiting(client) == 0
        gated.gate.set()
        until(lambda: ask(client, "pain").status_code == 200)
    assert ["fever"] not in gated.calls


def test_a_client_that_leaves_is_dropped_from_the_queue(gated):
    with client_of(create_app({"tiny": gated})) as client, ThreadPoolExecutor(2) as pool:
        running = pool.submit(ask, client, "aspirin")
        assert gated.entered.acquire(timeout=PATIENCE)
        with httpx.Client(base_url=client.base_url, timeout=httpx.Timeout(PATIENCE, read=0.2)) as impatient:
            leaving = pool.submit(ask, impatient, "fever")
            until(lambda: waiting(client) == 1 or leaving.done())
            with pytest.raises(httpx.ReadTimeout):
                leaving.result()
        until(lambda: waiting(client) == 0)
        gated.gate.set()
        assert running.result().status_code == 200
        assert ask(client, "pain").status_code == 200
    assert [call for call in gated.calls if "fever" in call] == []


def test_a_body_that_does_not_arrive_gets_408(tiny_scorer):
    gate = threading.Event()

    def slow():
        yield b'{"head": '
        gate.wait(PATIENCE)
        yield b" " * 91

    with client_of(create_app({"tiny": tiny_scorer}, limits=Limits(timeout_seconds=0.2))) as client:
        with ThreadPoolExecutor(1) as pool:
            headers = {"Content-Type": "application/json", "Content-Length": "100"}
            answer = pool.submit(client.post, f"{ONE}/tails", content=slow(), headers=headers)
            until(lambda: 'code="slow_body"' in client.get("/metrics").text)
            gate.set()
            assert error(answer.result())[:2] == (408, "slow_body")
