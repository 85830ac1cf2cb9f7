"""`python -m pmd.benchmarks.gpu`."""

from __future__ import annotations

from pmd.benchmarks.gpu.cli import main

if __name__ == "__main__":
    main(prog_name="python -m pmd.benchmarks.gpu")
