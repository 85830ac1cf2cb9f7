"""A server under mixed load for as long as one likes: questions, mistakes, changes, reloads, looks at /metrics.

Two bundles are served. Nobody changes the steady one, so every answer from it is known beforehand. The changing
one is changed by one client, which makes the same changes to a Scorer of its own and asks both. Both bundles are
reloaded again and again, by HTTP and by SIGHUP, and once in a while from a folder that is not whole.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.trust.asking import Client, Served, served
from tests.trust.attack import Attack, Ground, Tally
from tests.trust.growth import Samples

if TYPE_CHECKING:
    from pmd.serving import Scorer

STEADY, CHANGING, JOURNALS = "steady", "changing", "journals"
ASKERS, FORM_ASKERS = 6, 2
THINKING_SECONDS = 0.02
OWN_BUNDLE = "PMD_SOAK_BUNDLE"  # of the environment: a bundle's folder to serve in place of the tiny one
CHANGE_SECONDS, RELOAD_SECONDS, HANGUP_SECONDS, SCRAPE_SECONDS, BREAK_SECONDS = 0.4, 3.0, 7.0, 5.0, 11.0
ANEW_SECONDS = 30.0  # between journals: what a bundle and its journal hold grows with the changes, by rights
PATIENCE_SECONDS = 20.0
NEW_ENTITIES = 40  # ids that come and go: as many as ever are there at once
SAME = 3e-7  # between scores: float32, with what else stands in the same call
MISTAKES: tuple[tuple[str, str, Any, int], ...] = (
    ("POST", "tails", {"head": "asprin", "relation": "treats"}, 422),
    ("POST", "tails", {"head": "aspirin", "relation": "treats", "k": 0}, 422),
    ("POST", "tails", [1], 400),
    ("POST", "heads", {"relation": "treats"}, 422),
    ("POST", "score", {"triples": [["aspirin", "treats", "nobody"]]}, 422),
    ("GET", "tails", None, 405),
    ("GET", "nothing", None, 404),
    ("GET", "entities?limit=0", None, 422),
)


class Soak:
    """One run: who asks, what must come back, and when it is over."""

    def __init__(self, server: Served, folder: Path, ground: Ground, tally: Tally) -> None:
        from pmd.serving import Scorer

        self.server, self.folder, self.tally, self.seed = server, folder, tally, ground.seed
        self.steady = Scorer.load(folder / STEADY, threads=1)
        self.mirror = Scorer.load(folder / CHANGING, threads=1)
        self.last = time.monotonic() + ground.count
        self.samples = Samples(ground.count)
        self.ids = list(self.steady.entity_ids), list(self.steady.relation_ids)

    async def run(self) -> None:
        """All clients until the time is over."""
        ids = self.ids
        async with asyncio.TaskGroup() as group:
            for number in range(ASKERS):
                group.create_task(self._ask(STEADY, ids, random.Random(self.seed * 100 + number), self._exact))
            for number in range(FORM_ASKERS):
                group.create_task(
                    self._ask(CHANGING, ids, random.Random(self.seed * 100 + 50 + number), self._form)
                )
            for work in (self._change(), self._reload(), self._hang_up(), self._scrape(), self._sample()):
                group.create_task(work)

    async def _ask(self, bundle: str, ids: Any, rng: random.Random, right: Any) -> None:
        client = Client(self.server.port, seconds=PATIENCE_SECONDS)
        while self._goes_on():
            path, body, expected = _question(rng, *ids)
            if rng.random() < 0.1:
                await self._mistaken(client, bundle, rng)
            started = time.perf_counter()
            answer = await self._answer(client, "POST", f"/v1/bundles/{bundle}/{path}", body)
            if answer is not None:
                self.samples.answered(time.perf_counter() - started)
                self._judge(f"{bundle} {path}", body, right(answer, expected), answer)
            await asyncio.sleep(rng.uniform(0, 2 * THINKING_SECONDS))
        self.tally.figures["retries"] = int(self.tally.figures.get("retries", 0)) + client.retries
        client.close()

    async def _answer(self, client: Client, method: str, path: str, body: Any = None) -> tuple[int, Any] | None:
        """Status and answer; None if there was none, which fails."""
        try:
            return await client.ask(method, path, body)
        except (OSError, EOFError, TimeoutError) as error:
            self.tally.failed(f"{method} {path} {json.dumps(body)[:200]}: {type(error).__name__} {error}")
            return None

    def _judge(self, what: str, body: Any, right: bool, answer: tuple[int, Any]) -> None:
        if right:
            self.tally.saw(f"right: {what}")
        else:
            self.tally.failed(f"{what} {json.dumps(body)[:200]}: {answer[0]} {json.dumps(answer[1])[:300]}")

    async def _mistaken(self, client: Client, bundle: str, rng: random.Random) -> None:
        method, path, body, expected = rng.choice(MISTAKES)
        answer = await self._answer(client, method, f"/v1/bundles/{bundle}/{path}", body)
        if answer is not None:
            told = isinstance(answer[1], dict) and set(answer[1].get("error", {})) == {"code", "message"}
            self._judge("mistake refused", [path, body], answer[0] == expected and told, answer)

    def _exact(self, answer: tuple[int, Any], expected: Any) -> bool:
        return answer[0] == 200 and alike(answer[1], expected(self.steady))

    def _form(self, answer: tuple[int, Any], expected: Any) -> bool:
        """Of a bundle that changes meanwhile: an answer, or that an entity is not there (any more)."""
        return answer[0] in (200, 422) and isinstance(answer[1], dict)

    # ---- changes --------------------------------------------------------------------------------------------

    async def _change(self) -> None:
        rng, there = random.Random(self.seed + 1), set[str]()
        client = Client(self.server.port, seconds=PATIENCE_SECONDS, admin=True, keep=False)
        one, anew_at = f"/v1/bundles/{CHANGING}/entities", time.monotonic() + ANEW_SECONDS
        while self._goes_on():
            if time.monotonic() > anew_at:
                await self._begin_anew(client, there)
                anew_at = time.monotonic() + ANEW_SECONDS
            entity = f"new_{rng.randrange(NEW_ENTITIES)}"
            text = {"name": rng.choice(("pain", "new drug", entity)), "description": f"a drug {rng.random():.6f}"}
            if entity not in there:
                asked = ("POST", one, {"id": entity, **text}, 201)
            elif rng.random() < 0.5:
                asked = ("PATCH", f"{one}/{entity}", text, 200)
            else:
                asked = ("DELETE", f"{one}/{entity}", None, 200)
            answer = await self._answer(client, *asked[:3])
            if answer is not None:
                _mirrored(self.mirror, asked[0], entity, text, there)
                facts = (answer[1].get("entity"), answer[1].get("entities"), answer[1].get("kept"))
                right = answer[0] == asked[3] and facts == (entity, self.mirror.num_entities, True)
                self._judge(f"change {asked[0]}", asked[2], right, answer)
                await self._compare(client, entity)
            await asyncio.sleep(CHANGE_SECONDS)

    async def _begin_anew(self, client: Client, there: set[str]) -> None:
        """Leave all changes behind: move the journal away, and reload."""
        from pmd.serving import Scorer

        (self.folder / JOURNALS / f"{CHANGING}.journal").rename(self.folder / "left.journal")
        answer = await self._answer(client, "POST", f"/v1/bundles/{CHANGING}/reload")
        self.mirror = Scorer.load(self.folder / CHANGING, threads=1)
        there.clear()
        if answer is not None:
            right = answer[0] == 200 and answer[1].get("entities") == self.mirror.num_entities
            self._judge("reload with a new journal", None, right, answer)

    async def _compare(self, client: Client, entity: str) -> None:
        """A question about the entity that was just changed, to the server and to the mirror."""
        tail, relation = self.ids[0][0], self.ids[1][0]
        body = {"relation": relation, "tail": tail, "k": 60, "exclude_known": False}
        answer = await self._answer(client, "POST", f"/v1/bundles/{CHANGING}/heads", body)
        if answer is not None:
            expected = _top(self.mirror.top_heads(relation, tail, 60, exclude_known=False))
            self._judge("answer after a change", entity, answer[0] == 200 and alike(answer[1], expected), answer)
        answer = await self._answer(client, "GET", f"/v1/bundles/{CHANGING}/entities?query={entity}&limit=100")
        if answer is not None:
            shown = entity in {found["id"] for found in answer[1]["entities"]}
            right = shown == (self.mirror.find_entity(entity) == entity)
            self._judge("completion after a change", entity, right, answer)

    # ---- reloads --------------------------------------------------------------------------------------------

    async def _reload(self) -> None:
        client = Client(self.server.port, seconds=PATIENCE_SECONDS, admin=True, keep=False)
        broken_at = time.monotonic() + BREAK_SECONDS
        for number in range(sys.maxsize):
            bundle = (STEADY, CHANGING)[number % 2]
            if not self._goes_on():
                return
            if bundle == STEADY and time.monotonic() > broken_at:
                await self._reload_broken(client)
                broken_at = time.monotonic() + BREAK_SECONDS
            answer = await self._answer(client, "POST", f"/v1/bundles/{bundle}/reload")
            if answer is not None:
                self._judge("reload", bundle, answer[0] == 200 and answer[1].get("name") == bundle, answer)
            await asyncio.sleep(RELOAD_SECONDS)

    async def _reload_broken(self, client: Client) -> None:
        manifest = self.folder / STEADY / "manifest.json"
        away = manifest.rename(self.folder / "away.json")
        answer = await self._answer(client, "POST", f"/v1/bundles/{STEADY}/reload")
        away.rename(manifest)
        if answer is not None:
            told = answer[0] == 409 and answer[1]["error"]["code"] == "reload_failed"
            self._judge("reload of a broken bundle refused", None, told, answer)

    async def _hang_up(self) -> None:
        while self._goes_on():
            self.server.process.send_signal(signal.SIGHUP)
            self.tally.saw("SIGHUP")
            await asyncio.sleep(HANGUP_SECONDS)

    # ---- the process ----------------------------------------------------------------------------------------

    async def _scrape(self) -> None:
        client = Client(self.server.port, seconds=PATIENCE_SECONDS)
        while self._goes_on():
            answer = await self._answer(client, "GET", "/metrics")
            if answer is not None:
                failed = [line for line in str(answer[1]).splitlines() if 'status="5' in line]
                self._judge("metrics", None, answer[0] == 200 and not failed, (answer[0], failed))
            await asyncio.sleep(SCRAPE_SECONDS)

    async def _sample(self) -> None:
        while self._goes_on():
            self.samples.took(self.server.resources())
            await asyncio.sleep(1)

    def _goes_on(self) -> bool:
        return time.monotonic() < self.last


def _question(rng: random.Random, entities: list[str], relations: list[str]) -> tuple[str, dict[str, Any], Any]:
    """An address, a body, and what a Scorer must be asked for the same answer."""
    many = rng.choice((1, 1, 1, 4, 12))
    keys, relation, k = rng.choices(entities, k=many), rng.choice(relations), rng.randrange(1, 9)
    kind = rng.choice(("tails", "heads", "score", "explain", "among", "text"))
    if kind == "score":
        triples = [[key, relation, rng.choice(entities)] for key in keys]
        return kind, {"triples": triples}, lambda scorer: {"scores": [float(s) for s in scorer.score(triples)]}
    if kind == "explain":
        triple = (keys[0], relation, rng.choice(entities))
        body = dict(zip(("head", "relation", "tail"), triple, strict=True))
        return kind, body, lambda scorer: {"explanation": _plain(scorer.explain(*triple).as_dict())}
    if kind == "text":
        text = f"a drug against {rng.choice(entities)}"
        body = {"head": text, "relation": relation, "head_is_text": True, "k": k}
        return "tails", body, lambda scorer: _top(scorer.top_tails(text, relation, k, head_is_text=True))
    if kind == "heads":
        body = {"tail": keys, "relation": relation, "k": k}
        return kind, body, lambda scorer: _tops(scorer.top_heads(relation, keys, k))
    how: dict[str, Any] = {"among": rng.sample(entities, 3)} if kind == "among" else {"reranked": True}
    body = {"head": keys, "relation": relation, "k": k, **how}
    return "tails", body, lambda scorer: _tops(scorer.top_tails(keys, relation, k, **how))


def _top(predictions: Any) -> dict[str, Any]:
    return {"predictions": [prediction._asdict() for prediction in predictions]}


def _tops(answers: Any) -> dict[str, Any]:
    return {"answers": [_top(predictions) for predictions in answers]}


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def alike(found: Any, expected: Any) -> bool:
    """Whether two JSON values are the same, numbers within SAME."""
    if isinstance(expected, dict):
        same_keys = isinstance(found, dict) and found.keys() == expected.keys()
        return same_keys and all(alike(found[key], value) for key, value in expected.items())
    if isinstance(expected, list | tuple):
        same_length = isinstance(found, list) and len(found) == len(expected)
        return same_length and all(map(alike, found, expected))
    if isinstance(expected, float):
        return isinstance(found, int | float) and abs(found - expected) <= SAME
    return bool(found == expected)


def _mirrored(mirror: Scorer, method: str, entity: str, text: dict[str, str], there: set[str]) -> None:
    if method == "POST":
        mirror.add_entity(entity, **text)
        there.add(entity)
    elif method == "PATCH":
        mirror.update_entity(entity, **text)
    else:
        mirror.remove_entity(entity)
        there.discard(entity)


def soak(ground: Ground) -> Tally:
    """The attack: `count` seconds of load."""
    from tests.tiny_bundle import write_tiny_bundle

    tally, own = Tally(), os.environ.get(OWN_BUNDLE)
    for name in (STEADY, CHANGING):
        if own:
            shutil.copytree(own, ground.folder / name)
        else:
            write_tiny_bundle(ground.folder / name)
    bundles = [ground.folder / name for name in (STEADY, CHANGING)]
    with served(ground.folder, *bundles, "--journal", ground.folder / JOURNALS) as server:
        run = Soak(server, ground.folder, ground, tally)
        asyncio.run(run.run())
        run.samples.judge(tally)
        code, _ = server.stop(60)
        said = server.said.read_text(encoding="utf-8")
        wrong = [line for line in said.splitlines() if not _expected_line(line)]
        if code != 0 or wrong:
            tally.failed(f"exit code {code}, expected 0; it said {wrong[:3]}")
    result = json.loads((ground.folder / "server.stdout").read_text(encoding="utf-8").splitlines()[-1])
    tally.figures |= {name: result[name] for name in ("requests", "questions")}
    return tally


def _expected_line(line: str) -> bool:
    """Remarks, and the log of reloads that were meant to fail."""
    remark = line.startswith(("listening on", f"{STEADY}: ", f"{CHANGING}: "))
    return remark or ("is served as it was" in line and "manifest.json" in line)


ATTACKS = (
    Attack(
        "soak",
        "soak",
        "Seconds of mixed load on pmd-serve with changes, reloads by HTTP and SIGHUP, broken bundles and mistakes: "
        "every answer is that of a Scorer with the same changes, no 5xx, memory, open files, threads and p99 stay.",
        soak,
        quick=75,
        full=1800,
        limit_seconds=200,
        alone=True,
        skip=lambda: None if sys.platform == "linux" else "it reads /proc",
    ),
)
