"""What every command promises: exit codes, one error line, one JSON object at the end."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import click
import pytest

from pmd.serving.command import HELP, Command, Group, NumberRange, emit, show_progress
from pmd.serving.errors import MissingExtra, PmdError, QueryError
from pmd.serving.extras import require
from pmd.serving.ranking import RankingError


def run(callback, *args: str) -> str | int | None:
    command = Command("try", callback=callback, context_settings=HELP, params=[click.Option(["--n"], type=int)])
    with pytest.raises(SystemExit) as leaving:
        command.main(list(args), "try")
    return leaving.value.code


OUT_OF_MEMORY = "error: out of memory; 7.45 GiB more were asked for; free memory, or ask for less at once"


def raising(error: BaseException):
    def callback(**_):
        raise error

    return callback


def test_success_and_a_code_of_ones_own():
    assert run(lambda n: None) == 0
    assert run(lambda n: 75) == 75


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (QueryError("k must be\n1"), 2, "error: k must be 1"),
        (RankingError("NaN"), 1, "error: NaN"),
        (MemoryError("Unable to allocate 7.45 GiB for an array"), 2, OUT_OF_MEMORY),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 7.45 GiB"),
            2,
            OUT_OF_MEMORY,
        ),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (FileNotFoundError(2, "No such file or directory", "/x"), 2, "error: No such file or directory: /x"),
    ],
)
def test_errors_are_one_line_and_the_right_code(capsys, error, code, line):
    assert run(raising(error)) == code
    captured = capsys.readouterr()
    assert captured.err.lstrip() == line + "\n"  # click ends the ^C line of the terminal first
    assert captured.out == ""


def test_nan_is_in_no_range(capsys):
    command = Command("try", callback=lambda n: None, params=[click.Option(["--n"], type=NumberRange(min=0))])
    for text, code in (("nan", 2), ("-1", 2), ("inf", 0)):
        with pytest.raises(SystemExit) as leaving:
            command.main(["--n", text], "try")
        assert leaving.value.code == code
    assert "'nan' is not a number" in capsys.readouterr().err


def test_a_wrong_option_is_the_users_mistake(capsys):
    assert run(lambda n: None, "--n", "many") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: Invalid value for '--n'")
    assert error.endswith("(see try --help)\n")
    assert error.count("\n") == 1


def test_an_error_of_ours_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        Command("try", callback=raising(ZeroDivisionError())).main([], "try")


def test_help_ends_with_0(capsys):
    assert run(lambda n: None, "--help") == 0
    assert "Usage" in capsys.readouterr().out


def test_emit_is_one_line_of_json_without_nan(capsys):
    emit({"name": "Zürich", "unknown": None})
    assert json.loads(capsys.readouterr().out) == {"name": "Zürich", "unknown": None}
    with pytest.raises(ValueError, match="not JSON compliant"):
        emit({"x": float("nan")})


def test_a_closed_pipe_ends_quietly():
    code = """
        import click
        from pmd.serving.command import Command
        @click.command(cls=Command)
        def main():
            for _ in range(100_000):
                click.echo("x" * 100)
        main()
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with child:
        assert child.stdout is not None and child.stderr is not None
        child.stdout.readline()
        child.stdout.close()
        assert child.stderr.read() == b""
        assert child.wait(timeout=30) == 1


@pytest.mark.parametrize(
    ("args", "code", "line"),
    [
        (["done"], 0, ""),
        (["stop"], 75, ""),
        (["fail"], 1, "error: NaN\n"),
        (["wrong"], 2, "error: k must be 1\n"),
        (["done", "--x"], 2, "error: No such option '--x'. (see group done --help)\n"),
        (["other"], 2, "error: No such command 'other'. (see group --help)\n"),
        ([], 2, "error: Missing command. (see group --help)\n"),
    ],
)
def test_commands_of_a_group_end_as_single_ones_do(capsys, args, code, line):
    ends = {
        "done": lambda: None,
        "stop": lambda: 75,
        "fail": raising(RankingError("NaN")),
        "wrong": raising(QueryError("k must be\n1")),
    }
    commands = {name: click.Command(name, callback=end) for name, end in ends.items()}
    with pytest.raises(SystemExit) as leaving:
        Group("group", commands=commands, context_settings=HELP).main(args, "group")
    assert leaving.value.code == code
    assert capsys.readouterr().err == line


def test_progress_is_off_without_a_terminal(capsys):
    assert not show_progress(quiet=False)
    assert not show_progress(quiet=True)


def test_a_missing_package_names_the_command_that_brings_it():
    require("cpu", "json")
    with pytest.raises(
        MissingExtra, match=r"no_such_package not installed; run: pip install 'pmd-kgc\[cpu\]'"
    ) as raised:
        require("cpu", "json", "no_such_package")
    assert isinstance(raised.value, PmdError)
    assert raised.value.exit_code == 2
