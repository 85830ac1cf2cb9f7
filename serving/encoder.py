"""A tower as an ONNX graph: texts or text pairs in, unit vectors out."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pmd.serving import extras
from pmd.serving.asked import shown, thread_count
from pmd.serving.bundle import MODEL, Bundle
from pmd.serving.cores import default_threads
from pmd.serving.errors import BundleError, ProviderError
from pmd.serving.exhausted import out_of_memory, ran_out_of_memory
from pmd.serving.known import IntArray
from pmd.serving.ranking import FloatArray
from pmd.serving.tokenization import Text, TextTokenizer

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

CPU_PROVIDER = "CPUExecutionProvider"
PROVIDERS = {
    "cpu": CPU_PROVIDER,
    "cuda": "CUDAExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}
"""Short names; onnxruntime's own are understood as well."""
SLOW_FUSIONS = ["SkipLayerNormFusion"]
"""What onnxruntime must not do to a graph on a CPU: the fused norm takes seven times as long as its parts."""
OUTPUT = "sentence_embedding"
INPUTS = {"input_ids", "attention_mask", "token_type_ids"}
TEXTS_PER_RUN = 32
DYNAMIC_PRECISIONS = ("int8",)
"""Precisions whose graphs choose the scale of their activations from the batch they are given."""


def open_session(
    model: bytes | str | Path, *, provider: str = CPU_PROVIDER, threads: int | None = None
) -> InferenceSession:
    """An onnxruntime session on exactly the asked provider, by short name or onnxruntime's.

    threads: default as `cores.default_threads`; XNNPACK has a pool of its own, of the same size.

    Raises MissingExtra where no onnxruntime loads, ProviderError if the provider is absent or refuses the model,
    BundleError if the model itself is damaged.
    """
    onnxruntime = extras.load("cpu", "onnxruntime")  # here, not above: importing pmd.serving must work without it
    available = onnxruntime.get_available_providers()
    if not isinstance(provider, str):
        raise ProviderError(f"provider is one of {', '.join(PROVIDERS)}, got {shown(provider)}")
    provider = PROVIDERS.get(provider, provider)
    if provider not in available:
        has = ", ".join(short for short, name in PROVIDERS.items() if name in available)
        raise ProviderError(f"{provider} is not in this onnxruntime, which has {has}; ask for one of those")
    threads = default_threads() if threads is None else thread_count(threads)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    source = _openable(model)
    try:
        own = {"intra_op_num_threads": str(threads)} if provider == PROVIDERS["xnnpack"] else {}
        kept = SLOW_FUSIONS if provider == CPU_PROVIDER else []
        session = onnxruntime.InferenceSession(
            source, options, providers=[(provider, own)], disabled_optimizers=kept, enable_fallback=0
        )
    except Exception as error:  # onnxruntime's errors have no base class below Exception
        if ran_out_of_memory(error):
            raise out_of_memory(error) from error
        kind = BundleError if provider == CPU_PROVIDER else ProviderError
        raise kind(f"onnxruntime cannot open the model with {provider}: {_first_line(error)}") from error
    if session.get_providers()[0] != provider:  # it falls back to the CPU without raising
        raise ProviderError(f"{provider} refused the model; onnxruntime chose {session.get_providers()[0]} instead")
    return session


def texts_per_run(precision: str) -> int:
    """How many texts a graph of this precision may read at once: a dynamic one takes its scales from the batch."""
    return 1 if precision in DYNAMIC_PRECISIONS else TEXTS_PER_RUN


def _openable(model: bytes | str | Path) -> bytes | str:
    """A model as onnxruntime takes it: its bytes where its path is no text, for which onnxruntime has no way."""
    if isinstance(model, bytes):
        return model
    try:
        str(model).encode()
    except UnicodeEncodeError:
        return Path(model).read_bytes()
    return str(model)


class TowerEncoder:
    """Texts to vectors through one tower; safe to share between threads.

    Equal texts are encoded once a call. Texts are sorted by length and run `texts_per_run` at a time, so that
    little is padding. What stands beside a text moves its float32 vector by less than 1e-5 an element. A graph
    that quantises its activations as it goes (dynamic int8) takes their scale from the whole batch: there the
    same move was measured at 0.02 an element, 0.009 in cosine. Such a graph must run one text at a time, which
    `load` sees to: then vectors do not depend on the batch at all, and throughput was 30 % lower.
    """

    def __init__(
        self,
        session: InferenceSession,
        tokenizer: TextTokenizer,
        width: int,
        *,
        texts_per_run: int = TEXTS_PER_RUN,
        cached_texts: int = 0,
    ) -> None:
        """Check the graph's inputs and output. Raises BundleError.

        cached_texts: how many vectors of recent texts to keep; none by default, so that timings are honest.
        """
        self._session, self._tokenizer, self._texts_per_run = session, tokenizer, texts_per_run
        self.width = width
        self._inputs = [node.name for node in session.get_inputs()]
        outputs = [node.name for node in session.get_outputs()]
        unknown = sorted(set(self._inputs) - INPUTS)
        if unknown or "input_ids" not in self._inputs:
            raise BundleError(f"the graph's inputs are {self._inputs}, expected some of {sorted(INPUTS)}")
        if OUTPUT not in outputs:
            raise BundleError(f"the graph's outputs are {outputs}, expected {OUTPUT} among them")
        self._cache = _VectorCache(cached_texts)

    @classmethod
    def load(
        cls,
        bundle: Bundle,
        tower: str,
        *,
        provider: str = CPU_PROVIDER,
        threads: int | None = None,
        cached_texts: int = 0,
    ) -> TowerEncoder:
        """The encoder of a bundle's query or entity tower. Raises as `open_session`, and BundleError."""
        tokenizer, model = bundle.tokenizer(tower), bundle.model(tower)
        try:
            return cls(
                open_session(model, provider=provider, threads=threads),
                tokenizer,
                bundle.manifest["width"],
                texts_per_run=texts_per_run(bundle.manifest["precision"]),
                cached_texts=cached_texts,
            )
        except BundleError as error:
            raise BundleError(f"{bundle.path}: {tower}/{MODEL}: {error}") from error

    def __call__(self, texts: Sequence[Text]) -> FloatArray:
        """Vectors of texts or text pairs, float32 (N, D), of unit length.

        Raises BundleError if the graph fails or gives another shape.
        """
        distinct = list(dict.fromkeys(texts))
        if len(distinct) == 1 or self._texts_per_run == 1:
            vectors = {text: self._one(text) for text in distinct}
        else:
            vectors = self._cache.get(distinct)
            fresh = [text for text in distinct if text not in vectors]
            vectors |= self._batches(fresh)
            self._cache.put(fresh, vectors)
        return np.array([vectors[text] for text in texts], dtype=np.float32).reshape(len(texts), self.width)

    def _one(self, text: Text) -> FloatArray:
        """The way of a single question, which most are: nothing to sort, pad or gather."""
        vectors = self._cache.get([text])
        if text not in vectors:
            vectors = {text: self._run(self._tokenizer.single(text))[0]}
            self._cache.put([text], vectors)
        return vectors[text]

    def _batches(self, texts: Sequence[Text]) -> dict[Text, FloatArray]:
        """Vectors of distinct texts, encoded with others of like length."""
        table = self._tokenizer(texts)
        order = np.argsort(table.lengths, kind="stable")
        vectors: dict[Text, FloatArray] = {}
        for first in range(0, len(texts), self._texts_per_run):
            index = order[first : first + self._texts_per_run]
            inputs = table.take(index).padded(self._tokenizer.pad_id)
            vectors |= {texts[row]: vector for row, vector in zip(index, self._run(inputs), strict=True)}
        return vectors

    def _run(self, inputs: dict[str, IntArray]) -> FloatArray:
        try:
            (vectors,) = self._session.run([OUTPUT], {name: inputs[name] for name in self._inputs})
        except Exception as error:  # onnxruntime's errors have no base class below Exception
            if ran_out_of_memory(error):
                raise out_of_memory(error) from error
            raise BundleError(f"the tower's graph failed on a text: {_first_line(error)}") from error
        expected = (len(inputs["input_ids"]), self.width)
        if not isinstance(vectors, np.ndarray) or vectors.dtype.kind != "f":
            raise BundleError(f"the tower's graph gave {str(vectors)[:60]!r}, expected vectors of numbers")
        if vectors.shape != expected:
            raise BundleError(f"the tower's graph gave vectors of shape {vectors.shape}, expected {expected}")
        return np.asarray(vectors, dtype=np.float32)


class _VectorCache:
    """The vectors of the texts asked for last, at most `size` of them."""

    def __init__(self, size: int) -> None:
        self._size, self._lock = size, threading.Lock()
        self._vectors: OrderedDict[Text, FloatArray] = OrderedDict()

    def get(self, texts: Sequence[Text]) -> dict[Text, FloatArray]:
        """Those of `texts` that are kept."""
        if not self._size:
            return {}
        with self._lock:
            found = {text: self._vectors[text] for text in texts if text in self._vectors}
            for text in found:
                self._vectors.move_to_end(text)
        return found

    def put(self, texts: Sequence[Text], vectors: dict[Text, FloatArray]) -> None:
        """Keep the vectors of `texts`, dropping those not asked for longest."""
        if not self._size:
            return
        with self._lock:
            for text in texts[-self._size :]:
                self._vectors[text] = vectors[text].copy()  # a view would keep its whole batch alive
            while len(self._vectors) > self._size:
                self._vectors.popitem(last=False)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
