"""The write-ahead file: what was acknowledged is there after any death, and no other bundle's changes come in."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import zlib

import numpy as np
import pytest
from tiny_bundle import ENTITIES

from pmd.serving import QueryError, Scorer
from pmd.serving import journal as journal_module
from pmd.serving.journal import SCHEMA, JournalError

E = len(ENTITIES)


@pytest.fixture(params=["float32", "int8"])
def folder(request, tiny_folder, tiny_int8_folder):
    return tiny_folder if request.param == "float32" else tiny_int8_folder


@pytest.fixture
def load():
    """Opens scorers with a journal; closed at the end of the test."""
    opened = []

    def opener(folder, path) -> Scorer:
        opened.append(Scorer.load(folder, threads=1, journal=path))
        return opened[-1]

    yield opener
    for scorer in opened:
        scorer.close()


def state(scorer: Scorer):
    """All that can be seen of a graph."""
    ids = scorer.entity_ids
    return ids, [scorer.top_tails(key, "causes", k=50, exclude_known=False) for key in ids], scorer.evaluate()


def change(scorer: Scorer) -> None:
    scorer.add_entity(
        "paracetamol", name="paracetamol", description="a drug against fever\u2028and pain \U0001f600"
    )
    scorer.add_entity("axis", name="axis", vector=np.arange(1, 17))
    scorer.remove_entity("heart")
    scorer.update_entity("aspirin", name="acetylsalicylic acid")
    scorer.update_entity("axis", description="a line")
    scorer.remove_entity("paracetamol")
    scorer.add_entity("paracetamol", name="again")


def test_changes_are_made_again(load, folder, tmp_path):
    first = load(folder, tmp_path / "deep" / "journal")
    change(first)
    seen = state(first)
    first.close()
    again = load(folder, tmp_path / "deep" / "journal")
    assert state(again) == seen
    assert again._graph.snapshot.changes == first._graph.snapshot.changes == (3, 2, 2)
    again.add_entity("more", name="more")
    again.close()
    assert load(folder, tmp_path / "deep" / "journal").num_entities == E + 2


def test_a_refused_change_leaves_no_line(load, folder, tmp_path):
    scorer = load(folder, tmp_path / "journal")
    before = (tmp_path / "journal").read_bytes()
    for wrong in (
        lambda: scorer.add_entity("heart", name="heart"),
        lambda: scorer.update_entity("heart", name=" "),
        lambda: scorer.update_entity("heart", vector=[1, 2]),
    ):
        with pytest.raises(QueryError):
            wrong()
    assert (tmp_path / "journal").read_bytes() == before


def test_after_close_questions_are_answered_and_changes_refused(load, folder, tmp_path):
    scorer = load(folder, tmp_path / "journal")
    seen = state(scorer)
    scorer.close()
    with pytest.raises(JournalError, match="was closed; the change was not made"):
        scorer.remove_entity("heart")
    assert state(scorer) == seen


@pytest.mark.parametrize("failing", ["fsync", "write"])
def test_a_disk_that_fails_leaves_graph_and_file_as_they_were(load, folder, tmp_path, monkeypatch, failing):
    scorer = load(folder, tmp_path / "journal")
    scorer.remove_entity("heart")
    seen, before = state(scorer), (tmp_path / "journal").read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if failing == "fsync":
            patch.setattr(journal_module.os, "fsync", fail)
        else:
            patch.setattr(journal_module, "_line", fail)
        with pytest.raises(JournalError, match="No space left on device"):
            scorer.add_entity("new", name="new")
    assert state(scorer) == seen
    assert (tmp_path / "journal").read_bytes() == before
    scorer.add_entity("new", name="new")
    scorer.close()
    assert state(load(folder, tmp_path / "journal"))[0] == (*seen[0], "new")


# ---- damage -------------------------------------------------------------------------------------------------


def test_half_a_line_at_the_end_is_cut_off(load, folder, tmp_path):
    path = tmp_path / "journal"
    scorer = load(folder, path)
    scorer.remove_entity("heart")
    seen, whole = state(scorer), path.read_bytes()
    scorer.add_entity("new", name="new")
    scorer.close()
    torn = path.read_bytes()
    for end in (len(whole) + 1, len(whole) + 20, len(torn) - 1):
        path.write_bytes(torn[:end])
        again = load(folder, path)
        assert state(again) == seen
        again.close()
        assert path.read_bytes() == whole


def test_a_damaged_line_in_the_middle_is_refused_and_nothing_cut(load, folder, tmp_path):
    path = tmp_path / "journal"
    scorer = load(folder, path)
    change(scorer)
    scorer.close()
    lines = path.read_bytes().splitlines(keepends=True)
    for number in range(len(lines) - 1):
        data = bytearray(b"".join(lines))
        data[sum(map(len, lines[:number])) + 15] ^= 1
        path.write_bytes(data)
        with pytest.raises(JournalError, match=rf"line {number + 1} is damaged; restore the file"):
            load(folder, path)
        assert path.read_bytes() == data


def line(record) -> bytes:
    data = json.dumps(record).encode()
    return f"{zlib.crc32(data):08x} ".encode() + data + b"\n"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"do": "put", "id": "a", "name": "a", "text": "", "vector": "AAAA"},
            "line 2: not a change of this bundle",
        ),
        ({"do": "put", "id": "a", "name": "a", "text": "", "vector": "!"}, "line 2: not a change"),
        ({"do": "sing", "id": "a", "name": "a", "text": "", "vector": "A" * 84 + "AA=="}, "line 2: not a change"),
        ({"do": "put", "id": "a"}, "line 2: not a change"),
        (["put"], "line 2: not a change"),
        ({"do": "remove", "id": "nobody"}, "removes 'nobody', which the bundle does not have"),
    ],
)
def test_lines_that_are_no_change_of_this_bundle(load, folder, tmp_path, record, message):
    path = tmp_path / "journal"
    load(folder, path).close()
    path.write_bytes(path.read_bytes() + line(record))
    with pytest.raises(JournalError, match=message):
        load(folder, path)
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    load(folder, path)  # what refused it let go of it


@pytest.mark.parametrize("data", [b"", b"hello\n", line({"schema": "pmd-journal/2", "name": "x"}), line(["a"])])
def test_files_that_are_no_journal(load, folder, tmp_path, data):
    path = tmp_path / "journal"
    path.write_bytes(data)
    with pytest.raises(JournalError, match=f"not a journal of schema '{SCHEMA}'"):
        load(folder, path)
    assert path.read_bytes() == data


def test_another_bundles_journal_is_refused(load, tiny_folder, tiny_int8_folder, tmp_path):
    load(tiny_folder, tmp_path / "journal").close()
    with pytest.raises(JournalError, match="holds changes to another bundle"):
        load(tiny_int8_folder, tmp_path / "journal")


@pytest.mark.skipif(journal_module.fcntl is None, reason="no file locks on this system")
def test_one_holder_at_a_time(load, folder, tmp_path):
    first = load(folder, tmp_path / "journal")
    with pytest.raises(JournalError, match="in use by another process"):
        load(folder, tmp_path / "journal")
    first.close()
    load(folder, tmp_path / "journal")


# ---- saved bundles ------------------------------------------------------------------------------------------


def test_a_saved_bundle_goes_on_with_the_same_journal(load, folder, tmp_path):
    scorer = load(folder, tmp_path / "journal")
    change(scorer)
    saved = scorer.save(tmp_path / "saved")
    at_save = state(scorer)
    scorer.add_entity("later", name="later")
    seen = state(scorer)
    scorer.close()
    assert state(Scorer.load(saved, threads=1)) == at_save
    again = load(saved, tmp_path / "journal")  # only what came after the save is made again
    assert state(again) == seen
    again.remove_entity("later")
    twice = again.save(tmp_path / "twice")
    again.close()
    assert state(load(twice, tmp_path / "journal")) == at_save


def test_a_bundle_saved_onto_itself_needs_no_journal_and_takes_a_new_one(load, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "bundle")
    scorer = load(copy, tmp_path / "journal")
    scorer.remove_entity("heart")
    scorer.save(copy, replace=True)
    scorer.close()
    (tmp_path / "journal").unlink()
    fresh = load(copy, tmp_path / "journal")
    fresh.remove_entity("pain")
    fresh.close()
    assert load(copy, tmp_path / "journal").num_entities == E - 2


def test_a_journal_shorter_than_the_bundle_says_is_refused(load, folder, tmp_path):
    scorer = load(folder, tmp_path / "journal")
    change(scorer)
    saved = scorer.save(tmp_path / "saved")
    scorer.close()
    lines = (tmp_path / "journal").read_bytes().splitlines(keepends=True)
    (tmp_path / "journal").write_bytes(b"".join(lines[:-2]))
    with pytest.raises(JournalError, match="holds 5 changes, the bundle was saved with 7; restore the file"):
        load(saved, tmp_path / "journal")


WRITER = """
import sys
import numpy as np
from pmd.serving import Scorer
scorer = Scorer.load(sys.argv[1], threads=1, journal=sys.argv[2])
number = scorer.num_entities
while True:
    scorer.add_entity(f"e{number}", name=f"entity {number}", vector=np.arange(1, 17) + number)
    print(number, flush=True)
    number += 1
"""


def test_killed_at_any_moment_no_acknowledged_change_is_lost(load, folder, tmp_path):
    acknowledged = E - 1
    for after in (1, 7, 30):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), str(tmp_path / "journal")],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            for _ in range(after):
                acknowledged = int(child.stdout.readline())
        finally:
            os.kill(child.pid, signal.SIGKILL)
        rest, _ = child.communicate()
        acknowledged = int(rest.split()[-1]) if rest.split() else acknowledged
        scorer = load(folder, tmp_path / "journal")
        added = scorer.entity_ids[E:]
        assert added[: acknowledged - E + 1] == tuple(f"e{number}" for number in range(E, acknowledged + 1))
        assert len(added) <= acknowledged - E + 2  # one may have been on the disk before it could be told
        scorer.close()
        acknowledged = E + len(added) - 1
