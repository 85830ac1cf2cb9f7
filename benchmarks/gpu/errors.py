"""Errors of the GPU slices, below `pmd.serving.errors.PmdError`.

PmdError
├── KitError     a kit cannot be packed, is too large, or is not what its kit.json says
├── PartsError   a part of a carried folder is missing, or is not the file it should be
├── SliceError   an unknown slice, or one that lacks what it needs
├── ResultError  a result file lacks what a result must say
└── RunFailed    a training ended with an error of its own (exit code 1)
"""

from __future__ import annotations

from pmd.serving.errors import PmdError


class KitError(PmdError):
    """A kit cannot be packed or used."""


class PartsError(PmdError):
    """A carried folder cannot be put together from its parts."""


class SliceError(PmdError):
    """A slice cannot be run as asked."""


class ResultError(PmdError):
    """A result file lacks what a result must say."""


class RunFailed(PmdError):
    """A training ended with an error; its own message stands above."""

    exit_code = 1
