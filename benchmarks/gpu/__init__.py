"""Runs for a GPU machine without network, cut into slices of at most ten minutes: `python -m pmd.benchmarks.gpu`.

docs/gpu.md says which slices there are and how they are sized. Importing this package loads nothing.
"""
