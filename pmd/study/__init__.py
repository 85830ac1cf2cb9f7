"""`pmd-study`: the paper's tables and its open questions, repeated over seeds on any dataset.

The studies are data (`variants.py`). A variant and a seed make a run folder, which `pmd.ladder` trains.
"""
