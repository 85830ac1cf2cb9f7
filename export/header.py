"""The header of a model card, by which the Hub files, filters and shows a bundle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from pmd.published import published
from pmd.serving.manifest import Manifest

LIBRARY = "pmd-kgc"
PIPELINE = "feature-extraction"  # what Hub tools do with a tower; the Hub has no pipeline for link prediction
TASK, TASK_NAME = "graph-ml", "Link prediction"
TAGS = ("knowledge-graph", "knowledge-graph-completion", "link-prediction", "onnx", "onnxruntime")
LICENCE_NAME = "of-the-encoder-and-the-dataset"
"""There is no one licence for weights made from an encoder and texts taken from a dataset; the card says more."""
METRICS = {"mrr": "MRR", "hits@1": "Hits@1", "hits@3": "Hits@3", "hits@10": "Hits@10", "mean_rank": "mean rank"}
DIGITS = 6
OLD_IDS = {"bert-base-uncased": "google-bert/bert-base-uncased"}
"""Ids of one part that shipped recipes use, and what the Hub calls them now."""


def card_header(name: str, facts: Manifest, base_model: str | None) -> str:
    """The YAML header of a bundle's card, with its fences. base_model: the Hub's id of the encoder, or None."""
    data = ModelCardData(
        model_name=name,
        library_name=LIBRARY,
        pipeline_tag=PIPELINE,
        tags=[*TAGS, facts["precision"]],
        license="other",
        license_name=LICENCE_NAME,
        base_model=base_model,
        eval_results=[*_results(facts)],
    )
    return f"---\n{data.to_yaml(line_break=chr(10))}\n---\n\n"


def hub_id(encoder: str, sha256: str | None = None) -> str | None:
    """The Hub's id of an encoder named in a recipe, None for a folder.

    sha256: of its weights; a shipped encoder's name counts only with the published ones. A name of two parts is
    taken for an id unless there is such a folder; of one part it may have been a folder elsewhere.
    """
    if Path(encoder).exists():
        return None
    known = published(encoder)
    if known is not None:
        return known.hub_id if sha256 in (None, known.sha256) else None
    encoder = OLD_IDS.get(encoder, encoder)
    if encoder.count("/") != 1 or encoder.startswith((".", "/", "~")):
        return None
    try:
        validate_repo_id(encoder)
    except HFValidationError:
        return None
    return encoder


def _results(facts: Manifest) -> Iterator[EvalResult]:
    """What was measured: the torch model on the test split, the bundle itself on the split it was checked on."""
    test, parity = facts["metrics"]["test"], facts["parity"]
    if test:
        for key, label in METRICS.items():
            yield _result(facts, "test", key, f"{label} (filtered; in torch, before the export)", test[key])
    yield _result(facts, parity["split"], "mrr", "MRR (filtered; of this bundle)", parity["mrr_bundle"])


def _result(facts: Mapping[str, Any], split: str, metric: str, label: str, value: float) -> EvalResult:
    return EvalResult(
        task_type=TASK,
        task_name=TASK_NAME,
        dataset_type=facts["dataset"],
        dataset_name=facts["dataset"],
        dataset_split=split,
        metric_type=metric,
        metric_name=label,
        metric_value=round(float(value), DIGITS),
    )
