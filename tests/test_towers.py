"""The ONNX tower: equal to numpy, equal in every batch, and plain about what it refuses."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tiny_bundle import MAX_TOKENS, WIDTH, tokenizer_json, tower_graph, tower_vectors

from pmd.serving.bundle import QUERY, Bundle
from pmd.serving.encoder import TowerEncoder, open_session
from pmd.serving.errors import BundleError, ProviderError, QueryError
from pmd.serving.tokenization import TextTokenizer

TEXTS = [
    "pain",
    "a drug against pain and fever",
    ("heart", "part of"),
    "body",
    ("cold: weather without heat", "causes"),
]


def encoder(graph: bytes | None = None, **options: int) -> TowerEncoder:
    session = open_session(graph or tower_graph(quantised=False), threads=1)
    return TowerEncoder(session, TextTokenizer(tokenizer_json(), MAX_TOKENS), WIDTH, **options)


class Recorder:
    """A session that notes the size of every batch."""

    def __init__(self, tower):
        self._session, self.runs = tower._session, []
        tower._session = self

    def run(self, outputs, inputs):
        self.runs.append(len(inputs["input_ids"]))
        return self._session.run(outputs, inputs)


def other_graph(inputs: tuple[str, ...], output: str = "sentence_embedding", width: int = WIDTH) -> bytes:
    """A graph that adds up token ids and repeats the sum; inputs beyond input_ids are not used."""
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["ids", "axis"], ["sum"], keepdims=1),
        helper.make_node("Expand", ["sum", "shape"], [output]),
    ]
    graph = helper.make_graph(
        nodes,
        "other",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"]) for name in inputs],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", "width"])],
        [
            onnx.numpy_helper.from_array(np.array([1], np.int64), "axis"),
            onnx.numpy_helper.from_array(np.array([1, width], np.int64), "shape"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def test_vectors_equal_the_tower_computed_in_numpy():
    vectors = encoder()(TEXTS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, tower_vectors(TEXTS), rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("texts_per_run", [1, 2, 3, 100])
def test_the_batch_does_not_matter(texts_per_run):
    """Sorted by length, run in pieces, put back in order; 1e-5 is the documented tolerance."""
    np.testing.assert_allclose(encoder(texts_per_run=texts_per_run)(TEXTS), tower_vectors(TEXTS), rtol=0, atol=1e-5)


def test_repeated_texts_are_encoded_once_and_answered_each_time():
    tower = encoder()
    session = Recorder(tower)
    vectors = tower(["pain", "body", "pain", "pain"])
    assert session.runs == [2]
    np.testing.assert_array_equal(vectors[[0, 2, 3]], vectors[[0, 0, 0]])


def test_no_texts_give_no_vectors():
    assert encoder()([]).shape == (0, WIDTH)


def test_a_dynamic_int8_graph_depends_on_its_batch_so_its_encoder_runs_one_text_at_a_time(tiny_int8_folder):
    together = encoder(tower_graph(quantised=True))(TEXTS)
    alone = np.concatenate([encoder(tower_graph(quantised=True))([text]) for text in TEXTS])
    assert np.abs(together - alone).max() > 1e-3  # why the rule is there
    tower = TowerEncoder.load(Bundle.open(tiny_int8_folder), QUERY, threads=1)
    np.testing.assert_array_equal(tower(TEXTS), alone)


def test_a_float_encoder_runs_many_texts_at_a_time(tiny_folder):
    tower = TowerEncoder.load(Bundle.open(tiny_folder), QUERY, threads=1)
    session = Recorder(tower)
    tower(TEXTS)
    assert session.runs == [len(TEXTS)]


def test_only_the_inputs_that_the_graph_has_are_fed():
    vectors = encoder(other_graph(("input_ids",)))(["pain", "a drug"])
    ids = TextTokenizer(tokenizer_json(), MAX_TOKENS)(["pain", "a drug"]).ids
    # padding is 0 in this vocabulary, so the sums are those of the real tokens
    np.testing.assert_array_equal(vectors[:, 0], [ids[:3].sum(), ids[3:].sum()])


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (other_graph(("input_ids", "position_ids")), "inputs are .*position_ids"),
        (other_graph(("input_ids",), output="pooled"), "outputs are .*pooled.*expected sentence_embedding"),
    ],
)
def test_a_graph_with_other_inputs_or_outputs_is_refused(graph, message):
    with pytest.raises(BundleError, match=message):
        encoder(graph)


def test_a_graph_of_another_width_is_refused():
    with pytest.raises(BundleError, match=r"shape \(1, 3\), expected \(1, 16\)"):
        encoder(other_graph(("input_ids",), width=3))(["pain"])


def test_a_token_that_the_graph_does_not_know_is_one_line():
    tower = encoder()
    text = tokenizer_json().replace('"pain":', '"unused":').replace('"[UNK]":1', '"[UNK]":9999')
    tower._tokenizer = TextTokenizer(text, MAX_TOKENS)
    with pytest.raises(BundleError, match="graph failed on a text") as raised:
        tower(["pain"])
    assert "\n" not in str(raised.value)


def test_the_cache_answers_without_a_run_and_stays_small():
    tower = encoder(cached_texts=2)
    session = Recorder(tower)
    first = tower(["pain", "body"])
    np.testing.assert_array_equal(tower(["body", "pain"]), first[::-1])
    assert session.runs == [2]
    tower(["fever"])  # pushes out "body", which was asked for longest ago
    tower(["pain"])
    assert session.runs == [2, 1]
    tower(["body"])
    assert session.runs == [2, 1, 1]


def test_threads_may_share_an_encoder():
    tower = encoder(cached_texts=3)
    expected = tower_vectors(TEXTS)
    with ThreadPoolExecutor(4) as pool:
        for vectors in pool.map(tower, [TEXTS] * 50):
            np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-5)


def test_an_absent_provider_names_what_is_there():
    message = "NoSuchProvider is not in this onnxruntime, which has .*cpu.*; ask for one"
    with pytest.raises(ProviderError, match=message):
        open_session(tower_graph(quantised=False), provider="NoSuchProvider", threads=1)


def test_a_provider_that_falls_back_is_an_error(monkeypatch):
    import onnxruntime

    class FellBack:
        def __init__(self, *_, **__):
            pass

        def get_providers(self):
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", FellBack)
    with pytest.raises(ProviderError, match="CUDAExecutionProvider refused the model; onnxruntime chose CPU"):
        open_session(b"", provider="CUDAExecutionProvider", threads=1)


def test_a_damaged_model_is_one_line(tmp_path):
    (tmp_path / "model.onnx").write_bytes(tower_graph(quantised=False)[:100])
    for model in (b"nonsense", tmp_path / "model.onnx", str(tmp_path / "absent.onnx")):
        with pytest.raises(BundleError, match="cannot open the model") as raised:
            open_session(model, threads=1)
        assert "\n" not in str(raised.value)


def test_threads_below_one_are_refused():
    with pytest.raises(QueryError, match="threads must be 1 or more, got 0"):
        open_session(tower_graph(quantised=False), threads=0)


def test_without_onnxruntime_the_message_is_the_command_that_brings_it(tiny_folder):
    code = """
        import sys
        sys.modules["onnxruntime"] = None  # as if it were not installed
        import pmd.serving
        from pmd.serving.cli import main
        main([sys.argv[1], "--head", "aspirin", "--relation", "treats"])
    """
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tiny_folder)], capture_output=True, text=True, check=False
    )
    assert child.returncode == 2
    assert child.stderr == "error: onnxruntime not installed; run: pip install 'pmd-kgc[cpu]'\n"
