"""What all commands share: one-line errors, exit codes, and the JSON object that ends stdout.

Exit codes: 0 done, 1 our failure, 2 the user's mistake, 75 stopped at a time limit with everything
saved, 130 interrupted from the keyboard.
"""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from pmd.serving.errors import PmdError

EXIT_FAILURE, EXIT_MISTAKE, EXIT_TIME_LIMIT, EXIT_INTERRUPTED = 1, 2, 75, 130
HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Command(click.Command):
    """A click command whose mistakes end in one `error:` line on stderr and the contract's exit code.

    The callback returns None (exit 0) or an exit code.
    """

    def main(  # type: ignore[override]  # click's own overloads depend on standalone_mode, which is fixed here
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        """Run the command and leave the process with its exit code."""
        extra["standalone_mode"] = False
        try:
            code = super().main(args, prog_name, **extra)
        except PmdError as error:
            fail(str(error), error.exit_code)
        except click.ClickException as error:
            fail(f"{error.format_message()} (see {prog_name or self.name} --help)", EXIT_MISTAKE)
        except (KeyboardInterrupt, click.Abort):
            fail("interrupted", EXIT_INTERRUPTED)
        except OSError as error:
            if error.errno == errno.EPIPE:
                sys.exit(EXIT_FAILURE)
            where = f": {error.filename}" if error.filename else ""
            fail(f"{error.strerror or error}{where}", EXIT_MISTAKE)
        sys.exit(code if isinstance(code, int) else 0)


def emit(result: dict[str, Any]) -> None:
    """Print the JSON object that ends a command's stdout; NaN and infinity are refused, unknown is null."""
    click.echo(json.dumps(result, ensure_ascii=False, allow_nan=False))


def fail(message: str, code: int) -> NoReturn:
    """Print one `error:` line on stderr and leave with `code`."""
    click.echo("error: " + " ".join(message.split()), err=True)
    sys.exit(code)


def show_progress(quiet: bool) -> bool:
    """Whether to draw progress: stderr is a terminal and the user did not ask for quiet."""
    return not quiet and sys.stderr.isatty()
