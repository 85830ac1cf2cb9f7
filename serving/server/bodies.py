"""The body of a request, read within its limits and checked against a model."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request

from pmd.serving.server.limits import Limits
from pmd.serving.server.refusals import CLIENT_GONE, Refusal, unusable

Model = TypeVar("Model", bound=BaseModel)

SHOWN = 60  # characters of a wrong value in a message
TAGS = {"one", "many"}  # how the models tell a text from a list; no field has these names
LONGEST_LENGTH = 18  # digits of a Content-Length that are worth reading


async def read_question(request: Request, model: type[Model], limits: Limits) -> Model:
    """The body as a `model`. Raises Refusal: 400, 408, 413, 415, 422."""
    _check_type(request.headers)
    try:
        async with asyncio.timeout(limits.timeout_seconds):
            body = await _read(request, limits.max_body_bytes)
    except TimeoutError as error:
        raise Refusal(408, "slow_body", f"the body was not sent within {limits.timeout_seconds:g} s") from error
    except ClientDisconnect as error:
        raise Refusal(CLIENT_GONE, "client_gone", "the client closed the connection within its body") from error
    try:
        return model.model_validate(_parsed(body))
    except ValidationError as error:
        raise unusable(_complaint(error, model)) from error


def _check_type(headers: Mapping[str, str]) -> None:
    if "transfer-encoding" in headers:  # a byte in a chunk costs what a thousand cost in one piece
        raise Refusal(411, "length_required", "send the body in one piece, with its Content-Length")
    kind = headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "application/json":
        shown = repr(kind[:SHOWN]) if kind else "none"
        raise Refusal(415, "wrong_content_type", f"Content-Type is {shown}, expected 'application/json'")
    encoding = headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise Refusal(
            415, "wrong_content_encoding", f"Content-Encoding {encoding[:SHOWN]!r}: send the body as it is"
        )


async def _read(request: Request, most: int) -> bytes:
    """The whole body; a length that is stated is believed only when it is too large."""
    stated = request.headers.get("content-length", "0")
    if len(stated) > LONGEST_LENGTH or (stated.isdecimal() and int(stated) > most):
        raise _too_large(most)
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise _too_large(most)
        parts.append(part)
    return b"".join(parts)


def _too_large(most: int) -> Refusal:
    return Refusal(413, "body_too_large", f"the body is larger than {most} bytes; ask fewer questions at once")


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise Refusal(400, "malformed_json", f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise Refusal(400, "malformed_json", f"the body is {_shown(value)}, expected a JSON object")
    return value


def _complaint(error: ValidationError, model: type[BaseModel]) -> str:
    """The first thing that is wrong, in one line: where, what is expected, what was found."""
    first = error.errors(include_url=False)[0]
    where = _place(first["loc"])
    if first["type"] == "extra_forbidden":
        message = f"unknown field {where[:SHOWN]!r}; expected {', '.join(model.model_fields)}"
    elif first["type"] == "missing":
        message = f"field {where!r} is missing"
    else:
        message = f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}, found {_shown(first['input'])}"
    others = error.error_count() - 1
    return f"{message} (and {others} more)" if others else message


def _place(path: Sequence[str | int]) -> str:
    return ".".join(str(step) for step in path if step not in TAGS)


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= SHOWN else shown[:SHOWN] + "…"
