"""Graphs and tokenizers made by hand to harm who runs them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.trust.harms import MODEL, TOKENIZER, Harm, NamedHarm, sealed_file

if TYPE_CHECKING:
    import onnx


# ---- graphs -------------------------------------------------------------------------------------------------


def _model(change: Callable[[onnx.ModelProto], Any]) -> Harm:
    def harm(bundle: Path) -> None:
        import onnx

        model = onnx.load(bundle / MODEL)
        changed = change(model)
        data = changed if isinstance(changed, bytes) else model.SerializeToString()
        sealed_file(MODEL, lambda _: data)(bundle)

    return harm


def _external(location: str, **more: str) -> Harm:
    def change(model: onnx.ModelProto) -> None:
        from onnx import TensorProto

        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **more}.items():
            tensor.external_data.add(key=key, value=value)

    return _model(change)


def _linked_data(bundle: Path) -> None:
    (bundle / "query/onnx/data").symlink_to("/etc/passwd")
    _external("data")(bundle)


def _dims(*dims: int, data: bytes = b"") -> Harm:
    def change(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("dims")
        tensor.dims.extend(dims)
        tensor.raw_data = data

    return _model(change)


def _ending_in(*nodes: tuple[str, Sequence[str], dict[str, Any]], **constants: Any) -> Harm:
    """A graph whose vectors need what `nodes` make, the last of them one number."""

    def change(model: onnx.ModelProto) -> None:
        from onnx import helper, numpy_helper

        graph, previous = model.graph, ""
        graph.initializer.extend(
            numpy_helper.from_array(np.array(value), name) for name, value in constants.items()
        )
        for number, (operator, inputs, attributes) in enumerate(nodes):
            made = f"bomb-{number}"
            given = [previous if name == "*" else name for name in inputs]
            graph.node.append(helper.make_node(operator, given, [made], **attributes))
            previous = made
        for node in graph.node:
            if "sentence_embedding" in node.output:
                node.output[list(node.output).index("sentence_embedding")] = "innocent"
        graph.node.append(helper.make_node("ReduceMax", [previous], ["largest"], keepdims=0))
        graph.node.append(helper.make_node("Cast", ["largest"], ["number"], to=1))
        graph.node.append(helper.make_node("Add", ["innocent", "number"], ["sentence_embedding"]))

    return _model(change)


def _with_body(operator: str) -> Harm:
    def change(model: onnx.ModelProto) -> None:
        from onnx import TensorProto, helper, numpy_helper

        value = helper.make_tensor_value_info
        body = helper.make_graph(
            [helper.make_node("Identity", ["go"], ["on"])],
            "body",
            [value("round", TensorProto.INT64, []), value("go", TensorProto.BOOL, [])],
            [value("on", TensorProto.BOOL, [])],
        )
        model.graph.initializer.append(numpy_helper.from_array(np.array(2**62), "rounds"))
        model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
        attributes = {"body": body} if operator != "If" else {"then_branch": body, "else_branch": body}
        model.graph.node.append(helper.make_node(operator, ["rounds", "yes"], [], **attributes))

    return _model(change)


def _cycle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = model.graph.node[-1].output[0]


def _chain(count: int) -> Harm:
    nodes = [("Add", ["*", "one"], {})] * count
    return _ending_in(("Identity", ["one"], {}), *nodes, one=np.float32(0))


def _foreign(model: onnx.ModelProto) -> None:
    model.graph.node[-1].domain = "com.example"


def _functions(model: onnx.ModelProto) -> None:
    from onnx import helper

    node = helper.make_node("Identity", ["a"], ["b"])
    model.functions.append(helper.make_function("com.microsoft", "Mine", ["a"], ["b"], [node], model.opset_import))


def _sparse(model: onnx.ModelProto) -> None:
    from onnx import helper, numpy_helper

    values = numpy_helper.from_array(np.ones(1, np.float32), "sparse")
    places = numpy_helper.from_array(np.zeros(1, np.int64), "places")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [2**50]))


def graphs() -> list[NamedHarm]:
    """Name, harm, and whether answering is right as well."""
    shape, big = np.array([2**40]), np.array([2**14, 2**14, 2**14])
    constant = ("ConstantOfShape", ["shape"], {})
    float_one = np.ones(1, np.float32)
    return [
        ("external data, absolute", _external("/etc/passwd"), False),
        ("external data, climbing", _external("../../../../etc/passwd", offset="0", length="4"), False),
        ("external data by a link", _linked_data, False),
        ("external data at an address", _external("*/_ORT_MEM_ADDR_/*", offset="4096", length="64"), False),
        ("an operator of a foreign domain", _model(_foreign), False),
        ("functions of its own", _model(_functions), False),
        ("a sparse tensor of 2^50", _model(_sparse), False),
        ("2^60 numbers claimed", _dims(2**60), False),
        ("2^20 by 2^20 by 2^20 numbers claimed", _dims(2**20, 2**20, 2**20, data=b"abcd"), False),
        ("negative sizes", _dims(-1, -16), False),
        ("sizes that overflow to 0", _dims(2**32, 2**32), False),
        ("a cycle", _model(_cycle), False),
        ("a loop of 2^62 rounds", _with_body("Loop"), False),
        ("a branch", _with_body("If"), False),
        ("a scan", _with_body("Scan"), False),
        ("two graphs", _model(lambda model: model.SerializeToString() * 2), False),
        ("101,000 nodes", _chain(101_000), False),
        ("5,000 nodes", _chain(5_000), True),
        ("ConstantOfShape of 2^40", _ending_in(constant, shape=shape), False),
        ("ConstantOfShape of 2^42", _ending_in(constant, shape=big), False),
        ("Expand to 2^42", _ending_in(("Expand", ["one", "shape"], {}), one=float_one, shape=big), False),
        ("Tile to 2^40", _ending_in(("Tile", ["one", "shape"], {}), one=float_one, shape=shape), False),
        (
            "Range to 2^50",
            _ending_in(("Range", ["a", "b", "c"], {}), a=np.int64(0), b=np.int64(2**50), c=np.int64(1)),
            False,
        ),
        (
            "40 doublings",
            _ending_in(("Identity", ["one"], {}), *[("Concat", ["*", "*"], {"axis": 0})] * 40, one=float_one),
            False,
        ),
        (
            "a product of 2^21 by 2^21",
            _ending_in(
                ("MatMul", ["tall", "wide"], {}),
                tall=np.zeros((2**21, 1), np.float32),
                wide=np.zeros((1, 2**21), np.float32),
            ),
            False,
        ),
        ("no graph at all", sealed_file(MODEL, lambda _: b""), False),
        (
            "a graph in onnxruntime's own format",
            sealed_file(MODEL, lambda _: b"\x18\0\0\0ORTM" + bytes(400)),
            False,
        ),
        ("text", sealed_file(MODEL, lambda _: b"no graph " * 100), False),
        ("lengths of 2^63", sealed_file(MODEL, lambda data: b"\x3a" + b"\xff" * 8 + b"\x7f" + data), False),
        (
            "outputs of another name",
            _model(lambda model: model.graph.output[0].__setattr__("name", "other")),
            False,
        ),
        (
            "NaN in the weights",
            _model(
                lambda model: model.graph.initializer[0].__setattr__(
                    "raw_data", b"\xff" * len(model.graph.initializer[0].raw_data)
                )
            ),
            False,
        ),
        (
            "zeros in the weights",
            _model(
                lambda model: model.graph.initializer[0].__setattr__(
                    "raw_data", bytes(len(model.graph.initializer[0].raw_data))
                )
            ),
            True,
        ),
    ]


# ---- tokenizers ---------------------------------------------------------------------------------------------


def _tokenizer(change: Callable[[dict[str, Any]], Any]) -> Harm:
    def edit(data: bytes) -> bytes:
        facts = json.loads(data)
        change(facts)
        return json.dumps(facts).encode()

    return sealed_file(TOKENIZER, edit)


def _normaliser(*parts: dict[str, Any]) -> Harm:
    return _tokenizer(lambda facts: facts.update(normalizer={"type": "Sequence", "normalizers": list(parts)}))


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _special(ids: list[int], times: int) -> dict[str, Any]:
    pieces = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}] * times
    one, two = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    tokens = {"[CLS]": {"id": "[CLS]", "ids": ids, "tokens": ["[CLS]"] * len(ids)}}
    return {
        "type": "TemplateProcessing",
        "single": [*pieces, one],
        "pair": [*pieces, one, two],
        "special_tokens": tokens,
    }


def tokenizers() -> list[NamedHarm]:
    """Name, harm, and whether answering is right as well."""
    grow = _replace({"String": "a"}, "a" * 10)
    wordpiece = {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "",
        "max_input_chars_per_word": 10**6,
    }
    vocab = {"[UNK]": 0, "[PAD]": 1, "a": 2}
    return [
        ("a text 10^12 times as long", _normaliser(*[grow] * 12), False),
        ("a text a million times as long", _normaliser(_replace({"String": ""}, "a" * 1_000_000)), False),
        ("a regular expression that tries for ever", _normaliser(_replace({"Regex": "(a+)+$b"}, "c")), True),
        (
            "a split that tries for ever",
            _tokenizer(lambda facts: facts.update(pre_tokenizer=_split("(a+)+[^a]"))),
            True,
        ),
        ("a regular expression of nonsense", _normaliser(_replace({"Regex": "((((("}, "c")), False),
        (
            "WordPiece of a million characters",
            _tokenizer(lambda facts: facts.update(model={**wordpiece, "vocab": vocab})),
            False,
        ),
        ("ids of 2^32 - 1", _tokenizer(lambda facts: facts.update(post_processor=_special([2**32 - 1], 1))), False),
        ("ids of 2^64", _tokenizer(lambda facts: facts.update(post_processor=_special([2**64], 1))), False),
        (
            "10^10 special tokens",
            _tokenizer(lambda facts: facts.update(post_processor=_special([2] * 100_000, 100_000))),
            False,
        ),
        ("no unknown token", _tokenizer(lambda facts: facts["model"].update(unk_token="[NONE]")), False),
        ("an empty vocabulary", _tokenizer(lambda facts: facts["model"].update(vocab={})), False),
        ("deep JSON", sealed_file(TOKENIZER, lambda _: b'{"a":' * 100_000), False),
        ("a tokenizer of NULs", sealed_file(TOKENIZER, lambda data: bytes(len(data))), False),
        ("no UTF-8", sealed_file(TOKENIZER, lambda data: b"\xff" + data), False),
        ("100,000 added tokens", _tokenizer(_many_added), True),
        (
            "a charsmap of nonsense",
            _tokenizer(
                lambda facts: facts.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "QUJD"})
            ),
            False,
        ),
        (
            "unigrams worth NaN",
            _tokenizer(lambda facts: facts.update(model={"type": "Unigram", "unk_id": 7, "vocab": [["a", 1e308]]})),
            False,
        ),
        (
            "merges that are not there",
            _tokenizer(lambda facts: facts.update(model={"type": "BPE", "vocab": vocab, "merges": ["x y"]})),
            False,
        ),
    ]


def _many_added(facts: dict[str, Any]) -> None:
    how = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    start = len(facts["model"]["vocab"])
    facts["added_tokens"] = [{"id": start + i, "content": f"<{i}>", **how} for i in range(100_000)]
