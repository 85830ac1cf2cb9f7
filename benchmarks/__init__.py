"""Measures bundles: latency, memory, size and accuracy on the machine at hand, into one report.

Importing this package loads nothing; `pmd-bench` (`pmd.benchmarks.cli`) is the door.
"""
