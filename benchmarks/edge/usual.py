"""What one would put together instead: sentence-transformers for the text, numpy or faiss for the neighbours.

Both get the finished text pair and leave known answers in, which is less work than the runtime does. Their vectors
are float32, and of unit length, so that a product is a cosine.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pmd.benchmarks.edge.child import Request
from pmd.benchmarks.edge.sides import Rows, Side
from pmd.benchmarks.questions import TOP
from pmd.serving.bundle import CONFIG, ENTITIES, QUERY, TOKENIZER, VECTORS
from pmd.serving.ranking import FloatArray

COPIED = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
)
"""A tower's files that sentence-transformers reads beside configuration, weights and tokenizer.json."""


def torch_numpy(request: Request, rows: Rows) -> Side:
    """sentence-transformers on torch, numpy's product with every vector, argsort.

    request: `stage`, the grade's folder with the weights; `bundle`, a folder with the vectors.
    """
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(1)
    bundle = Path(request["bundle"])
    with tempfile.TemporaryDirectory(prefix="pmd-bench-") as folder:
        write_tower(Path(folder), bundle, Path(request["stage"]))
        model = SentenceTransformer(folder, device="cpu")
    vectors, texts = float_vectors(bundle), _texts(rows)

    def best(number: int) -> np.ndarray:
        query = model.encode([texts[number]], show_progress_bar=False)[0]
        return np.argsort(-(vectors @ query))[:TOP]

    return Side(best, _named(best, entity_ids(bundle)))


def onnx_faiss(request: Request, rows: Rows) -> Side:
    """sentence-transformers on onnxruntime, with the bundle's own graph, and faiss's flat index.

    request: `bundle`, an fp32 bundle's folder.
    """
    import faiss
    import onnxruntime
    from sentence_transformers import SentenceTransformer

    faiss.omp_set_num_threads(1)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # its default is every core it sees
    bundle = Path(request["bundle"])
    given = {"provider": "CPUExecutionProvider", "session_options": options}
    model = SentenceTransformer(str(bundle / QUERY), backend="onnx", device="cpu", model_kwargs=given)
    vectors, texts = float_vectors(bundle), _texts(rows)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)

    def best(number: int) -> np.ndarray:
        query = model.encode([texts[number]], show_progress_bar=False)
        return np.asarray(index.search(query, TOP)[1][0])

    return Side(best, _named(best, entity_ids(bundle)))


def write_tower(folder: Path, bundle: Path, stage: Path) -> None:
    """A grade's query tower as sentence-transformers reads it: the weights of `stage`, the rest from `bundle`."""
    from safetensors.torch import save_file
    from tokenizers import Tokenizer

    from pmd.grade import load_grade

    for name in COPIED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((bundle / QUERY / name).read_bytes())
    grade = load_grade(stage)
    tokenizer = Tokenizer.from_str(grade.tokenizer_json)  # the bundle's may know only the words of its graph
    tokenizer.no_padding()
    tokenizer.enable_truncation(grade.info.max_tokens)
    tokenizer.save(str(folder / TOKENIZER))
    tower = grade.model.query
    config = json.loads(tower.config.to_json_string()) | {"architectures": [type(tower).__name__]}
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    weights = {name: value.contiguous() for name, value in tower.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def float_vectors(bundle: Path) -> FloatArray:
    """A bundle's entity vectors as its user would read them, float32 (E, D), of unit length."""
    vectors = np.load(bundle / VECTORS).astype(np.float32, order="C")  # an int8 row's scale cancels in its length
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors)


def entity_ids(bundle: Path) -> list[str]:
    """The ids in the order of the vectors."""
    lines = (bundle / ENTITIES).read_text(encoding="utf-8").split("\n")
    return [line.partition("\t")[0] for line in lines[:-1]]


def _texts(rows: Rows) -> list[tuple[str, str]]:
    return [(row["text"][0], row["text"][1]) for row in rows]


def _named(best: Callable[[int], np.ndarray], ids: list[str]) -> Callable[[int], list[str]]:
    return lambda number: [ids[index] for index in best(number)]
