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
from pmd.serving.journal import SCHEMA, Journal, JournalError

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


def fail(*_):
    raise OSError(5, "Input/output error")


def test_what_could_not_be_taken_away_at_once_is_taken_away_later(load, folder, tmp_path, monkeypatch):
    """Torn by a full disk on which not even truncating works: changes go on when there is room again."""
    scorer = load(folder, tmp_path / "journal")
    scorer.remove_entity("heart")
    file = scorer._graph.journal._file

    class Torn:
        def __getattr__(self, name):
            return getattr(file, name)

        def write(self, data):
            return file.write(data[: len(data) // 2]) if len(data) > 50 else fail()

        truncate = fail

    scorer._graph.journal._file = Torn()
    for _ in range(2):
        with pytest.raises(JournalError, match="cannot be written, the change was not made: Input/output error"):
            scorer.add_entity("new", name="new", vector=np.ones(16))
    scorer._graph.journal._file = file
    scorer.add_entity("other", name="other", vector=np.ones(16))
    seen = state(scorer)
    scorer.close()
    assert state(load(folder, tmp_path / "journal")) == seen


def test_ctrl_c_while_a_change_is_written_leaves_none(load, folder, tmp_path, monkeypatch):
    scorer = load(folder, tmp_path / "journal")
    before = (tmp_path / "journal").read_bytes()

    def interrupted(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(journal_module.os, "fsync", interrupted)
        scorer.remove_entity("heart")
    assert scorer.num_entities == E
    assert (tmp_path / "journal").read_bytes() == before
    scorer.remove_entity("heart")
    scorer.close()
    assert load(folder, tmp_path / "journal").num_entities == E - 1


def test_a_change_that_cannot_be_shown_is_not_kept_either(load, folder, tmp_path, monkeypatch):
    scorer = load(folder, tmp_path / "journal")
    before = (tmp_path / "journal").read_bytes()

    def no_memory(*_):
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr("pmd.serving.live._after", no_memory)
        scorer.remove_entity("heart")
    assert (tmp_path / "journal").read_bytes() == before
    assert scorer.num_entities == E


def test_a_journal_removed_or_replaced_while_in_use_takes_no_change(load, folder, tmp_path):
    path = tmp_path / "deep" / "journal"
    scorer = load(folder, path)
    scorer.remove_entity("heart")
    seen = state(scorer)
    kept = path.read_bytes()
    for put_back in (False, True):
        if put_back:
            path.parent.mkdir()
            path.write_bytes(kept)
        else:
            shutil.rmtree(path.parent)
        with pytest.raises(JournalError, match=r"removed or replaced while .* not made; save the bundle and open"):
            scorer.remove_entity("pain")
        assert state(scorer) == seen
    scorer.save(tmp_path / "saved")
    scorer.close()
    (tmp_path / "new").mkdir()
    assert state(load(tmp_path / "saved", tmp_path / "new" / "journal")) == seen


def test_a_journal_that_another_program_wrote_to_takes_no_change(load, folder, tmp_path):
    scorer = load(folder, tmp_path / "journal")
    scorer.remove_entity("heart")
    whole = (tmp_path / "journal").read_bytes()
    for other in (whole + b"more", whole[:-3]):
        with open(tmp_path / "journal", "r+b") as file:
            file.truncate(0)
            file.write(other)
        with pytest.raises(JournalError, match=r"was changed by another program .*; the change was not made"):
            scorer.remove_entity("pain")
        assert (tmp_path / "journal").read_bytes() == other


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_writes_nothing(load, folder, tmp_path):
    scorer = load(folder, tmp_path / "journal")
    pid = os.fork()
    if pid == 0:
        try:
            scorer.remove_entity("heart")
        except JournalError as error:
            os._exit(0 if "that of the process that opened it" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    scorer.remove_entity("heart")


def test_a_place_that_cannot_hold_a_journal(load, folder, tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "journal", tmp_path / ("x" * 300)):
        with pytest.raises(JournalError, match=r"cannot be written: .*; choose a place that can be written"):
            load(folder, path)


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


def test_a_damaged_last_line_is_refused_whatever_byte_it_is(load, folder, tmp_path):
    path = tmp_path / "journal"
    scorer = load(folder, path)
    scorer.remove_entity("pain")
    scorer.remove_entity("heart")
    scorer.close()
    whole = path.read_bytes()
    bundle = json.loads(whole.splitlines()[0][9:])["bundle"]
    for at in range(whole.rindex(b"\n", 0, -1) + 1, len(whole)):
        for byte in {whole[at] ^ 1, 0, 10, 13} - {whole[at]}:
            path.write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 :])
            with pytest.raises(JournalError, match="line 3 is damaged; restore the file"):
                Journal.open(path, bundle, None)
    path.write_bytes(whole)
    assert load(folder, path).num_entities == E - 2


def test_a_last_line_with_sectors_that_were_never_written_is_cut_off(load, folder, tmp_path):
    path = tmp_path / "journal"
    scorer = load(folder, path)
    kept = path.stat().st_size
    scorer.add_entity("long", name="long", description="word " * 400, vector=np.ones(16))
    scorer.close()
    whole = path.read_bytes()
    for start, end in ((kept, 512), (512, 1024), (1024, 1536)):
        path.write_bytes(whole[:start] + bytes(end - start) + whole[end:])
        again = load(folder, path)
        assert again.num_entities == E
        again.close()
        assert path.stat().st_size == kept
    path.write_bytes(whole[:600] + bytes(300) + whole[900:])
    with pytest.raises(JournalError, match="line 2 is damaged"):
        load(folder, path)


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


@pytest.mark.parametrize(
    "data", [b"", b"hello\n", b"15d54739 {\n", line({"schema": "pmd-journal/2", "name": "x"}), line(["a"])]
)
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
