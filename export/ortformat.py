"""A tower as an `.ort` file, which builds of onnxruntime that hold only the operators of some models can read.

As onnxruntime's converter (`python -m onnxruntime.tools.convert_onnx_models_to_ort`) makes it, but for one operator
order (`pmd.export.ortbytes`) and no path of this machine in the list of operators.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from pmd.export.errors import ExportError, TargetError
from pmd.export.ortbytes import in_one_order
from pmd.export.quiet import own_logging
from pmd.export.scratch import scratch_files
from pmd.serving.bundle import MODEL, TOKENIZER
from pmd.serving.encoder import CPU_PROVIDER, OUTPUT, SLOW_FUSIONS, open_session
from pmd.serving.errors import BundleError
from pmd.serving.exhausted import out_of_memory, ran_out_of_memory
from pmd.serving.ranking import FloatArray
from pmd.serving.storage import write_atomic
from pmd.serving.tokenization import Text, TextTokenizer

ORT, OPERATORS = "onnx/model.ort", "onnx/required_operators.config"
LEVEL = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
"""All that readers of `.ort` files would not do themselves, integer products above all, and nothing that depends on
the processor: that begins with the layout optimisations of the next level."""
OPTIONS = {"session.save_model_format": "ORT", "session.qdqisint8allowed": "0"}
"""As the converter sets them; the second would otherwise follow the processor's kind."""
MAX_GAP = 1e-6
TEXTS: list[Text] = ["a", ("an entity", "a relation"), "a text of more words than the others"]
MAX_TOKENS = 16
ERRORS_ONLY = 3


def write_ort(tower_folder: Path) -> list[Path]:
    """Write a tower's `.ort` file and the list of its operators beside its `model.onnx`; returns the two paths.

    The same graph gives the same bytes with the same onnxruntime. Raises TargetError for a half-precision graph,
    ExportError if the file does not open, or its vectors are not those of `model.onnx`, StorageError if a disk is
    full.
    """
    _refuse_halves(tower_folder)
    with scratch_files() as scratch:
        converted = scratch / Path(ORT).name
        _convert(tower_folder / MODEL, converted)
        data, operators = in_one_order(converted.read_bytes()), _operators(converted)
    _check(tower_folder, data)
    contents = {tower_folder / ORT: data, tower_folder / OPERATORS: operators}
    for path, content in contents.items():
        write_atomic(path, content)
    return list(contents)


def _refuse_halves(tower_folder: Path) -> None:
    """Raise TargetError for an fp16 graph: an `.ort` file of it is of the kind of processor that it was made on."""
    weights = onnx.load(tower_folder / MODEL).graph.initializer
    if any(weight.data_type == onnx.TensorProto.FLOAT16 for weight in weights):
        raise TargetError(
            f"the {tower_folder.name} tower holds half-precision weights, which onnxruntime turns into float32 for "
            "an .ort file on most processors; make .ort files of another precision"
        )


def _convert(source: Path, target: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = LEVEL
    options.optimized_model_filepath = str(target)
    options.log_severity_level = ERRORS_ONLY
    for name, value in OPTIONS.items():
        options.add_session_config_entry(name, value)
    try:
        onnxruntime.InferenceSession(
            str(source), options, providers=[CPU_PROVIDER], disabled_optimizers=SLOW_FUSIONS
        )
    except Exception as error:  # onnxruntime's errors have no base class below Exception
        if ran_out_of_memory(error):
            raise out_of_memory(error) from error
        target.write_bytes(bytes(source.stat().st_size))  # it does not say that a disk is full: this does
        reason = str(error).strip().splitlines()[0]
        raise ExportError(f"onnxruntime cannot convert a graph to the .ort format: {reason}") from error


def _operators(converted: Path) -> bytes:
    """The operators of an `.ort` file, as builds of onnxruntime are told them, without the file's path."""
    listed = converted.with_suffix(".config")
    with own_logging(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # of the file that it leaves to be closed
        from onnxruntime.tools.ort_format_model import create_config_from_models

        create_config_from_models([converted], listed, enable_type_reduction=False)
    lines = [line for line in listed.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return ("\n".join(lines) + "\n").encode()


def _check(tower_folder: Path, data: bytes) -> None:
    """Raise ExportError unless the `.ort` file says what `model.onnx` says."""
    theirs = _vectors(tower_folder, tower_folder / MODEL)
    try:
        ours = _vectors(tower_folder, data)
    except BundleError as error:  # the format has no 4-bit tensors
        raise ExportError(f"the .ort file of the {tower_folder.name} tower cannot be used: {error}") from error
    gap = float(np.abs(ours - theirs).max())
    if not gap <= MAX_GAP:  # NaN compares false
        raise ExportError(
            f"the .ort file of the {tower_folder.name} tower differs from its model.onnx by {gap:.2g}"
        )


def _vectors(tower_folder: Path, model: bytes | Path) -> FloatArray:
    """Vectors of a few texts, one at a time, float32 (N, D)."""
    tokenizer = TextTokenizer((tower_folder / TOKENIZER).read_text(encoding="utf-8"), MAX_TOKENS)
    session = open_session(model, threads=1)
    inputs = [tokenizer([text]).padded(tokenizer.pad_id) for text in TEXTS]
    return np.concatenate([np.asarray(session.run([OUTPUT], one)[0]) for one in inputs])
