"""A packed text has the hidden states it has alone, and rows waste little."""

import numpy as np
import pytest
import torch
from transformers import AutoModel

from pmd.grade import without_pooler
from pmd.model import run_tower
from pmd.packing import pack
from pmd.serving.tokenization import TextTokenizer
from tests.tiny_encoder import WORDS, tiny_tokenizer, write_encoder


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    folder = write_encoder(tmp_path_factory.mktemp("encoder"))
    return without_pooler(AutoModel.from_pretrained(folder)).eval()


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    tokenizer = TextTokenizer(tiny_tokenizer().to_str(), 50)
    texts = [" ".join(rng.choice(WORDS, size)) for size in rng.integers(1, 20, 40)]
    return tokenizer([*texts, *((text, "is a") for text in texts[:10])])


@torch.inference_mode()
def alone(tower, table, index):
    one = table.take(np.array([index]))
    hidden = tower(
        input_ids=torch.tensor(one.ids[None].astype(np.int64)),
        token_type_ids=torch.tensor(one.types[None].astype(np.int64)),
    ).last_hidden_state[0]
    mean = hidden.mean(0)
    return mean / mean.norm(), hidden


@pytest.mark.parametrize("shared_rows", [True, False])
def test_packed_equals_alone(tower, table, shared_rows):
    masked = np.zeros(len(table.ids), bool)
    masked[table.offsets[:-1] + 1] = True  # the first real token of every text
    packed = pack(table, masked, shared_rows=shared_rows)
    with torch.inference_mode():
        output = run_tower(tower, packed)
    order = packed.text[packed.masked]  # masked features come row by row
    for index in range(len(table)):
        vector, hidden = alone(tower, table, index)
        if shared_rows or not table.types[table.offsets[index] : table.offsets[index + 1]].any():
            torch.testing.assert_close(output.vectors[index], vector, rtol=0, atol=2e-6)
            feature = output.masked[(order == index).nonzero().item()]
            torch.testing.assert_close(feature, hidden[1], rtol=0, atol=2e-5)


def test_rows_hold_every_token_once_and_little_padding(table):
    packed = pack(table)
    assert int((packed.text >= 0).sum()) == len(table.ids)
    for index in range(len(table)):
        assert packed.ids[packed.text == index].tolist() == table.take(np.array([index])).ids.tolist()
        assert packed.positions[packed.text == index].tolist() == list(range(table.lengths[index]))
    assert packed.padding_share < 0.10
    assert pack(table, shared_rows=False).padding_share > 0.3  # what packing saves
