"""One tower as a fused ONNX graph that pools and normalises itself.

The TorchScript exporter is used on purpose: onnxruntime's fusions look for the node patterns it writes, and find
neither embeddings nor attention in the graphs of torch's newer exporter (docs/decisions/onnx-exporter.md).
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from onnxruntime.transformers.fusion_options import FusionOptions
from onnxruntime.transformers.optimizer import optimize_model
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from pmd import __version__
from pmd.export.errors import ExportError
from pmd.export.quiet import own_logging
from pmd.export.scratch import scratch_files
from pmd.export.width import Narrowing
from pmd.families import token_types
from pmd.grade import rebuilt_tower
from pmd.model import unit_length
from pmd.serving.exhausted import ran_out_of_memory

OPSET = 17  # the first with LayerNormalization, and read by every onnxruntime since 1.13
IR_VERSION = 8  # the file format of opset 17
CONTRIB = "com.microsoft"  # the domain of fused operators
OPSETS = (("", OPSET), (CONTRIB, 1))
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
VECTOR, HIDDEN = "sentence_embedding", "last_hidden_state"
FUSED_OPS = ("EmbedLayerNormalization", "Attention", "SkipLayerNormalization", "BiasGelu")
TRACE_SHAPE = (2, 7)  # any batch and length will do: both stay free in the graph


@dataclass(frozen=True)
class FusedGraph:
    """A tower's float32 graph after fusion. fused: how many nodes of each fused operator it has."""

    model: onnx.ModelProto
    fused: dict[str, int]
    complete: bool
    """Whether every layer became the fused operators it can become."""


class SentenceTower(nn.Module):
    """A tower with masked mean pooling and unit length inside: ids in, (vectors, hidden states) out."""

    def __init__(self, tower: PreTrainedModel, narrowing: Narrowing | None = None) -> None:
        super().__init__()
        self.tower = tower
        self.projection = None if narrowing is None else nn.Parameter(torch.from_numpy(narrowing.matrix))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Three int64 (B, L) -> unit vectors (B, D) and last hidden states (B, L, D)."""
        types = token_types(self.tower, token_type_ids)  # as in training (pmd.model.run_tower)
        hidden = self.tower(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state
        if self.projection is not None:  # before pooling: Hub tools pool the hidden states themselves
            hidden = hidden @ self.projection
        real = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return unit_length((hidden * real).sum(dim=1)), hidden  # the mean's divisor cancels in the unit length


def export_tower(tower: PreTrainedModel, narrowing: Narrowing | None = None) -> FusedGraph:
    """The fused float32 graph of a tower. Raises ExportError if a BERT tower did not fuse in full."""
    graph = fuse(trace(tower, narrowing), tower.config)
    if not graph.complete and tower.config.model_type == "bert":
        raise ExportError(
            f"a BERT tower of {tower.config.num_hidden_layers} layers fused to {graph.fused}, expected "
            f"{expected_fusions(tower.config)}; use the versions of torch, transformers and onnxruntime that "
            "pmd-kgc[export] asks for"
        )
    return graph


def trace(tower: PreTrainedModel, narrowing: Narrowing | None = None) -> onnx.ModelProto:
    """The unfused graph of a tower, as the TorchScript exporter writes it."""
    module = SentenceTower(
        _eager(tower), narrowing
    ).eval()  # the exporter restores the mode it found: eval, or dropout is on
    batch, length = TRACE_SHAPE
    ids = (torch.arange(batch * length).view(TRACE_SHAPE) + 5) % tower.config.vocab_size
    mask, types = torch.ones_like(ids), torch.zeros_like(ids)
    mask[1, length - 2 :] = 0
    with scratch_files() as folder:
        path = folder / "tower.onnx"
        try:
            _trace_to(path, module, (ids, mask, types))
        except (RuntimeError, TypeError, ValueError) as error:
            if ran_out_of_memory(error):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ExportError(f"torch cannot export a {tower.config.model_type} tower: {reason}") from error
        return onnx.load(path)


def fuse(model: onnx.ModelProto, config: PretrainedConfig) -> FusedGraph:
    """Fuse a traced tower with onnxruntime's transformer optimiser; `model` is not changed."""
    options = FusionOptions("bert")
    # A mask by position rather than by length: as fast, and right for left padding and gaps as well.
    options.use_raw_attention_mask(True)
    with own_logging():  # it warns of vocabularies smaller than the positions, and fuses them
        optimised = optimize_model(
            copy.deepcopy(model),
            model_type="bert",
            num_heads=getattr(config, "num_attention_heads", 0),
            hidden_size=config.hidden_size,
            optimization_options=options,
            opt_level=0,  # fusion in Python alone: what onnxruntime itself rewrites depends on this machine
        ).model
    counts = count_ops(optimised)
    fused = {op: counts[op] for op in FUSED_OPS}
    wanted = expected_fusions(config)
    complete = all(fused[op] == wanted[op] for op in wanted)
    return FusedGraph(tidy(optimised), fused, complete)


def expected_fusions(config: PretrainedConfig) -> dict[str, int]:
    """How many fused nodes a BERT tower of this configuration must have."""
    layers = config.num_hidden_layers
    wanted = {"EmbedLayerNormalization": 1, "Attention": layers, "SkipLayerNormalization": 2 * layers}
    return wanted | ({"BiasGelu": layers} if getattr(config, "hidden_act", "gelu") == "gelu" else {})


def count_ops(model: onnx.ModelProto) -> Counter[str]:
    """Nodes of each operator."""
    return Counter(node.op_type for node in model.graph.node)


def tidy(model: onnx.ModelProto, ir_version: int = IR_VERSION) -> onnx.ModelProto:
    """`model` with stable names, its three inputs, and nothing that tells when or where it was made; in place.

    The same weights must give the same bytes, so that a manifest's hashes can be checked by exporting again.
    """
    model.producer_name, model.producer_version = "pmd-kgc", __version__
    model.domain, model.doc_string, model.ir_version = "", "", ir_version
    del model.metadata_props[:]
    graph = model.graph
    graph.name, graph.doc_string = "tower", ""
    del graph.value_info[:]
    _declare_inputs(graph)
    _rename(graph)
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in OPSETS)
    return model


def graph_bytes(model: onnx.ModelProto) -> bytes:
    """The file of a graph, the same bytes every time."""
    return bytes(model.SerializeToString(deterministic=True))


def _trace_to(path: Path, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    with warnings.catch_warnings(), torch.inference_mode():
        # Chosen on purpose, see above; the tracer's warnings are about shape checks that this export does not need.
        warnings.filterwarnings("ignore", "You are using the legacy TorchScript", DeprecationWarning)
        warnings.filterwarnings("ignore", "The feature will be removed", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        torch.onnx.export(
            module,
            inputs,
            path,
            dynamo=False,
            opset_version=OPSET,
            input_names=list(INPUTS),
            output_names=[VECTOR, HIDDEN],
            dynamic_axes={
                **{name: {0: "batch", 1: "tokens"} for name in (*INPUTS, HIDDEN)},
                VECTOR: {0: "batch"},
            },
        )


def _eager(tower: PreTrainedModel) -> PreTrainedModel:
    """A copy whose attention is plain matrix products: the pattern that the fusion looks for."""
    return rebuilt_tower(tower.config, tower.state_dict(), "eager")


def _declare_inputs(graph: onnx.GraphProto) -> None:
    """Declare all three inputs, in order, whether or not the family reads token types: callers pass all three."""
    del graph.input[:]
    shape = ["batch", "tokens"]
    graph.input.extend(onnx.helper.make_tensor_value_info(n, onnx.TensorProto.INT64, shape) for n in INPUTS)


def _rename(graph: onnx.GraphProto) -> None:
    """Name nodes and inner tensors by operator and position; weights keep the names torch gave them."""
    if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
        return  # the body of a branch or loop reads outer tensors by name
    fixed = {*INPUTS, VECTOR, HIDDEN, ""}
    names = {name: name for name in fixed}
    anonymous = 0
    for weight in graph.initializer:
        if weight.name.startswith("tower."):
            names[weight.name] = weight.name.removeprefix("tower.")
        else:
            names[weight.name], anonymous = f"constant_{anonymous}", anonymous + 1
        weight.name = names[weight.name]
    for position, node in enumerate(graph.node):
        node.name, node.doc_string = f"{node.op_type}_{position}", ""
        for slot, output in enumerate(node.output):
            names.setdefault(output, f"{node.name}_{slot}")
    for node in graph.node:
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]
