"""Distil a text-based knowledge-graph link predictor and run it on the edge.

`pmd` trains, `pmd.export` turns a grade into a bundle, `pmd.serving` answers from a bundle and
`pmd.benchmarks` measures bundles. Importing `pmd` or `pmd.serving` loads nothing heavy.
"""

__version__ = "0.1.0"
