"""Weights and checkpoints that say when they are no longer what was written."""

import pytest
import torch

from pmd.checkpoint import StageState, load_checkpoint, save_checkpoint
from pmd.errors import GradeError, RunError
from pmd.grade import CONFIG, TOKENIZER, WEIGHTS, GradeInfo, load_grade, save_grade
from pmd.serving.texts import Templates
from tests.tiny_encoder import tiny_tokenizer
from tests.tiny_run import random_model


@pytest.fixture
def grade(tmp_path):
    info = GradeInfo("grade-1", "tiny", 20, Templates())
    save_grade(tmp_path / "grade", random_model(1, 0), tiny_tokenizer().to_str(), info)
    return tmp_path / "grade"


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        (CONFIG, b'"max_tokens": 20', b'"max_tokens": 21'),
        (TOKENIZER, b"alpha", b"alpho"),
        (WEIGHTS, None, None),
    ],
)
def test_a_changed_byte_of_a_grade_is_found(grade, name, old, new):
    """Each of these still loads, as another model."""
    data = (grade / name).read_bytes()
    changed = data.replace(old, new, 1) if old else data[:-4] + b"\x00\x00\x80\x3f"
    assert changed != data
    (grade / name).write_bytes(changed)
    with pytest.raises(GradeError, match="not what its own sha256 says"):
        load_grade(grade)


def test_the_same_grade_is_the_same_bytes(grade, tmp_path):
    info = load_grade(grade).info
    save_grade(tmp_path / "again", random_model(1, 0), tiny_tokenizer().to_str(), info)
    for name in (CONFIG, TOKENIZER, WEIGHTS):
        assert (tmp_path / "again" / name).read_bytes() == (grade / name).read_bytes()


@pytest.mark.parametrize(("old", "new"), [(b'\\"step\\": 12', b'\\"step\\": 13'), (None, None)])
def test_a_changed_byte_of_a_checkpoint_is_found(tmp_path, old, new):
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, {"model": {"a": torch.ones(3)}}, StageState("teacher", step=12))
    data = path.read_bytes()
    changed = data.replace(old, new, 1) if old else data[:-1] + b"\x40"
    assert changed != data
    path.write_bytes(changed)
    with pytest.raises(RunError, match="is damaged"):
        load_checkpoint(path, "teacher")
