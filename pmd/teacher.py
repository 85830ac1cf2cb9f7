"""What a teacher says of a batch: read with the student, or, where nothing is masked, known beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from pmd.model import BiEncoder, TowerOutput, encode_chunks, run_tower
from pmd.packing import PackedTexts
from pmd.serving.exhausted import ran_out_of_memory
from pmd.serving.known import IntArray
from pmd.serving.tokenization import TokenTable

REMEMBERED_BYTES = 2 * 2**30  # tables over this are not kept; the teacher then reads every batch


class Remembered(NamedTuple):
    """vectors: (N, D) and states: (N, I, D) of all texts of a table."""

    vectors: Tensor
    states: Tensor


@dataclass
class Teacher:
    """A trained model that never changes. inner: its layers whose pooled states it also teaches."""

    model: BiEncoder
    inner: Sequence[int] = ()
    _tables: dict[str, Remembered] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """No dropout, no gradients."""
        self.model.eval().requires_grad_(False)

    def remember(self, tables: dict[str, TokenTable]) -> bool:
        """Read every text once, if what is said of them fits: an unmasked text always gets the same answer.

        Returns whether it did. With a teacher of 6 layers this takes two fifths off the steps of a 3-layer grade.
        """
        numbers = sum(len(table) for table in tables.values()) * self.model.width * (1 + len(self.inner))
        if 4 * numbers > REMEMBERED_BYTES:
            return False
        try:
            self._tables = {side: self._read(side, table) for side, table in tables.items()}
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
            return False
        return True

    def _read(self, side: str, table: TokenTable) -> Remembered:
        vectors = torch.empty(len(table), self.model.width, device=self.model.device)
        states = torch.empty(len(table), len(self.inner), self.model.width, device=self.model.device)
        for texts, output in encode_chunks(self.model, side, table, self.inner):
            vectors[texts], states[texts] = output.vectors.float(), output.states.float()
        return Remembered(vectors, states)

    @torch.no_grad()
    def says(self, side: str, sheet: PackedTexts, ids: IntArray) -> TowerOutput:
        """What it says of a sheet of a batch whose texts stand at places `ids` of the side's table."""
        if side not in self._tables:
            return run_tower(self.model.tower(side), sheet, self.inner)
        vectors, states = self._tables[side]
        wanted = torch.from_numpy(ids).to(vectors.device)[sheet.texts]
        nothing = vectors.new_zeros(0, vectors.shape[1])
        return TowerOutput(vectors[wanted], nothing, sheet.texts[:0], states[wanted])
