"""The HTTP server as a process, under the load of clients that wait for their answers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from pmd.benchmarks.edge.child import Answer, Request
from pmd.benchmarks.errors import MeasureError
from pmd.benchmarks.http_load import measure
from pmd.benchmarks.questions import TOP
from pmd.serving.cores import default_threads

SERVE = ("-m", "pmd.serving.server.cli")
LISTENING = "listening on "
KEY_VARIABLE = "PMD_API_KEY"
STOP_SECONDS = 60.0


def measure_http(request: Request) -> Answer:
    """Requests a second and their latency, for one question a request; server and clients share the machine.

    request: `bundle`, the file `questions`, `clients` (connections, each with one request at a time), `seconds`.
    Each call of the bundle runs on one thread, as many calls at once as there are cores. Raises MeasureError if any
    answer is not a 200.
    """
    rows = json.loads(Path(request["questions"]).read_text(encoding="utf-8"))
    asked = [row["question"] for row in rows if not row["question"]["inverse"]]
    bodies = [json.dumps({"head": one["entity"], "relation": one["relation"], "k": TOP}).encode() for one in asked]
    name = Path(request["bundle"]).name.removesuffix(".zip")
    with serving(request["bundle"]) as url:
        found = measure(f"{url}/v1/bundles/{name}/tails", bodies, request["clients"], request["seconds"])
    if set(found["statuses"]) != {"200"}:
        raise MeasureError(f"pmd-serve answered {found['statuses']}, expected 200 alone")
    return {**found, "threads": default_threads(), "distinct_questions": len(bodies)}


@contextlib.contextmanager
def serving(bundle: str) -> Iterator[str]:
    """The address of a pmd-serve that has loaded the bundle; it is stopped, gracefully, at the end.

    Raises MeasureError if it ends before it listens, or with another exit code than 0.
    """
    command = [sys.executable, *SERVE, bundle, "--port", "0", "--threads", str(default_threads())]
    environment = {name: value for name, value in os.environ.items() if name != KEY_VARIABLE}
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    ) as server:
        try:
            yield _address(server)
            server.send_signal(signal.SIGTERM)
            code = server.wait(STOP_SECONDS)
            if code:
                raise MeasureError(f"pmd-serve ended with exit code {code} when it was told to stop")
        finally:
            server.kill()  # nothing to do where it has ended


def _address(server: subprocess.Popen[str]) -> str:
    """Where the server listens, from what it says on stderr."""
    said = ""
    for line in server.stderr or ():
        said = line.strip()
        if said.startswith(LISTENING):
            return said.removeprefix(LISTENING)
    raise MeasureError(f"pmd-serve did not start: {said or 'it said nothing'}")
