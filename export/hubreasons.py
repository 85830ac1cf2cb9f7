"""Why a hub did not do what was asked, in one line: whose fault it is, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from pmd.export.errors import HubError, HubFailure

TRANSPORT: tuple[type[Exception], ...] = tuple(
    kind for kind in HfHubHTTPError.__mro__ if issubclass(kind, Exception) and kind is not Exception
)
"""Bases of the library's own errors: all that its HTTP client raises, whichever client that is, and OSError."""
WRAPPERS: tuple[type[Exception], ...] = (LocalEntryNotFoundError, RuntimeError)
"""What the library raises from the error that says what happened."""
MALFORMED: tuple[type[Exception], ...] = (ValueError, LookupError)
"""What the library raises for an answer that is not a hub's."""
LOGIN = "set HF_TOKEN, or log in with `hf auth login`"
REASON_CHARACTERS = 200
CLIENT_ERRORS = range(400, 500)
NO_TOKEN, FORBIDDEN, TIMEOUT, TOO_MANY = 401, 403, 408, 429


@contextmanager
def in_one_line(repo: str, endpoint: str, revision: str | None) -> Iterator[None]:
    """Turn what huggingface_hub raises inside into HubError or HubFailure; errors of the file system pass."""
    try:
        if (
            repo.count("/") != 1
        ):  # the library would take one part for a repository of the user's own, or an old one
            raise HFValidationError(repo)
        yield
    except HFValidationError as error:
        raise HubError(f"{repo!r} cannot be a repository's name; expected OWNER/NAME") from error
    except (*WRAPPERS, *TRANSPORT, *MALFORMED) as error:
        cause = _cause(error)
        if isinstance(cause, OSError) and cause.filename is not None:
            raise cause from error
        raise _explained(cause, repo, endpoint, revision) from error


def _explained(error: BaseException, repo: str, endpoint: str, revision: str | None) -> HubError:
    """The error to end with. Kinds before their base classes."""
    where = f"{repo} at {endpoint}"
    if isinstance(error, OfflineModeIsEnabled):
        return HubError("HF_HUB_OFFLINE=1 keeps this command from any hub; unset it")
    if isinstance(error, GatedRepoError):
        return HubError(f"{where} is gated; ask its owner for access, then {LOGIN}")
    if isinstance(error, RepositoryNotFoundError):
        return HubError(f"there is no {where}, or it is private; check the name, or {LOGIN}")
    if isinstance(error, RevisionNotFoundError):
        return HubError(f"{where} has no revision {revision}; name a branch, tag or commit with --revision")
    if isinstance(error, EntryNotFoundError):
        return HubFailure(f"{where} lacks a file that it lists: {_short(error)}")
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return _answered(error, error.response.status_code, where)
    if isinstance(error, TRANSPORT):
        return HubFailure(f"{endpoint} cannot be reached or broke off: {_short(_innermost(error))}")
    if isinstance(error.__cause__, BadRequestError):  # README.md's header, for example
        return HubError(f"{where} is refused: {_short(error)}")
    return HubFailure(f"{endpoint} does not answer as a hub does: {type(error).__name__}: {_short(error)}")


def _answered(error: HfHubHTTPError, status: int, where: str) -> HubError:
    said = _short(error.server_message or "") or "no reason given"
    if status in (NO_TOKEN, FORBIDDEN):
        return HubError(f"{where} is refused with {status}: {said}; {LOGIN} with a token that may do this")
    if isinstance(error, BadRequestError) or (status in CLIENT_ERRORS and status not in (TIMEOUT, TOO_MANY)):
        return HubError(f"{where} is refused with {status}: {said}")
    return HubFailure(f"{where} failed with {status}: {said}; try again later")


def _cause(error: BaseException) -> BaseException:
    """The error below those that only say that there was one."""
    while isinstance(error, WRAPPERS) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _innermost(error: BaseException) -> object:
    """What an HTTP client's nested errors are about: the reason that the connection gave."""
    inner = error.args[0] if error.args else error
    return getattr(inner, "reason", None) or inner


def _short(reason: object) -> str:
    return " ".join(str(reason).split())[:REASON_CHARACTERS]
