"""Predictions out: every figure can be recomputed from the file, and a damaged one is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pmd.serving import Scorer
from pmd.serving.cli import main
from pmd.serving.predictions import PredictionsError, read_ranks, write_predictions
from pmd.serving.ranking import summarise


@pytest.fixture(scope="module")
def scorer(tiny_folder):
    return Scorer.load(tiny_folder, threads=1)


@pytest.mark.parametrize("reranked", [False, True])
def test_figures_recomputed_from_the_file_equal_evaluate(scorer, tmp_path, reranked):
    about = write_predictions(scorer, "test", 3, tmp_path / "p.jsonl", reranked=reranked)
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert lines[0] == about
    ranks = np.array([line["rank"]["realistic"] for line in lines[1:]])
    metrics = scorer.evaluate("test", reranked=reranked)
    assert summarise(ranks) == {key: metrics[key] for key in summarise(ranks)}
    read = read_ranks(tmp_path / "p.jsonl")
    np.testing.assert_array_equal(read.ranks.rank(), ranks)
    assert len(read.triples) == about["lines"]


def test_the_best_answers_agree_with_the_ranks(scorer, tmp_path):
    write_predictions(scorer, "test", scorer.num_entities, tmp_path / "p.jsonl")
    for line in map(json.loads, (tmp_path / "p.jsonl").read_text().splitlines()[1:]):
        gold = line[line["side"]]
        place = 1 + [entity for entity, _ in line["top"]].index(gold)
        assert line["rank"]["optimistic"] <= place <= line["rank"]["pessimistic"]
        assert len(line["top"]) == scorer.num_entities - line["known"]
        scores = [score for _, score in line["top"]]
        assert scores == sorted(scores, reverse=True)


def test_the_command(tiny_folder, tmp_path, capsys):
    out = tmp_path / "p.jsonl"
    with pytest.raises(SystemExit) as left:
        main([str(tiny_folder), "--split", "test", "--out", str(out), "-k", "2", "--threads", "1"], "pmd-predict")
    assert not left.value.code
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["schema"] == "pmd-predictions/1"
    assert read_ranks(out).about["k"] == 2
    with pytest.raises(SystemExit) as left:
        main([str(tiny_folder), "--split", "test"], "pmd-predict")
    assert left.value.code == 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "not a line of predictions|it was cut"),
        (lambda text: "".join(text.splitlines(True)[:-1]), "it was cut"),
        (lambda text: "{}\n" + text, "no schema"),
        (lambda _: "", "no schema"),
        (lambda text: text.replace('"known"', '"other"', 1), ":2: not a line of predictions"),
    ],
)
def test_damaged_files_are_refused(scorer, tmp_path, damage, message):
    path = tmp_path / "p.jsonl"
    write_predictions(scorer, "test", 3, path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(PredictionsError, match=message):
        read_ranks(path)
