"""The other end of a side: its process, asked one thing at a time by whoever compares."""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from pmd.benchmarks.case import Answer, death
from pmd.benchmarks.errors import MeasureError

PATIENCE_SECONDS = 10.0
"""How long a side may take to end once it is told to; then it is killed."""


class SideProcess:
    """A process that runs `sides.obey`; stands in a `with` block, which ends it."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        limit_s: float | None = None,
    ) -> None:
        """Start it, without waiting until it is ready: its first answer says that.

        environment: this process's own if None. limit_s: how long an answer may take; without limit if None.
        """
        self._limit_s, self._given_up = limit_s, False
        self._stderr = tempfile.TemporaryFile()
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                text=True,
                encoding="utf-8",
                errors="replace",
                env=None if environment is None else dict(environment),
            )
        except BaseException:
            self._stderr.close()
            raise

    def __enter__(self) -> SideProcess:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it; one that is in the middle of something after a failure is not waited for."""
        if kind is not None:
            self._process.kill()
        self.end()

    def ask(self, order: Mapping[str, int]) -> Answer:
        """What it answers to an order of `sides.obey`. Raises MeasureError as `answer` does."""
        if self._process.stdin is None:
            raise MeasureError("a side was started without stdin")
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise MeasureError(self._ending("before its turn")) from None
        return self.answer()

    def answer(self) -> Answer:
        """Its next line. Raises MeasureError if it has ended, takes too long, or says what went wrong."""
        line = self._next_line()
        if self._given_up:
            raise MeasureError(f"no answer within {self._limit_s:g} s, given up")
        if not line:
            raise MeasureError(self._ending("without an answer"))
        try:
            found: Any = json.loads(line)
        except json.JSONDecodeError:
            found = None
        if not isinstance(found, dict):
            raise MeasureError(f"a side said {line[:60].strip()!r}, expected a JSON object")
        if "error" in found:
            raise MeasureError(str(found["error"]))
        return found

    def end(self) -> None:
        """Close its stdin, which ends it, and wait; kill it if it takes too long. More than once does no harm."""
        if self._process.stdin and not self._process.stdin.closed:
            try:
                self._process.stdin.close()
            except BrokenPipeError:
                pass  # it has ended, with an order unread
        try:
            self._process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        self._stderr.close()

    def _next_line(self) -> str:
        if self._process.stdout is None:
            return ""
        if self._limit_s is None:
            return self._process.stdout.readline()
        timer = threading.Timer(self._limit_s, self._give_up)
        timer.daemon = True
        timer.start()
        try:
            return self._process.stdout.readline()
        finally:
            timer.cancel()

    def _give_up(self) -> None:
        self._given_up = True
        self._process.kill()

    def _ending(self, when: str) -> str:
        """How it ended, with the last line of its stderr."""
        code = self._process.wait()
        self._stderr.seek(0)
        said = self._stderr.read().decode("utf-8", errors="replace")
        return f"a side ended {when}: {death(subprocess.CompletedProcess([], code, '', said))}"
