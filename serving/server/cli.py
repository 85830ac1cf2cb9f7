"""`pmd-serve`: bundles over HTTP."""

from __future__ import annotations

import logging
import os
import time
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import click

from pmd.serving.command import HELP, TRUSTED_KEY, Command, NumberRange, emit
from pmd.serving.cores import default_threads
from pmd.serving.errors import QueryError
from pmd.serving.extras import require
from pmd.serving.journal import Journal
from pmd.serving.scorer import Scorer
from pmd.serving.server.limits import Limits

SCHEMA = "pmd-serve/1"
KEY_VARIABLE, ADMIN_VARIABLE = "PMD_API_KEY", "PMD_ADMIN_KEY"
EPILOG = """\b
Examples:
  pmd-serve bundles/umls-pmd-grade-3-int8
  pmd-serve bundles/umls-pmd-grade-6-int8 bundles/umls-pmd-grade-3-int8.zip --port 9000 --threads 1
  pmd-serve bundles/umls-pmd-grade-3-int8 --host 0.0.0.0 --api-key-file /run/secrets/pmd-key

\b
  curl -H 'Content-Type: application/json' \\
    -d '{"head": "acquired_abnormality", "relation": "affects", "k": 3}' \\
    http://127.0.0.1:8000/v1/bundles/umls-pmd-grade-3-int8/tails
"""
DEFAULT = Limits()
AT_LEAST_1 = click.IntRange(min=1)


@click.command(name="pmd-serve", cls=Command, context_settings=HELP, epilog=EPILOG)
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="BUNDLE...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port; 0 takes a free one."
)
@click.option("--threads", type=AT_LEAST_1, help="Calls of a bundle's model at once.  [default: the usable cores]")
@TRUSTED_KEY
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path),
    help=f"File with the key that clients must give; else {KEY_VARIABLE} of the environment, else no key.",
)
@click.option(
    "--admin-key-file",
    type=click.Path(path_type=Path),
    help=f"File with the key of those who may change entities and reload bundles; else {ADMIN_VARIABLE} of the "
    "environment, else nobody may.",
)
@click.option(
    "--journal",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Keep the changes of each bundle in DIR/NAME.journal, and make them again at every start.",
)
@click.option("--max-body-bytes", type=AT_LEAST_1, default=DEFAULT.max_body_bytes, show_default=True)
@click.option(
    "--max-batch", type=AT_LEAST_1, default=DEFAULT.max_batch, show_default=True, help="Questions at once."
)
@click.option("--max-k", type=AT_LEAST_1, default=DEFAULT.max_k, show_default=True, help="Answers to a question.")
@click.option("--max-text-characters", type=AT_LEAST_1, default=DEFAULT.max_text_characters, show_default=True)
@click.option(
    "--max-waiting",
    type=AT_LEAST_1,
    default=DEFAULT.max_waiting,
    show_default=True,
    help="Requests that may wait for a bundle; more get 429.",
)
@click.option(
    "--timeout-seconds",
    type=NumberRange(min=0.001, max=3600),
    default=DEFAULT.timeout_seconds,
    show_default=True,
    help="For reading a request, and again for answering it.",
)
@click.option(
    "--max-connections",
    type=AT_LEAST_1,
    default=DEFAULT.max_connections,
    show_default=True,
    help="Open at once; the slowest clients make room for new ones.",
)
@click.option(
    "--header-seconds",
    type=NumberRange(min=0.001, max=3600),
    default=DEFAULT.header_seconds,
    show_default=True,
    help="For sending the headers of a request.",
)
@click.option("--quiet", is_flag=True, help="No remarks on stderr; failures and warnings still go there.")
def main(
    bundles: tuple[Path, ...],
    host: str,
    port: int,
    threads: int | None,
    trusted_keys: tuple[Path, ...],
    api_key_file: Path | None,
    admin_key_file: Path | None,
    journal: Path | None,
    quiet: bool,
    **limits: Any,
) -> None:
    """Answer questions about each BUNDLE (a folder or .zip) over HTTP.

    Open the printed address in a browser to try questions; its /docs describes every request. A bundle is named
    as its folder. SIGTERM or Ctrl-C ends the server after the requests that are running; the last line of stdout
    is one JSON object. With an admin key, SIGHUP opens all bundles afresh. Keys are never given on the command
    line, where other users could read them.
    """
    require("server", "starlette", "uvicorn", "pydantic", "prometheus_client")
    from pmd.serving.server.app import create_app
    from pmd.serving.server.connections import room_for
    from pmd.serving.server.process import bound_socket, other_files, serve, url_of

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    named, key, admin_key = _named(bundles), _key(api_key_file, KEY_VARIABLE), _key(admin_key_file, ADMIN_VARIABLE)
    if key is not None and key == admin_key:
        raise QueryError("the API key and the admin key are the same; whoever may ask could change; choose two")
    room = room_for(limits.pop("max_connections"), other_files(len(named)), _warn)
    bounds = Limits(max_connections=room, **limits)

    def opened(name: str, before: Journal | None = None) -> Scorer:
        kept = before or (None if journal is None else journal / f"{name}.journal")
        return _loaded(name, named[name], trusted_keys, kept, quiet)

    with bound_socket(host, port) as listener, ExitStack() as scorers_closed:
        url = url_of(listener)
        if key is None and not ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback:
            _warn(f"{url} is open to other machines, without a key; see --api-key-file")
        scorers = {name: scorers_closed.enter_context(opened(name)) for name in named}
        app = create_app(
            scorers,
            limits=bounds,
            api_key=key,
            admin_key=admin_key,
            reopen=opened,
            threads=threads or default_threads(),
        )
        started = time.monotonic()

        def announce() -> None:
            if not quiet or port == 0:
                click.echo(f"listening on {url}", err=True)

        stopped_by = serve(app, listener, limits=bounds, on_ready=announce)
    metrics = app.state.handlers.metrics
    emit(
        {
            "schema": SCHEMA,
            "url": url,
            "bundles": list(named),
            "seconds": round(time.monotonic() - started, 3),
            "requests": metrics.total("pmd_http_requests_total"),
            "questions": metrics.total("pmd_questions_total"),
            "rejected": metrics.total("pmd_rejected_requests_total"),
            "stopped_by": None if stopped_by is None else stopped_by.name,
        }
    )


def _named(bundles: tuple[Path, ...]) -> dict[str, Path]:
    """Bundles by the name of their folder, or zip without its ending. Raises QueryError for one name twice."""
    named: dict[str, Path] = {}
    for path in bundles:
        name = path.resolve().name.removesuffix(".zip")
        if name in named:
            raise QueryError(f"two bundles are named {name!r}: {named[name]} and {path}; rename one folder")
        named[name] = path
    return named


def _loaded(
    name: str, path: Path, trusted_keys: tuple[Path, ...], journal: Path | Journal | None, quiet: bool
) -> Scorer:
    started = time.perf_counter()
    # Many calls of one thread do more than one call of many.
    scorer = Scorer.load(path, threads=1, trusted_keys=trusted_keys or None, journal=journal)
    if not quiet:
        took = f"loaded in {time.perf_counter() - started:.2f} s"
        click.echo(f"{name}: {scorer.num_entities} entities, {scorer.num_relations} relations, {took}", err=True)
    return scorer


def _warn(message: str) -> None:
    click.echo(f"warning: {message}", err=True)


def _key(file: Path | None, variable: str) -> bytes | None:
    """The key of the file, or else of the environment; None without one. Raises QueryError for one of no use."""
    if file is None:
        given = os.environb.get(variable.encode())
        where = variable
    else:
        given, where = file.read_bytes(), str(file)
    if given is None:
        return None
    key = given.strip()
    if not key or any(byte <= 32 or byte >= 127 for byte in key):
        raise QueryError(
            f"the key of {where} is empty or has spaces or other characters than ASCII; expected one word"
        )
    return key


if __name__ == "__main__":
    main()
