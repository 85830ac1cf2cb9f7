"""Errors of the benchmarks."""

from __future__ import annotations

from pmd.serving.errors import PmdError


class BenchError(PmdError):
    """The bundles asked for cannot be found or compared, or the report cannot be written there."""


class MeasureError(PmdError):
    """A bundle failed, hung or died while it was measured; the report carries it as an error row."""

    exit_code = 1
