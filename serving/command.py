"""What all commands share: one-line errors, exit codes, and the JSON object that ends stdout.

Exit codes: 0 done, 1 our failure, 2 the user's mistake, 75 stopped at a time limit with everything
saved, 130 interrupted from the keyboard.
"""

from __future__ import annotations

import errno
import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from pmd.serving.errors import PmdError
from pmd.serving.exhausted import out_of_memory, ran_out_of_memory

EXIT_FAILURE, EXIT_MISTAKE, EXIT_TIME_LIMIT, EXIT_INTERRUPTED = 1, 2, 75, 130
LINE_BREAKS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}
"""Ends of lines to some readers, which JSON leaves as they are."""
HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
TRUSTED_KEY = click.option(
    "--trusted-key",
    "trusted_keys",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Open only what the key of this PEM file signed, and check all of it; may be given several times.",
)


class Command(click.Command):
    """A click command whose mistakes end in one `error:` line on stderr and the contract's exit code.

    The callback returns None (exit 0) or an exit code.
    """

    def main(  # type: ignore[override]  # click's own overloads depend on standalone_mode, which is fixed here
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        """Run the command and leave the process with its exit code."""
        extra["standalone_mode"] = False
        leave(lambda: super(Command, self).main(args, prog_name, **extra), prog_name or self.name)


class Group(click.Group):
    """A command with commands below it, which end as `Command` does: each callback returns None or an exit code."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """As click's group; without a command it says that one is missing, rather than print its help."""
        super().__init__(*args, **{"no_args_is_help": False} | options)

    def main(  # type: ignore[override]  # as above
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        """Run the chosen command and leave the process with its exit code."""
        extra["standalone_mode"] = False
        leave(lambda: super(Group, self).main(args, prog_name, **extra), prog_name or self.name)


class NumberRange(click.FloatRange):
    """As click's, but for NaN, which click finds in every range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number; fails as click's types do."""
        number = float(super().convert(value, param, ctx))
        if number != number:
            self.fail(f"{value!r} is not a number", param, ctx)
        return number


def leave(run: Callable[[], Any], name: str | None) -> NoReturn:
    """Leave the process with the exit code of `run`, or with one `error:` line and the code of its mistake."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that it cannot show is escaped, not a traceback
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = run()
    except PmdError as error:
        fail(str(error), error.exit_code)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        fail(f"{error.format_message()} (see {context.command_path if context else name} --help)", EXIT_MISTAKE)
    except (KeyboardInterrupt, click.Abort):
        fail("interrupted", EXIT_INTERRUPTED)
    except OSError as error:
        if error.errno == errno.EPIPE:
            sys.exit(EXIT_FAILURE)
        where = f": {error.filename}" if error.filename else ""
        fail(f"{error.strerror or error}{where}", EXIT_MISTAKE)
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        fail(str(out_of_memory(error)), EXIT_MISTAKE)
    sys.exit(code if isinstance(code, int) else 0)


def emit(result: dict[str, Any]) -> None:
    """Print the JSON object that ends a command's stdout; NaN and infinity are refused, unknown is null.

    It is pure ASCII where stdout cannot hold its texts: a terminal of few characters, a file name that is no text.
    """
    text = json.dumps(result, ensure_ascii=False, allow_nan=False).translate(LINE_BREAKS)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(result, allow_nan=False)
    click.echo(text)


def fail(message: str, code: int) -> NoReturn:
    """Print one `error:` line on stderr and leave with `code`."""
    click.echo("error: " + " ".join(message.split()), err=True)
    sys.exit(code)


def show_progress(quiet: bool) -> bool:
    """Whether to draw progress: stderr is a terminal and the user did not ask for quiet."""
    return not quiet and sys.stderr.isatty()
