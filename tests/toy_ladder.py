"""A ladder of the toy graph, trained on the CPU."""

from pathlib import Path
from typing import Any

import torch

from pmd.ladder import train_ladder
from pmd.recipe import load_recipe
from tests.tiny_encoder import tiny_graph, write_recipe


def toy_ladder(out: Path, data: Path, encoder: Path, settings: dict[str, Any], **how: Any) -> dict[str, Any]:
    """ladder.json's contents; the recipe stands beside the run folder. how: train_ladder's `resume` and so on."""
    recipe = load_recipe(str(write_recipe(out.with_suffix(".yaml"), data, encoder)), settings)
    options = {"device": torch.device("cpu"), "resume": False, "time_limit": None, "progress": False} | how
    return train_ladder(recipe, tiny_graph(), out, **options)[0]
