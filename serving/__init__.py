"""The edge runtime: numpy, onnxruntime and tokenizers alone.

    from pmd.serving import Scorer
    scorer = Scorer.load("bundles/umls-pmd-grade-3-int8")
    scorer.top_tails("acquired_abnormality", "affects", k=10)

Importing this package does not load onnxruntime; loading a bundle does.
"""

from pmd.serving.errors import (
    BundleError,
    MissingExtra,
    PlatformError,
    PmdError,
    ProviderError,
    QueryError,
    ServingError,
    SignatureError,
    UnknownEntity,
    UnknownRelation,
)
from pmd.serving.scorer import Prediction, Scorer

__all__ = [
    "BundleError",
    "MissingExtra",
    "PlatformError",
    "PmdError",
    "Prediction",
    "ProviderError",
    "QueryError",
    "Scorer",
    "ServingError",
    "SignatureError",
    "UnknownEntity",
    "UnknownRelation",
]
