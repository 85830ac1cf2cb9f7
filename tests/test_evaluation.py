"""The trainer's scores are the runtime's to the last bit, and do not depend on how they are computed."""

import numpy as np
import torch

from pmd.evaluation import on_grid
from pmd.serving.vectors import GRID, VectorTable


def unit(rng, count, width=384):
    vectors = rng.normal(size=(count, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_scores_equal_the_runtimes_bit_for_bit():
    rng = np.random.default_rng(0)
    queries, entities = unit(rng, 37), unit(rng, 501)
    whole = ((on_grid(torch.from_numpy(queries)) @ on_grid(torch.from_numpy(entities)).T) / GRID**2).float().numpy()
    np.testing.assert_array_equal(whole, VectorTable(entities).scores(queries))


def test_the_order_of_summation_does_not_matter():
    rng = np.random.default_rng(1)
    queries, entities = on_grid(torch.from_numpy(unit(rng, 20))), on_grid(torch.from_numpy(unit(rng, 300)))
    order = torch.from_numpy(rng.permutation(384))
    assert (queries @ entities.T).equal(queries[:, order] @ entities[:, order].T)
    one_by_one = torch.stack([entities @ query for query in queries])
    assert (queries @ entities.T).equal(one_by_one)
