"""The loop: schedule, best checkpoint, resumed = uninterrupted, and losses that are not finite."""

import pytest
import torch

from pmd.batches import Batching, epoch_batches, tokenise
from pmd.checkpoint import StageState
from pmd.encoder import load_encoder, resolve_encoder
from pmd.errors import RunError, TrainingError
from pmd.events import Events
from pmd.learner import Compute, Objective, Schedule
from pmd.serving.texts import Templates
from pmd.serving.tokenization import TextTokenizer
from pmd.step import train_step
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
