"""Entities' last vectors, which go on competing after their batch, without gradients.

SimKGC (arXiv 2203.02167) keeps the tails of the last batches; keeping every entity's last vector as well makes
batches that follow the graph learn as much per epoch as random ones (docs/decisions/graph-batches.md).

Old vectors stay behind while the model moves, so a model can beat them all by moving away from where they are, and
then learns nothing else. Hence they compete only while vectors are steady: while those of the last batch are close
to what they were when last encoded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pmd.batches import Batch, rivals
from pmd.model import BiEncoder
from pmd.serving.known import IntArray

NEVER = -(2**62)
STEADY = 0.9
"""Mean cosine of new and old vectors from which old ones compete. Seen at lr 2e-4: 0.87 to 0.92 at the peak of the
rate without them; with them, unguarded, 0.3 to 0.6, and a collapse of all vectors to one side."""

MOST_RIVALS = 65_536
"""Old vectors that compete in a step, drawn anew for each: a step's cost must not grow with the graph."""


@dataclass
class EntityMemory:
    """Vectors of all E entities as they were when last encoded. vectors: (E, D), without gradients."""

    vectors: Tensor
    horizon: int | None
    """Steps a vector is good for; None for ever."""
    self_negatives: bool
    encoded_at: Tensor = field(init=False)
    """int64 (E,), on the CPU: the step that a vector is of."""
    steadiness: Tensor = field(init=False)
    """Scalar, on the CPU: mean cosine of the last batch's vectors and those they replaced."""

    @classmethod
    def empty(
        cls, num_entities: int, student: BiEncoder, earlier_batches: int | Literal["all"], *, self_negatives: bool
    ) -> EntityMemory:
        """A memory for a student's vectors that reaches back this many batches, or to every entity's last one."""
        vectors = torch.zeros(num_entities, student.width, device=student.device)
        return cls(vectors, None if earlier_batches == "all" else earlier_batches, self_negatives)

    def __post_init__(self) -> None:
        """Nothing is in it yet."""
        self.encoded_at = torch.full((len(self.vectors),), NEVER, dtype=torch.int64)
        self.steadiness = torch.ones(())

    def put(self, entities: IntArray, vectors: Tensor, step: int) -> None:
        """Take in the unit vectors (N, D) of some entities (N,), but for those that are not finite."""
        index, new = torch.from_numpy(entities), vectors.detach()
        if not (finite := new.isfinite().all(dim=1)).all():
            index, new = index[finite.to(index.device)], new[finite]
        had, place = self.encoded_at[index] > NEVER, index.to(self.vectors.device)
        if had.any():
            self.steadiness = (self.vectors[place] * new).sum(dim=1)[had.to(new.device)].mean().cpu()
        self.vectors[place] = new
        self.encoded_at[index] = step

    def fill(self, vectors: Tensor, step: int) -> None:
        """Take in the unit vectors (E, D) of all entities."""
        self.vectors.copy_(vectors)
        self.encoded_at.fill_(step)
        self.steadiness = torch.ones(())

    def rivals(self, batch: Batch, step: int) -> tuple[Tensor, Tensor] | None:
        """Vectors (K, D) of the entities that compete beside the batch's own, and who rivals whom, bool (Q, K).

        None where there are none, or vectors are not steady.
        """
        if float(self.steadiness) < STEADY:
            return None
        usable = self.encoded_at.numpy() > (NEVER if self.horizon is None else max(NEVER, step - self.horizon - 1))
        usable[batch.entity_ids] = False
        entities = np.flatnonzero(usable)
        if not len(entities):
            return None
        if len(entities) > MOST_RIVALS:
            entities = np.sort(np.random.default_rng(step).choice(entities, MOST_RIVALS, replace=False))
        column = np.full(len(usable), -1)
        column[entities] = np.arange(len(entities))
        negative = rivals(batch.heads, column, len(entities), batch.known, self_negatives=self.self_negatives)
        device = self.vectors.device
        return self.vectors[torch.from_numpy(entities).to(device)], torch.from_numpy(negative).to(device)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {"vectors": self.vectors, "encoded_at": self.encoded_at, "steadiness": self.steadiness}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take a checkpoint's state back. Raises KeyError or RuntimeError if it is another graph's."""
        self.vectors.copy_(state["vectors"])
        self.encoded_at.copy_(state["encoded_at"])
        self.steadiness = state["steadiness"].clone()
