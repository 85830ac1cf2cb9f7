"""The addresses that change bundles: one function each, all for the admin key alone."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from pmd.serving.server.bodies import read_question
from pmd.serving.server.changes import Add, Change, Reload, Remove, Update
from pmd.serving.server.handlers import Handlers, gone_of
from pmd.serving.server.keys import Keys
from pmd.serving.server.refusals import unusable
from pmd.serving.server.replies import json_reply
from pmd.serving.server.schemas import ChangeModels


class AdminHandlers:
    """The endpoints that change bundles."""

    def __init__(self, handlers: Handlers, keys: Keys, models: ChangeModels) -> None:
        """handlers: those of the same application, which know its bundles."""
        self._handlers, self._keys, self._models = handlers, keys, models

    async def add(self, request: Request) -> Response:
        """Put an entity in."""
        self._keys.check_admin(request.headers)
        self._handlers.bundle(request)
        new = await read_question(request, self._models.add, self._handlers.limits)
        return await self._made(request, Add(new.id, new.name, new.description, _numbers(new.vector)), status=201)

    async def update(self, request: Request) -> Response:
        """Change an entity."""
        self._keys.check_admin(request.headers)
        self._handlers.bundle(request)
        new = await read_question(request, self._models.update, self._handlers.limits)
        if new.name is None and new.description is None and new.vector is None:
            raise unusable("nothing to change; give a name, a description or a vector")
        change = Update(request.path_params["entity"], new.name, new.description, _numbers(new.vector))
        return await self._made(request, change)

    async def remove(self, request: Request) -> Response:
        """Take an entity out."""
        self._keys.check_admin(request.headers)
        return await self._made(request, Remove(request.path_params["entity"]))

    async def reload(self, request: Request) -> Response:
        """Open a bundle afresh."""
        self._keys.check_admin(request.headers)
        return await self._made(request, Reload())

    async def _made(self, request: Request, change: Change, status: int = 200) -> Response:
        answer = await self._handlers.bundle(request).change(change, gone_of(request))
        return json_reply(answer, status)


def _numbers(vector: list[float] | None) -> tuple[float, ...] | None:
    return None if vector is None else tuple(vector)
