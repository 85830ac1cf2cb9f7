"""The loop: schedule, best checkpoint, resumed = uninterrupted, and losses that are not finite."""

import json

import pytest
import torch
from safetensors.torch import load_file

from pmd.batches import Batching, epoch_batches, tokenise
from pmd.checkpoint import StageState
from pmd.encoder import load_encoder, resolve_encoder
from pmd.errors import RunError, TrainingError
from pmd.events import Events
from pmd.learner import Compute, Objective, Schedule
from pmd.serving.texts import Templates
from pmd.serving.tokenization import TextTokenizer
from pmd.step import step_gradients, train_step
from pmd.teacher import Teacher
from pmd.train import StageTrainer, TimeLimitReached, learning_rate
from tests.tiny_encoder import tiny_graph, tiny_tokenizer, write_encoder

BATCHING = Batching(batch_size=8, candidates="all", self_negatives=True, answers_per_query=None)
OBJECTIVE = Objective(alpha=0.2, beta=0.3, margin=0.02, score_scale=20.0)


@pytest.fixture(scope="module")
def texts():
    return tokenise(tiny_graph(), TextTokenizer(tiny_tokenizer().to_str(), 50), Templates(neighbours=3))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    files = resolve_encoder(str(write_encoder(tmp_path_factory.mktemp("encoder"), layers=4)))
    return load_encoder(files, dropout=0.1, temperature=0.05)


def trainer(
    texts,
    pretrained,
    folder,
    *,
    lr=0.002,
    epochs=3,
    rate=0.3,
    out_of_time=lambda: False,
    inner=(),
    mask_schedule="fixed",
    mask_positions="uniform",
    **changes,
):
    folder.mkdir(exist_ok=True)
    schedule = Schedule(
        epochs,
        lr,
        warmup_steps=2,
        weight_decay=1e-4,
        clip_norm=10,
        mask_rate=rate,
        seed=(0, 1),
        mask_schedule=mask_schedule,
        mask_positions=mask_positions,
    )
    settings = {
        "student": pretrained.cut((1, 3)),
        "teacher": Teacher(pretrained.cut((0, 1, 2, 3)), inner),
        "batching": BATCHING,
        "objective": OBJECTIVE,
        "out_of_time": out_of_time,
    }
    return StageTrainer(
        stage="grade-2",
        texts=texts,
        known=texts.graph.known(),
        schedule=schedule,
        checkpoint=folder / "checkpoint.safetensors",
        checkpoint_seconds=1e9,
        events=Events(folder / "events.jsonl", progress=False),
        **(settings | changes),
    )


def test_learning_rate_rises_and_falls_linearly():
    rates = [learning_rate(step, 100, 10, 1.0) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 11)
    assert max(rates) == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert 0 < rates[99] < 0.02
    assert max(learning_rate(step, 10, 400, 1.0) for step in range(10)) == 1.0, "a short run still reaches its peak"


def test_the_teacher_gets_no_gradient_and_stays_as_it_was(texts, pretrained, tmp_path):
    stage = trainer(texts, pretrained, tmp_path, epochs=1)
    before = {name: tensor.clone() for name, tensor in stage.teacher.model.state_dict().items()}
    stage.train()
    for name, tensor in stage.teacher.model.state_dict().items():
        assert tensor.equal(before[name])


def resumes_to_the_same_bytes(make, folder, stop_after):
    (folder / "whole").mkdir()
    whole = make(folder / "whole")
    finished = whole.train()
    calls = iter(range(10_000))
    first = make(folder, out_of_time=lambda: next(calls) >= stop_after)
    with pytest.raises(TimeLimitReached):
        first.train()
    second = make(folder)
    resumed = second.train()
    for name, tensor in whole.student.state_dict().items():
        assert second.student.state_dict()[name].equal(tensor), name
    for key in ("step", "triples", "best_epoch", "best_valid"):
        assert getattr(resumed, key) == getattr(finished, key)
    ours, theirs = ([{**r, "seconds": 0} for r in state.history] for state in (resumed, finished))
    assert ours == theirs


SLOW = pytest.mark.slow


@pytest.mark.parametrize("stop_after", [7, *(pytest.param(stop, marks=SLOW) for stop in (1, 6, 8, 13))])
def test_resumed_equals_uninterrupted(texts, pretrained, tmp_path, stop_after):
    """Stopped in the middle of an epoch, at its end, or late: the final bytes are the same."""

    def make(folder, **changes):
        return trainer(texts, pretrained, folder, **changes)

    resumes_to_the_same_bytes(make, tmp_path, stop_after)


SMALL = Batching(batch_size=4, candidates="batch", self_negatives=False, answers_per_query=2, order="graph")
LOOPS = {
    "every entity remembered": {"batching": SMALL, "earlier_batches": "all"},
    "two batches remembered": {"batching": SMALL, "earlier_batches": 2},
    "gradient caching": {"compute": Compute(chunk_tokens=64)},
    "rate by the gap": {"mask_schedule": "gap", "mask_positions": "salience"},
    "nothing masked": {"rate": 0.0},
    "patient": {"objective": Objective(0.2, 0.3, 0.02, feature="patient", inner=(0,)), "inner": (1,), "rate": 0.0},
}


FAST = ("every entity remembered", "rate by the gap")


@pytest.mark.parametrize("loop", [pytest.param(loop, marks=[] if loop in FAST else SLOW) for loop in LOOPS])
def test_every_kind_of_loop_resumes_to_the_same_bytes(texts, pretrained, tmp_path, loop):
    def make(folder, **changes):
        return trainer(texts, pretrained, folder, epochs=2, **LOOPS[loop], **changes)

    resumes_to_the_same_bytes(make, tmp_path, stop_after=8)


def test_a_narrow_student_resumes_with_its_projection(texts, pretrained, tmp_path):
    files = resolve_encoder(str(write_encoder(tmp_path / "narrow", layers=2, width=16)))
    narrow = load_encoder(files, dropout=0.1, temperature=0.05)

    def make(folder, **changes):
        return trainer(texts, pretrained, folder, epochs=1, student=narrow.cut((0, 1)), **changes)

    resumes_to_the_same_bytes(make, tmp_path, stop_after=3)


def test_the_mask_rate_follows_the_schedule(texts, pretrained, tmp_path, monkeypatch):
    rates = []

    def watched(*arguments, **settings):
        rates.append(arguments[2].rate)
        return epoch_batches(*arguments, **settings)

    monkeypatch.setattr("pmd.train.epoch_batches", watched)
    trainer(texts, pretrained, tmp_path, mask_schedule="linear").train()
    assert rates == pytest.approx([0.3, 0.15, 0.0])
    rates.clear()
    state = trainer(texts, pretrained, tmp_path / "gap", mask_schedule="gap").train()
    gaps = [record["score"] for record in state.history]
    assert gaps[1] < gaps[0], "the student nears its teacher"
    assert rates == pytest.approx([0.3, 0.3, 0.3 * min(1, (gaps[1] / gaps[0]) ** 0.5)])


@pytest.mark.parametrize("message", ["DefaultCPUAllocator: can't allocate memory: you tried", None])
def test_out_of_memory_goes_on_in_smaller_chunks(texts, pretrained, tmp_path, monkeypatch, message):
    tried = []

    def step(learner, batch, number, seed, chunk_tokens):
        tried.append(chunk_tokens)
        if chunk_tokens is None or chunk_tokens > 300:
            raise RuntimeError(message) if message else torch.OutOfMemoryError("CUDA out of memory")
        return train_step(learner, batch, number, seed, chunk_tokens)

    monkeypatch.setattr("pmd.train.train_step", step)
    monkeypatch.setattr("pmd.train._smaller_chunk", lambda batch, chunk: 600 if chunk is None else chunk // 2)
    state = trainer(texts, pretrained, tmp_path).train()
    assert tried[:3] == [None, 600, 300]
    assert set(tried[3:]) == {300}, "what fitted is kept"
    assert state.step == len(tried) - 2


def test_a_batch_that_never_fits_is_one_line(texts, pretrained, tmp_path, monkeypatch):
    def never(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("pmd.train.train_step", never)
    with pytest.raises(TrainingError, match=r"out of memory even with .* lower batch_size"):
        trainer(texts, pretrained, tmp_path).train()


def test_other_errors_are_not_taken_for_out_of_memory(texts, pretrained, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr("pmd.train.train_step", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        trainer(texts, pretrained, tmp_path).train()


def test_the_student_ends_with_the_weights_of_its_best_epoch(texts, pretrained, tmp_path, monkeypatch):
    mrrs = iter([0.3, 0.5, 0.4])
    kept = []

    def measured(model, *_, **__):
        kept.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"mrr": next(mrrs)}, None

    monkeypatch.setattr("pmd.train.evaluate_model", measured)
    stage = trainer(texts, pretrained, tmp_path)
    state = stage.train()
    assert (state.best_epoch, state.best_mrr) == (2, 0.5)
    for name, tensor in stage.student.state_dict().items():
        assert tensor.equal(kept[1][name])


def test_a_loss_that_is_not_finite_stops_the_run(texts, pretrained, tmp_path):
    with pytest.raises(TrainingError, match="lower lr"):
        trainer(texts, pretrained, tmp_path, lr=1e30).train()


def test_a_damaged_or_foreign_checkpoint_is_refused(texts, pretrained, tmp_path):
    stage = trainer(texts, pretrained, tmp_path, out_of_time=lambda: True)
    with pytest.raises(TimeLimitReached):
        stage.train()
    other = trainer(texts, pretrained, tmp_path)
    other.stage = "grade-3"
    with pytest.raises(RunError, match="belongs to stage grade-2"):
        other.train()
    whole = stage.checkpoint.read_bytes()
    stage.checkpoint.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match="damaged"):
        trainer(texts, pretrained, tmp_path).train()
    assert StageState("x").best_mrr < 0


def spoilt(bad, after=step_gradients):
    """step_gradients whose steps of these numbers give a gradient that is not finite."""

    def gradients(learner, batch, step, seed, chunk_tokens):
        parts = after(learner, batch, step, seed, chunk_tokens)
        if step in bad:
            next(p for p in learner.parameters if p.grad is not None).grad.view(-1)[0] = bad[step]
        return parts

    return gradients


BAD = {0: float("nan"), 3: float("inf"), 4: float("nan")}


def test_steps_with_a_gradient_that_is_not_finite_are_left_out_resumed_or_not(
    texts, pretrained, tmp_path, monkeypatch
):
    monkeypatch.setattr("pmd.step.step_gradients", spoilt(BAD))

    def make(folder, **changes):
        return trainer(texts, pretrained, folder, epochs=1, **changes)

    resumes_to_the_same_bytes(make, tmp_path, stop_after=3)
    seen = [json.loads(line) for line in (tmp_path / "whole" / "events.jsonl").read_text().splitlines()]
    counts = [(event["step"], event["in_a_row"]) for event in seen if event["event"] == "skipped"]
    assert counts == [(1, 1), (4, 1), (5, 2)]
    assert [event["skipped_steps"] for event in seen if event["event"] == "epoch"] == [3]


def test_a_step_left_out_changes_neither_weights_nor_optimiser(texts, pretrained, tmp_path, monkeypatch):
    monkeypatch.setattr("pmd.step.step_gradients", spoilt(BAD))
    monkeypatch.setattr("pmd.train.train_step", watched := Watched())
    trainer(texts, pretrained, tmp_path, epochs=1).train()
    for step, (before, after) in enumerate(watched.states):
        same = all(a.equal(b) for a, b in zip(before, after, strict=True))
        assert same == (step in BAD), step


class Watched:
    """train_step, with weights and optimiser state before and after."""

    def __init__(self):
        self.states = []

    def __call__(self, learner, *arguments):
        before = self.state(learner)
        parts = train_step(learner, *arguments)
        self.states.append((before, self.state(learner)))
        return parts

    def state(self, learner):
        kept = [learner.optimizer.state.get(p, {}) for p in learner.parameters]
        empty = torch.zeros(())
        return [p.detach().clone() for p in learner.parameters] + [
            one.get(name, empty).clone().sum() for one in kept for name in ("step", "exp_avg", "exp_avg_sq")
        ]


@pytest.mark.parametrize("late", [False, True])
def test_three_in_a_row_end_the_run_with_their_batch_saved(texts, pretrained, tmp_path, monkeypatch, late):
    """Late: the counts are read at the end of an epoch, as they may be on a GPU; the end is the same."""
    monkeypatch.setattr("pmd.step.step_gradients", spoilt(dict.fromkeys((1, 3, 4, 5), float("nan"))))
    monkeypatch.setattr("pmd.train.train_step", watched := Watched())
    if late:
        monkeypatch.setattr(StageTrainer, "_report", lambda *_: None)
    stage = trainer(texts, pretrained, tmp_path)
    with pytest.raises(TrainingError, match=r"3 steps in a row is not finite, the last is step 6; its batch is in"):
        stage.train()
    assert all(p.equal(q) for p, q in zip(stage.student.parameters(), watched.states[2][1], strict=False))
    folder = tmp_path / "bad-batch"
    facts = json.loads((folder / "batch.json").read_text(), parse_constant=pytest.fail)
    assert (facts["step"], facts["skipped_steps"], facts["gradient_length"]) == (6, 4, None)
    assert facts["total"] > 0
    tensors = load_file(folder / "batch.safetensors")
    assert tensors["query_ids"].tolist() == [query["query"] for query in facts["queries"]]
    assert sorted(path.name for path in folder.iterdir()) == ["batch.json", "batch.safetensors"]


def test_a_bad_batch_that_cannot_be_saved_does_not_hide_why_the_run_ended(texts, pretrained, tmp_path, monkeypatch):
    monkeypatch.setattr("pmd.step.step_gradients", spoilt(dict.fromkeys(range(3), float("nan"))))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pmd.train.save_bad_batch", full)
    with pytest.raises(TrainingError, match=r"not finite.*could not be saved \(.*No space left"):
        trainer(texts, pretrained, tmp_path).train()


def test_memory_that_runs_out_in_the_optimiser_leaves_nothing_half_made(texts, pretrained, tmp_path, monkeypatch):
    """The first step makes its state; what it began when memory ran out would be taken for the whole."""
    tried = []

    def step(learner, *arguments):
        tried.append(arguments)
        if len(tried) == 1:
            learner.optimizer.state[learner.parameters[0]]["step"] = torch.zeros(())
            raise MemoryError
        return train_step(learner, *arguments)

    monkeypatch.setattr("pmd.train.train_step", step)
    monkeypatch.setattr("pmd.train._smaller_chunk", lambda *_: 600)
    trainer(texts, pretrained, tmp_path, epochs=1).train()
    seen = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in seen if event["event"] == "out_of_memory"] == [0]
