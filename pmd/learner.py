"""Who learns in a stage, from whom, by which losses, and at what pace."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from pmd.memory import EntityMemory
from pmd.model import BiEncoder
from pmd.skips import Skips
from pmd.teacher import Teacher
from pmd.workers import Workers

FeatureTerm = Literal["none", "positions", "pooled", "patient"]


@dataclass(frozen=True)
class Objective:
    """What the loss is made of."""

    alpha: float
    beta: float
    margin: float
    score_form: str = "cosine"
    """`cosine`: cosines times score_scale; `logit`: the student's with margin and temperature, as released."""
    score_scale: float = 1.0
    feature: FeatureTerm = "positions"
    """States compared: at masked positions, pooled over them by text, or pooled inner layers (patient)."""
    inner: tuple[int, ...] = ()
    """The student's layers that the patient term compares."""

    @property
    def compares(self) -> bool:
        """Whether states are compared, and not only scores."""
        return self.feature != "none" and self.beta > 0.0


@dataclass(frozen=True)
class Precision:
    """What towers compute in: float32, or bfloat16 in matrix products; teacher and student alike."""

    device_type: str
    bf16: bool

    def __call__(self) -> torch.autocast:
        """A context for a forward pass."""
        return torch.autocast(self.device_type, torch.bfloat16, enabled=self.bf16)


@dataclass
class Learner:
    """Who learns, from whom, by what."""

    student: BiEncoder
    optimizer: torch.optim.Optimizer
    objective: Objective
    clip_norm: float
    teacher: Teacher | None = None
    projection: nn.Linear | None = None
    """From the student's width to the teacher's, where they differ; it is not part of the grade."""
    memory: EntityMemory | None = None
    workers: Workers = field(default_factory=Workers)
    skips: Skips = field(init=False)
    precision: Precision = field(default_factory=lambda: Precision("cpu", bf16=False))

    def __post_init__(self) -> None:
        """No step was left out yet."""
        self.skips = Skips(self.device)

    @property
    def device(self) -> torch.device:
        """Where the student is."""
        return self.student.device

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that is trained: what the optimiser holds."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a stage trains."""

    epochs: int
    lr: float
    warmup_steps: int
    weight_decay: float
    clip_norm: float
    mask_rate: float
    seed: tuple[int, ...]
    mask_schedule: str = "fixed"
    mask_positions: str = "uniform"


@dataclass(frozen=True)
class Compute:
    """How a step is computed; of these only bf16 moves its numbers by more than rounding."""

    chunk_tokens: int | None = None
    bf16: bool = False
    compiled: bool = False


def new_learner(
    student: BiEncoder,
    teacher: Teacher | None,
    objective: Objective,
    schedule: Schedule,
    compute: Compute,
    memory: EntityMemory | None = None,
    workers: Workers | None = None,
) -> Learner:
    """A student before its first step. AdamW, as SimKGC has it (arXiv 2203.02167)."""
    projection = _projection(student, teacher, objective, schedule.seed[0])
    parameters = [*student.parameters(), *(projection.parameters() if projection is not None else ())]
    if compute.compiled:
        student.query.compile(dynamic=True)
        student.entity.compile(dynamic=True)
    return Learner(
        student=student,
        optimizer=torch.optim.AdamW(parameters, lr=schedule.lr, weight_decay=schedule.weight_decay, fused=True),
        objective=objective,
        clip_norm=schedule.clip_norm,
        teacher=teacher,
        projection=projection,
        memory=memory,
        workers=workers or Workers(),
        precision=Precision(student.device.type, compute.bf16),
    )


def _projection(student: BiEncoder, teacher: Teacher | None, objective: Objective, seed: int) -> nn.Linear | None:
    """From the student's width to the teacher's where states of different width are compared."""
    if teacher is None or teacher.model.width == student.width or not objective.compares:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projection = nn.Linear(student.width, teacher.model.width, bias=False)
        nn.init.orthogonal_(projection.weight)
    return projection.to(student.device)
