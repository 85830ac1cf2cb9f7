"""Errors of the export, below `pmd.serving.errors.PmdError`.

ExportError          a graph did not come out as it must (exit code 1)
├── ParityError      a bundle does not answer as its torch model does (exit code 1)
├── VerifyError      a bundle is no longer what its manifest says (exit code 1)
└── TargetError      the run lacks what was asked for, or the target folder is in the way (exit code 2)
HubError             a hub has no such repository or revision, or refuses the token (exit code 2)
└── HubFailure       a hub cannot be reached, fails, or sends something else than it should (exit code 1)
"""

from __future__ import annotations

from pmd.serving.errors import PmdError


class ExportError(PmdError):
    """The exporter, the optimiser or the quantiser gave a graph that is not what it must be."""

    exit_code = 1


class ParityError(ExportError):
    """A bundle's answers differ from the torch model's by more than its precision allows."""


class VerifyError(ExportError):
    """A bundle is not what its manifest says."""


class TargetError(ExportError):
    """The run has no such stage, or the target folder cannot be written or replaced."""

    exit_code = 2


class HubError(PmdError):
    """A hub has no such repository or revision, refuses the token, or the local folder is in the way."""


class HubFailure(HubError):
    """A hub cannot be reached, fails, or sends something else than was asked for."""

    exit_code = 1
