"""Datasets in: any of the layouts people keep graphs in, by path or name, as a `KnowledgeGraph`. No torch."""

from __future__ import annotations

from pmd.datasets.layouts import read
from pmd.datasets.places import find_dataset, shipped_datasets
from pmd.datasets.splits import SplitRule, resplit
from pmd.graph import KnowledgeGraph

__all__ = ["SplitRule", "load_graph", "shipped_datasets"]

DEFAULT_SPLIT = SplitRule()


def load_graph(source: str, rule: SplitRule = DEFAULT_SPLIT) -> KnowledgeGraph:
    """The graph of a dataset given by path (a folder or a file) or by name.

    `rule` says how to split a source that is one file and so names no splits; a folder's splits stay as they are.
    Raises DatasetError naming the file and line at fault.
    """
    material = read(find_dataset(source))
    return resplit(material.graph(), rule) if material.is_whole else material.graph()
