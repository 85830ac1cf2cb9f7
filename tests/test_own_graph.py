"""A user's own graph of three bare columns, through the README's commands: train, export, predict."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from pmd import cli as train
from pmd.datasets import cli as data
from pmd.serving import cli as predict
from tests.tiny_encoder import WORDS, write_encoder


def run(command, *args):
    result = CliRunner().invoke(command, [str(arg) for arg in args])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def triples():
    """A graph over the tiny encoder's words; ids are all the text there is."""
    rng = np.random.default_rng(5)
    heads, relations = [f"{size}_{word}" for size in ("big", "small") for word in WORDS[:8]], ["part_of", "near"]
    every = [(head, relation, tail) for head in heads for relation in relations for tail in heads if head != tail]
    return [every[row] for row in rng.choice(len(every), 120, replace=False)]


def write(path, rows):
    path.write_text("".join("\t".join(row) + "\n" for row in rows))


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_three_bare_columns_train_export_and_answer(tmp_path, monkeypatch, kind):
    pytest.importorskip("onnx")
    export = pytest.importorskip("pmd.export.cli")
    monkeypatch.chdir(tmp_path)
    write_encoder(tmp_path / "encoder")
    rows, source = triples(), "mine" if kind == "folder" else "mine.tsv"
    if kind == "folder":
        (tmp_path / "mine").mkdir()
        for name, part in (("train", rows[:100]), ("valid", rows[100:110]), ("test", rows[110:])):
            write(tmp_path / "mine" / f"{name}.tsv", part)
    else:
        write(tmp_path / "mine.tsv", rows)
    counts = run(data.main, "check", source)["counts"]
    assert sum(counts[split] for split in ("train", "valid", "test")) == 120
    assert counts["valid"] and counts["test"]
    options = ("--encoder", "encoder", "--grades", "2", "--mask-rates", "0", "--epochs", "2", "--quiet")
    trained = run(train.main, "--data", source, "--out", "runs/mine", *options)
    assert trained["stages"][-1]["grade"] == 2
    exported = run(export.main, "--grade", "2", "--precision", "fp32", "--run", "runs/mine", "--quiet")
    bundle = exported["bundles"][0]["path"]
    assert bundle == "bundles/mine-pmd-grade-2-fp32"
    known = {tail for head, relation, tail in rows if (head, relation) == ("big_alpha", "near")}
    answer = run(predict.main, bundle, "--head", "big alpha", "--relation", "near", "-k", 5)
    found = {prediction["entity"] for prediction in answer["predictions"]}
    assert answer["head"] == "big_alpha"
    assert len(found) == 5 and not found & known
