"""`kill -9` of a command, or of a call in a forked process, at a moment drawn at random."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

KILLED = -signal.SIGKILL
LOOK_SECONDS = 0.002  # how often a child is looked at
HANG_SECONDS = 300.0
PR_SET_PDEATHSIG = 1

Begun = Callable[[], bool]


class Ended(NamedTuple):
    """How a process ended."""

    code: int
    """Its exit code; -9 where it was killed."""
    seconds: float
    """From the moment that counted as its beginning."""
    stdout: str
    stderr: str

    @property
    def killed(self) -> bool:
        """Whether it was still running when its time came."""
        return self.code == KILLED

    @property
    def last_words(self) -> str:
        """The last line of stderr, for a message."""
        return next(reversed(self.stderr.strip().splitlines()), "nothing on stderr")


def end_command(
    command: Sequence[str | os.PathLike[str]],
    folder: Path,
    *,
    kill_after: float | None = None,
    begun: Begun | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    limit_seconds: float = HANG_SECONDS,
) -> Ended:
    """Run a command to its end, or kill its process group `kill_after` seconds after it began.

    folder: where its output is kept meanwhile, as files, so that what it said before its death is not lost. begun:
    the moment from which seconds count, looked at every 2 ms; None counts from the start. env: added to this
    process's own. Raises TimeoutError for a command that neither ends nor begins within `limit_seconds`.
    """
    with _outputs(folder) as (stdout, stderr):
        child = subprocess.Popen(
            [os.fspath(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        return _watch(child.pid, child.poll, folder, kill_after, begun, limit_seconds)


def end_call(
    call: Callable[[], object],
    folder: Path,
    *,
    kill_after: float | None = None,
    begun: Begun | None = None,
    limit_seconds: float = HANG_SECONDS,
) -> Ended:
    """The same of a call in a forked process, which need not import again what this one has imported.

    Its SystemExit is its exit code; a traceback goes to its stderr and ends it with 1.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with _outputs(folder) as (stdout, stderr):
        pid = os.fork()
        if pid == 0:
            _become(call, stdout.fileno(), stderr.fileno())
        return _watch(pid, lambda: _poll(pid), folder, kill_after, begun, limit_seconds)


def delays(length_seconds: float, generator: random.Random) -> Iterator[float]:
    """Moments to kill at, for ever: uniform over a measured length, in seconds."""
    while True:
        yield generator.uniform(0.0, length_seconds)


def left_overs(folder: Path) -> list[Path]:
    """Temporary files and folders below `folder` that a dead writer left."""
    return sorted(path for path in folder.rglob("*") if ".partial-" in path.name)


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file below a folder, by path within it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextlib.contextmanager
def _outputs(folder: Path) -> Iterator[tuple]:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "stdout", "wb") as stdout, open(folder / "stderr", "wb") as stderr:
        yield stdout, stderr


def _become(call: Callable[[], object], stdout: int, stderr: int) -> NoReturn:
    """In the child: a session of its own, the given outputs, and no way back into the parent's code."""
    code = 1
    try:
        os.setsid()
        _die_with_parent()
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        call()
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _die_with_parent() -> None:
    """In the child, on Linux: an attack that is stopped takes what it started with it, whatever its group."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _poll(pid: int) -> int | None:
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def _watch(
    pid: int,
    poll: Callable[[], int | None],
    folder: Path,
    kill_after: float | None,
    begun: Begun | None,
    limit_seconds: float,
) -> Ended:
    started, counted = time.monotonic(), begun is None
    since = started
    while (code := poll()) is None:
        now = time.monotonic()
        if not counted and begun is not None and begun():
            counted, since = True, now
        if counted and kill_after is not None and now - since >= kill_after:
            _kill(pid)
            code = _reap(poll)
            break
        if now - started > limit_seconds:
            _kill(pid)
            _reap(poll)
            raise TimeoutError(f"still running after {limit_seconds:.0f} s")
        time.sleep(LOOK_SECONDS)
    said = [(folder / name).read_text(encoding="utf-8", errors="replace") for name in ("stdout", "stderr")]
    return Ended(code, time.monotonic() - since, *said)


def _kill(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # it has not made its group yet
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _reap(poll: Callable[[], int | None]) -> int:
    while (code := poll()) is None:
        time.sleep(LOOK_SECONDS)
    return code
