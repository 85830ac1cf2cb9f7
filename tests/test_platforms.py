"""Platforms that cannot read bundles are told so in one line, before any file is read or written."""

import sys

import pytest
from click.testing import CliRunner

from pmd.serving import PlatformError, PmdError, Scorer
from pmd.serving.bundle import write_tables
from pmd.serving.cli import main

STRANGE = [("byteorder", "big", "big-endian"), ("maxsize", 2**31 - 1, "32 bits")]


@pytest.mark.parametrize(("fact", "value", "said"), STRANGE)
def test_a_bundle_is_not_opened(tiny_folder, monkeypatch, fact, value, said):
    monkeypatch.setattr(sys, fact, value)
    with pytest.raises(PlatformError, match=said) as caught:
        Scorer.load(tiny_folder)
    assert isinstance(caught.value, PmdError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("fact", "value", "said"), STRANGE)
def test_a_command_ends_in_one_line(tiny_folder, monkeypatch, fact, value, said):
    monkeypatch.setattr(sys, fact, value)
    result = CliRunner().invoke(main, [str(tiny_folder), "--head", "aspirin", "--relation", "treats"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert said in result.stderr


def test_nothing_is_written_big_endian(tmp_path, monkeypatch):
    from tiny_bundle import tiny_tables

    tables = tiny_tables()
    monkeypatch.setattr(sys, "byteorder", "big")
    with pytest.raises(PlatformError, match="little-endian"):
        write_tables(tmp_path, tables)
    assert not list(tmp_path.iterdir())
