"""One function for each address: from a request to an answer."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from pmd.serving.answers import paired
from pmd.serving.errors import QueryError
from pmd.serving.server.bodies import read_question
from pmd.serving.server.calls import Explain, Score, Top
from pmd.serving.server.limits import MAX_COMPLETION_CHARACTERS, MAX_COMPLETIONS, Limits
from pmd.serving.server.metrics import Metrics
from pmd.serving.server.openapi import openapi_document
from pmd.serving.server.refusals import Refusal, unusable
from pmd.serving.server.replies import json_reply
from pmd.serving.server.schemas import ChangeModels, HeadsQuestion, TailsQuestion, request_models
from pmd.serving.server.served import Gone, ServedBundle

DEFAULT_COMPLETIONS = 20
PAGES = {
    "index.html": "text/html",
    "page.js": "text/javascript",
    "docs.html": "text/html",
    "docs.js": "text/javascript",
    "fetching.js": "text/javascript",
    "style.css": "text/css",
}
SHORTEST_KEPT = {"Cache-Control": "no-cache"}


class Handlers:
    """The endpoints of one application. `started` and `stopping` are set by whoever runs it."""

    def __init__(
        self,
        bundles: Mapping[str, ServedBundle],
        limits: Limits,
        metrics: Metrics,
        *,
        needs_key: bool,
        changes: ChangeModels | None = None,
        reloads: bool = False,
    ) -> None:
        """bundles: by name, in the order to list them. changes, reloads: as `openapi_document`."""
        self.bundles, self.limits, self.metrics = bundles, limits, metrics
        self.started = self.stopping = False
        self.reloads = reloads
        self._models = request_models(limits)
        document = openapi_document(
            list(bundles), limits, self._models, changes=changes, reloads=reloads, needs_key=needs_key
        )
        self._openapi = json_reply(document).body  # 4 ms each time it is made
        folder = files("pmd.serving.server") / "static"
        self._pages = {name: (folder / name).read_bytes() for name in PAGES}

    def reload_all(self) -> None:
        """Open every bundle afresh in turn, for nobody in particular; used from the event loop."""
        for bundle in () if self.stopping else self.bundles.values():
            bundle.reload_soon()

    # ---- the process ----------------------------------------------------------------------------------------

    async def health(self, request: Request) -> Response:
        """The process lives."""
        return json_reply({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Questions are answered."""
        if self.stopping or not self.started:
            state = "stopping" if self.stopping else "starting"
            raise Refusal(503, state, f"the server is {state}", {"Retry-After": "5"})
        return json_reply({"status": "ready"})

    async def counts(self, request: Request) -> Response:
        """The metrics."""
        return Response(self.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    # ---- pages ----------------------------------------------------------------------------------------------

    async def page(self, request: Request) -> Response:
        """The page to try questions."""
        return self._page("index.html")

    async def docs(self, request: Request) -> Response:
        """The page that shows the OpenAPI document."""
        return self._page("docs.html")

    async def static(self, request: Request) -> Response:
        """Scripts and styles of the pages."""
        return self._page(request.path_params["name"])

    async def openapi(self, request: Request) -> Response:
        """The OpenAPI document."""
        return Response(self._openapi, media_type="application/json")

    def _page(self, name: str) -> Response:
        if name not in PAGES:
            raise Refusal(404, "not_found", f"there is no page {name[:60]!r}")
        return Response(self._pages[name], media_type=PAGES[name], headers=SHORTEST_KEPT)

    # ---- bundles --------------------------------------------------------------------------------------------

    async def list_bundles(self, request: Request) -> Response:
        """All bundles."""
        return json_reply({"bundles": [bundle.about() for bundle in self.bundles.values()]})

    async def relations(self, request: Request) -> Response:
        """All relations of a bundle."""
        return json_reply({"relations": self.bundle(request).relations()})

    async def entities(self, request: Request) -> Response:
        """Entities that fit what was typed."""
        bundle = self.bundle(request)
        _refuse_unknown(request.query_params, ("query", "limit"))
        query = request.query_params.get("query", "")
        if len(query) > MAX_COMPLETION_CHARACTERS:
            raise unusable(f"query has {len(query)} characters, expected at most {MAX_COMPLETION_CHARACTERS}")
        return json_reply({"entities": await bundle.entities(query, _limit(request.query_params))})

    # ---- questions ------------------------------------------------------------------------------------------

    async def tails(self, request: Request) -> Response:
        """The best tails."""
        bundle, question = self.bundle(request), await read_question(request, self._models.tails, self.limits)
        return await self._top(bundle, question, question.head, question.head_is_text, request)

    async def heads(self, request: Request) -> Response:
        """The best heads."""
        bundle, question = self.bundle(request), await read_question(request, self._models.heads, self.limits)
        return await self._top(bundle, question, question.tail, question.tail_is_text, request)

    async def score(self, request: Request) -> Response:
        """Scores of triples."""
        bundle, question = self.bundle(request), await read_question(request, self._models.score, self.limits)
        triples = [tuple(triple) for triple in question.triples]
        return json_reply({"scores": await bundle.ask(Score(), triples, gone_of(request))})

    async def explain(self, request: Request) -> Response:
        """What drove an answer."""
        bundle, question = self.bundle(request), await read_question(request, self._models.explain, self.limits)
        options = Explain(question.asks, question.is_text, question.triples)
        triple = (question.head, question.relation, question.tail)
        (explanation,) = await bundle.ask(options, [triple], gone_of(request))
        return json_reply({"explanation": explanation})

    async def _top(
        self,
        bundle: ServedBundle,
        question: TailsQuestion | HeadsQuestion,
        keys: str | list[str],
        is_text: bool,
        request: Request,
    ) -> Response:
        try:
            pairs = paired(keys, question.relation)
        except QueryError as error:
            raise unusable(str(error)) from error
        options = Top(
            inverse=isinstance(question, HeadsQuestion),
            is_text=is_text,
            k=question.k,
            exclude_known=question.exclude_known,
            reranked=question.reranked,
            among=None if question.among is None else tuple(question.among),
        )
        answers = await bundle.ask(options, pairs, gone_of(request))
        alone = isinstance(keys, str) and isinstance(question.relation, str)
        return json_reply(answers[0] if alone else {"answers": answers})

    def bundle(self, request: Request) -> ServedBundle:
        """The bundle that the address names. Raises Refusal (404)."""
        name = request.path_params["bundle"]
        if name not in self.bundles:
            raise Refusal(404, "unknown_bundle", f"no bundle {name[:60]!r}; there are {', '.join(self.bundles)}")
        return self.bundles[name]


def gone_of(request: Request) -> Gone:
    """What returns when the client of a request has closed the connection."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    return gone


def _refuse_unknown(given: Mapping[str, str], known: tuple[str, ...]) -> None:
    for name in given:
        if name not in known:
            raise unusable(f"unknown parameter {name[:60]!r}; expected {', '.join(known)}")


def _limit(parameters: Mapping[str, str]) -> int:
    given = parameters.get("limit", str(DEFAULT_COMPLETIONS))
    if not (given.isascii() and given.isdecimal() and 1 <= int(given[:10]) <= MAX_COMPLETIONS):
        raise unusable(f"limit must be a whole number from 1 to {MAX_COMPLETIONS}, found {given[:60]!r}")
    return int(given)
