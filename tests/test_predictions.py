"""Predictions out: every figure can be recomputed from the file, and a damaged one is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pmd.serving import Scorer
from pmd.serving.cli import main
from pmd.serving.predictions import PredictionsError, compare, read_ranks, write_predictions
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


def test_compare_pairs_the_triples_whatever_their_order(scorer, tmp_path):
    write_predictions(scorer, "test", 3, tmp_path / "plain.jsonl")
    write_predictions(scorer, "test", 3, tmp_path / "reranked.jsonl", reranked=True)
    first, *lines = (tmp_path / "reranked.jsonl").read_text().splitlines()
    half = len(lines) // 2
    (tmp_path / "shuffled.jsonl").write_text("\n".join([first, *lines[:half][::-1], *lines[half:][::-1]]) + "\n")
    plain, other, shuffled = (read_ranks(tmp_path / f"{name}.jsonl") for name in ("plain", "reranked", "shuffled"))
    found = compare(other, plain)
    assert found["mrr"] == {"ours": scorer.evaluate(reranked=True)["mrr"], "theirs": scorer.evaluate()["mrr"]}
    assert found["difference"] == pytest.approx(found["mrr"]["ours"] - found["mrr"]["theirs"])
    assert compare(plain, shuffled)["difference"] == pytest.approx(-found["difference"])
    write_predictions(scorer, "valid", 3, tmp_path / "valid.jsonl")
    with pytest.raises(PredictionsError, match="differ in"):
        compare(plain, read_ranks(tmp_path / "valid.jsonl"))


def test_the_compare_command(scorer, tmp_path, capsys):
    from pmd.datasets.cli import main as data_main

    for name, reranked in (("plain", False), ("reranked", True)):
        write_predictions(scorer, "test", 3, tmp_path / f"{name}.jsonl", reranked=reranked)
    with pytest.raises(SystemExit) as left:
        data_main(["compare", str(tmp_path / "plain.jsonl"), str(tmp_path / "reranked.jsonl")], "pmd-data")
    assert not left.value.code
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["schema"] == "pmd-data-compare/1"
    assert found["triples"] == len(scorer.known.triples(2))
    with pytest.raises(SystemExit) as left:
        data_main(["compare", str(tmp_path / "plain.jsonl"), str(tmp_path / "nothing.jsonl")], "pmd-data")
    assert left.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
