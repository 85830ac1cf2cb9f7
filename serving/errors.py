"""Errors that a user or a file can cause. Catch `PmdError` to catch them all.

PmdError                  base of every error of this toolkit; `exit_code` is what a command ends with
├── OutOfMemory           memory ran out (in pmd.serving.exhausted); a MemoryError as well
├── MissingExtra          an optional package is absent; the message is the pip command that brings it
├── PlatformError         this processor or Python cannot read bundles: big-endian, or 32 bits
└── ServingError
    ├── BundleError       folder or zip incomplete, damaged, of an unknown schema, or not what it claims
    │   └── SignatureError  not signed by a trusted key, or a key that is none
    ├── ProviderError     the asked execution provider is absent or refused the model
    ├── UnknownEntity     id or name not in the bundle; the message names the nearest ones
    ├── UnknownRelation   likewise for a relation
    └── QueryError        a question that cannot be answered: k below 1, empty text, mixed lengths

The training core, the export and the benchmarks hang their own classes below `PmdError`.
"""

from __future__ import annotations


class PmdError(Exception):
    """Base of every error a user or a file can cause; the message says found, expected, what to do."""

    exit_code = 2


class MissingExtra(PmdError):
    """A package of an optional extra is not installed."""


class PlatformError(PmdError):
    """The processor or the Python cannot read bundles: it is big-endian, or of 32 bits."""


class ServingError(PmdError):
    """Base of the edge runtime's errors."""


class BundleError(ServingError):
    """A bundle is incomplete, damaged, or of a schema this version does not read."""


class SignatureError(BundleError):
    """A bundle is not signed by a trusted key, or changed since; or a key file is not a key."""


class ProviderError(ServingError):
    """The asked onnxruntime execution provider is absent or refused the model."""


class UnknownEntity(ServingError):
    """No entity of the bundle has this id or name."""


class UnknownRelation(ServingError):
    """No relation of the bundle has this id or text."""


class QueryError(ServingError):
    """A question that cannot be answered as asked."""
