"""What a tower's graph may hold, found in its protobuf before onnxruntime opens it."""

import shutil

import numpy as np
import pytest

from pmd.serving import BundleError, Scorer
from pmd.serving.onnxfile import check_model
from tests.trust.hostile_towers import graphs, tokenizers

RUNS = {
    "5,000 nodes",
    "zeros in the weights",
    "40 doublings",
    "outputs of another name",
    "NaN in the weights",
    "a cycle",
}
BOMBS = ("ConstantOfShape", "Expand", "Tile", "Range", "a product")
"""What only running shows, with a limit of memory: see tests/trust/hostile_bundles.py."""
REFUSED = {
    name: harm
    for name, harm, _ in graphs()
    if name not in RUNS and not name.startswith(BOMBS) and name != "101,000 nodes"
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_graph_is_refused_by_its_protobuf(tiny_folder, tmp_path, name):
    folder = shutil.copytree(tiny_folder, tmp_path / "bundle")
    REFUSED[name](folder)
    with pytest.raises(BundleError, match=r"query/onnx/model\.onnx: ") as raised:
        Scorer.load(folder, threads=1)
    assert "onnxruntime cannot open" not in str(raised.value)


@pytest.mark.parametrize("folder", ["tiny_folder", "tiny_int8_folder"])
def test_a_cut_graph_is_refused_or_lacks_what_follows_it(request, folder):
    data = (request.getfixturevalue(folder) / "query/onnx/model.onnx").read_bytes()
    check_model(np.frombuffer(data, np.uint8))
    for size in range(0, len(data) - 100, 7):
        with pytest.raises(BundleError):
            check_model(np.frombuffer(data[:size], np.uint8))


@pytest.mark.parametrize("name", ["a text 10^12 times as long", "WordPiece of a million characters", "ids of 2^64"])
def test_a_tokenizer_that_makes_much_of_little_is_refused(tiny_folder, tmp_path, name):
    folder = shutil.copytree(tiny_folder, tmp_path / "bundle")
    next(harm for label, harm, _ in tokenizers() if label == name)(folder)
    with pytest.raises(BundleError, match=r"query/tokenizer\.json: "):
        Scorer.load(folder, threads=1)


def test_a_panic_of_the_tokenizer_is_one_line(tiny_folder, tmp_path):
    """A regular expression that tries for ever ends in a panic of Rust, which is no Exception."""
    from pmd.serving.tokenization import TokenizerError

    folder = shutil.copytree(tiny_folder, tmp_path / "bundle")
    next(harm for label, harm, _ in tokenizers() if label.startswith("a regular expression that tries"))(folder)
    scorer = Scorer.load(folder, threads=1)
    with pytest.raises(TokenizerError, match="retry-limit"):
        scorer.top_tails("a" * 5000, "treats", head_is_text=True)
    assert scorer.top_tails("aspirin", "treats")
