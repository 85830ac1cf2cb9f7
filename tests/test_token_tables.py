"""Cached token tables: the same tokens, memory-mapped, and never those of other texts."""

from dataclasses import replace

import numpy as np
import pytest

from pmd.batches import tokenise
from pmd.serving.texts import Templates
from pmd.serving.tokenization import TextTokenizer
from pmd.token_tables import content_key
from tests.tiny_encoder import tiny_graph, tiny_tokenizer

TEMPLATES = Templates(neighbours=3)


@pytest.fixture
def tokenizer():
    return TextTokenizer(tiny_tokenizer().to_str(), 50)


def test_cached_equals_made(tokenizer, tmp_path, monkeypatch):
    plain = tokenise(tiny_graph(), tokenizer, TEMPLATES)
    first = tokenise(tiny_graph(), tokenizer, TEMPLATES, tmp_path)
    monkeypatch.setattr(TextTokenizer, "__call__", lambda *_: pytest.fail("tokenised again"))
    second = tokenise(tiny_graph(), tokenizer, TEMPLATES, tmp_path)
    for other in (first, second):
        for name in ("queries", "entities"):
            for array in ("ids", "types", "offsets"):
                np.testing.assert_array_equal(
                    getattr(getattr(other, name), array), getattr(getattr(plain, name), array)
                )
    assert isinstance(second.entities.ids, np.memmap)


def test_whatever_changes_the_tokens_changes_the_key(tokenizer):
    graph = tiny_graph()
    others = [
        (replace(graph, names=("other", *graph.names[1:])), tokenizer, TEMPLATES),
        (replace(graph, descriptions=("other", *graph.descriptions[1:])), tokenizer, TEMPLATES),
        (replace(graph, relation_texts=("other", *graph.relation_texts[1:])), tokenizer, TEMPLATES),
        (replace(graph, train=graph.train[:-1]), tokenizer, TEMPLATES),
        (graph, TextTokenizer(tiny_tokenizer().to_str(), 20), TEMPLATES),
        (graph, tokenizer, Templates(neighbours=2)),
    ]
    keys = {content_key(*other) for other in others} | {content_key(graph, tokenizer, TEMPLATES)}
    assert len(keys) == len(others) + 1
    same = replace(graph, test=graph.test[:0], valid=graph.valid[:0])
    assert content_key(same, tokenizer, TEMPLATES) == content_key(graph, tokenizer, TEMPLATES)


@pytest.mark.parametrize("damage", ["truncate", "remove", "mix"])
def test_a_damaged_cache_is_made_again(tokenizer, tmp_path, damage):
    plain = tokenise(tiny_graph(), tokenizer, TEMPLATES, tmp_path)
    expected = np.array(plain.entities.ids)
    (path,) = tmp_path.glob("tokens/*/entities/ids.npy")
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:-8])
    elif damage == "remove":
        path.unlink()
    else:
        np.save(path, np.zeros(3, np.int32))
    again = tokenise(tiny_graph(), tokenizer, TEMPLATES, tmp_path)
    np.testing.assert_array_equal(again.entities.ids, expected)


def test_a_cache_that_cannot_be_written_is_no_error(tokenizer, tmp_path):
    (tmp_path / "tokens").write_text("a file where the folder should be")
    plain = tokenise(tiny_graph(), tokenizer, TEMPLATES, tmp_path)
    assert len(plain.entities) == 12
