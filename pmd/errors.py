"""Errors of the training core, below `pmd.serving.errors.PmdError`.

PmdError
├── DatasetError     a dataset folder is missing or a line of it is wrong (file and line in the message)
├── DownloadError    a public dataset cannot be fetched, or is not the file it should be (exit code 1)
├── ConversionError  a converted dataset does not read back as it was (exit code 1)
├── RecipeError      an unknown recipe, key or value
├── EncoderError     pretrained weights not found, or not the file they should be
├── RunError         a run folder is missing, belongs to another recipe, or lacks the stage asked for
├── GradeError       a grade folder is incomplete or its tensors are not what its config says
└── TrainingError    the training cannot go on with these settings
"""

from __future__ import annotations

from pmd.serving.errors import PmdError


class DatasetError(PmdError):
    """A dataset folder or one of its lines cannot be used."""


class DownloadError(PmdError):
    """A public dataset cannot be fetched, or is not the file it should be."""

    exit_code = 1


class ConversionError(PmdError):
    """A dataset that was written in another layout does not read back as it was."""

    exit_code = 1


class RecipeError(PmdError):
    """A recipe names an unknown key or a value out of range."""


class EncoderError(PmdError):
    """Pretrained weights were not found or are not the file they should be."""


class RunError(PmdError):
    """A run folder cannot be used as asked."""


class GradeError(PmdError):
    """A grade folder is incomplete or damaged."""


class TrainingError(PmdError):
    """Training cannot go on with these settings: losses are not finite, or a batch does not fit into memory."""
