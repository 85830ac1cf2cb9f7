"""Steps whose losses or gradients are not finite: planted at random steps of a toy stage."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from tests.trust.attack import Attack, Ground, Tally

EPOCHS, BATCH = 2, 12
DIVERGING = 5  # one case in so many is a learning rate far too high
KINDS = ("loss NaN", "loss infinite", "gradient NaN", "gradient infinite", "gradient too long", "vectors NaN")
LOOPS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batches along the graph, old vectors as rivals": {"order": "graph", "earlier_batches": "all"},
    "gradient caching": {"chunk_tokens": 64},
    "bfloat16": {"bf16": True},
}


class Case(NamedTuple):
    """A stage to train: its loop, which of its steps go bad and how, and after how many steps it is stopped."""

    loop: str
    bad: dict[int, str]
    stop_after: int | None
    late: bool
    """Whether the counts are read at the end of an epoch only, as on a GPU."""

    @property
    def ends(self) -> int | None:
        """The step at which three in a row are bad, None without one."""
        return next((step for step in sorted(self.bad) if {step - 1, step - 2} <= self.bad.keys()), None)


class Stage:
    """A toy student, loaded once, trained anew for each case."""

    def __init__(self, folder: Path) -> None:
        import torch

        from pmd.batches import Batching, steps_per_epoch, tokenise
        from pmd.encoder import load_encoder, resolve_encoder
        from pmd.serving.texts import Templates
        from pmd.serving.tokenization import TextTokenizer
        from tests.tiny_encoder import tiny_graph, tiny_tokenizer, write_encoder

        torch.set_num_threads(1)
        self.folder = folder
        self.texts = tokenise(tiny_graph(), TextTokenizer(tiny_tokenizer().to_str(), 50), Templates(neighbours=3))
        files = resolve_encoder(str(write_encoder(folder / "encoder", layers=2)))
        self.pretrained = load_encoder(files, dropout=0.1, temperature=0.05)
        self.steps = EPOCHS * steps_per_epoch(self.texts.known, Batching(BATCH, "batch", True, None))

    def trainer(self, folder: Path, loop: str, lr: float = 0.002, stop_after: int | None = None) -> Any:
        """A fresh trainer with its files in `folder`; stops as at a time limit after so many steps."""
        from pmd.batches import Batching
        from pmd.events import Events
        from pmd.learner import Compute, Objective, Schedule
        from pmd.teacher import Teacher
        from pmd.train import StageTrainer

        folder.mkdir(exist_ok=True)
        settings = LOOPS[loop]
        looks = iter(range(10**9))
        return StageTrainer(
            stage="grade-1",
            student=self.pretrained.cut((1,)),
            teacher=Teacher(self.pretrained.cut((0, 1))),
            objective=Objective(0.2, 0.3, 0.02, score_scale=20.0),
            texts=self.texts,
            known=self.texts.graph.known(),
            batching=Batching(BATCH, "batch", True, None, settings.get("order", "random")),
            schedule=Schedule(EPOCHS, lr, 2, 1e-4, 10.0, 0.3, (0, 1), "gap"),
            checkpoint=folder / "checkpoint.safetensors",
            checkpoint_seconds=1e9,
            events=Events(folder / "events.jsonl", progress=False),
            out_of_time=lambda: stop_after is not None and next(looks) >= stop_after - 1,
            earlier_batches=settings.get("earlier_batches", 0),
            compute=Compute(settings.get("chunk_tokens"), settings.get("bf16", False)),
        )

    def expected(self, case: Case) -> dict[str, Any]:
        """Weights at the end, or at the third bad step in a row, by a step that simply leaves bad ones out."""
        import torch

        from pmd.step import step_gradients

        end, weights = case.ends, {}

        def step(learner: Any, batch: Any, number: int, seed: Any, chunk_tokens: int | None) -> Any:
            learner.optimizer.zero_grad(set_to_none=True)
            parts = step_gradients(learner, batch, number, seed, chunk_tokens)
            torch.nn.utils.clip_grad_norm_(learner.parameters, learner.clip_norm)
            learner.skips.latest = torch.tensor(number in case.bad)
            learner.skips._counts[0] += number in case.bad
            if number not in case.bad:
                learner.optimizer.step()
            if number == end:
                weights.update(_weights(learner.student))
            return parts

        with patch("pmd.train.train_step", step):
            trainer = self.trainer(self.folder / "expected", case.loop)
            trainer.train()
        return weights or _weights(trainer.student)


@contextmanager
def planted(bad: dict[int, str], seed: int) -> Iterator[None]:
    """Make the steps of these numbers bad, each in its way."""
    import pmd.step

    whole = pmd.step.step_gradients

    def step_gradients(learner: Any, batch: Any, step: int, seeds: Any, chunk_tokens: int | None) -> Any:
        kind = bad.get(step, "")
        if kind != "vectors NaN":
            parts = whole(learner, batch, step, seeds, chunk_tokens)
            return WAYS[kind](learner, parts, seed + step) if kind else parts
        read = pmd.step._Side.read

        def broken(side: Any, kept: int) -> None:
            read(side, kept)
            if side.name == "entity":
                side.vectors.data[seed % len(side.vectors)] = math.nan

        with patch.object(pmd.step._Side, "read", broken):
            return whole(learner, batch, step, seeds, chunk_tokens)

    with patch("pmd.step.step_gradients", step_gradients):
        yield


def _loss(value: float) -> Callable[[Any, Any, int], Any]:
    return lambda learner, parts, seed: parts._replace(total=parts.total * value)


def _gradient(value: float, *, whole: bool = False) -> Callable[[Any, Any, int], Any]:
    def plant(learner: Any, parts: Any, seed: int) -> Any:
        having = [parameter for parameter in learner.parameters if parameter.grad is not None]
        gradient = having[seed % len(having)].grad.view(-1)
        gradient[slice(None) if whole else seed % len(gradient)] = value
        return parts

    return plant


WAYS = {
    "loss NaN": _loss(math.nan),
    "loss infinite": _loss(math.inf),
    "gradient NaN": _gradient(math.nan),
    "gradient infinite": _gradient(-math.inf),
    "gradient too long": _gradient(1e30, whole=True),
}


def make_steps(ground: Ground) -> Tally:
    """A stage with bad steps is the stage without them; three in a row end it, with the batch to look at."""
    tally, random = Tally(), ground.random
    stage = Stage(ground.folder)
    for number in range(ground.count):
        if number % DIVERGING == DIVERGING - 1:
            _diverges(stage, ground.folder / f"lr-{number}", 10 ** random.uniform(1, 37), tally)
            continue
        bad = {step: random.choice(KINDS) for step in range(stage.steps) if random.random() < 0.3}
        loop = random.choice(list(LOOPS))
        if LOOPS[loop].get("earlier_batches"):  # there the reference would take NaN vectors in
            bad = {step: kind if kind != "vectors NaN" else "gradient NaN" for step, kind in bad.items()}
        case = Case(loop, bad, random.choice([None, random.randrange(1, stage.steps)]), random.random() < 0.5)
        folder = ground.folder / str(number)
        wrong = _outcome(stage, case, folder, ground.seed + number)
        words = f"case {number}, {case}: {wrong}"
        if wrong:
            tally.failed(words)
        else:
            ended = "ended at the third in a row" if case.ends is not None else "finished without them"
            tally.saw(ended if case.stop_after is None else f"{ended}, resumed")
    return tally


def _outcome(stage: Stage, case: Case, folder: Path, seed: int) -> str | None:
    """What is wrong with how a case ended, None if nothing."""
    from pmd.errors import TrainingError
    from pmd.train import StageTrainer, TimeLimitReached

    trainer = stage.trainer(folder, case.loop, stop_after=case.stop_after)
    error = None
    late = patch.object(StageTrainer, "_report", lambda *_: None) if case.late else nullcontext()
    with planted(case.bad, seed), late:
        try:
            try:
                trainer.train()
            except TimeLimitReached:
                trainer = stage.trainer(folder, case.loop)
                trainer.train()
        except TrainingError as raised:
            error = raised
    reported = [_strict(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    if (case.ends is not None) != (error is not None):
        return f"error {error}, the third bad step in a row is {case.ends}"
    if _differ(_weights(trainer.student), stage.expected(case)):
        return "the weights are not those of the steps that were good"
    if error is not None:
        return _bad_batch(folder / "bad-batch", case, str(error))
    if trainer._state.skipped_steps != len(case.bad):
        return f"{trainer._state.skipped_steps} steps counted, {len(case.bad)} were bad"
    total = [event["skipped_steps"] for event in reported if event["event"] == "skipped"][-1:]
    return None if total == [len(case.bad)] * bool(case.bad) else f"{len(case.bad)} were bad, reported {total}"


def _bad_batch(folder: Path, case: Case, said: str) -> str | None:
    from safetensors.torch import load_file

    facts = _strict((folder / "batch.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "batch.safetensors")
    if facts["step"] != case.ends + 1 or f"step {case.ends + 1}" not in said or str(folder) not in said:
        return f"step {facts['step']} is saved, {said!r} is said, {case.ends + 1} was the third"
    if [query["query"] for query in facts["queries"]] != tensors["query_ids"].tolist():
        return "the two files of the bad batch do not tell of the same queries"
    return None


def _diverges(stage: Stage, folder: Path, lr: float, tally: Tally) -> None:
    """A learning rate far too high ends in one line, or in weights that are finite."""
    import torch

    from pmd.errors import TrainingError

    trainer = stage.trainer(folder, "plain", lr=lr)
    try:
        trainer.train()
    except TrainingError as error:
        if "\n" in str(error) or "lower lr" not in str(error):
            tally.failed(f"lr {lr:g}: {error}")
        else:
            tally.saw("far too high lr: one line")
        return
    if all(torch.isfinite(tensor).all() for tensor in _weights(trainer.student).values()):
        tally.saw("far too high lr: finished with finite weights")
    else:
        tally.failed(f"lr {lr:g}: weights that are not finite were kept")


def _weights(student: Any) -> dict[str, Any]:
    return {name: tensor.clone() for name, tensor in student.state_dict().items()}


def _differ(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    return any(not ours[name].equal(theirs[name]) for name in theirs)


def _strict(text: str) -> dict[str, Any]:
    """JSON as it is defined: without NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


ATTACKS = (
    Attack(
        name="nonfinite-steps",
        part="numbers",
        what="losses, gradients and vectors that are not finite at random steps, learning rates up to 1e37: "
        "weights are those of the good steps alone, resumed or not; three in a row end the run and save the batch",
        run=make_steps,
        quick=20,
        full=500,
    ),
)
