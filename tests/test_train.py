"""The loop: schedule, best checkpoint, resumed = uninterrupted, and losses that are not finite."""

import pytest

from pmd.batches import Batching, tokenise
from pmd.checkpoint import StageState
from pmd.encoder import load_encoder, resolve_encoder
from pmd.errors import RunError, TrainingError
from pmd.events import Events
from pmd.serving.texts import Templates
from pmd.serving.tokenization import TextTokenizer
from pmd.step import Objective
from pmd.teacher import Teacher
from pmd.train import Schedule, StageTrainer, TimeLimitReached, learning_rate
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


def trainer(texts, pretrained, folder, *, lr=0.002, epochs=3, rate=0.3, out_of_time=lambda: False, **changes):
    return StageTrainer(
        stage="grade-2",
        student=pretrained.cut((1, 3)),
        teacher=Teacher(pretrained.cut((0, 1, 2, 3))),
        texts=texts,
        known=texts.graph.known(),
        batching=BATCHING,
        schedule=Schedule(epochs, lr, warmup_steps=2, weight_decay=1e-4, clip_norm=10, mask_rate=rate, seed=(0, 1)),
        objective=OBJECTIVE,
        checkpoint=folder / "checkpoint.safetensors",
        checkpoint_seconds=1e9,
        events=Events(folder / "events.jsonl", progress=False),
        out_of_time=out_of_time,
        **changes,
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


@pytest.mark.parametrize("stop_after", [1, 6, 7, 8, 13])
def test_resumed_equals_uninterrupted(texts, pretrained, tmp_path, stop_after):
    """Stopped in the middle of an epoch, at its end, or late: the final bytes are the same."""
    (tmp_path / "whole").mkdir()
    whole = trainer(texts, pretrained, tmp_path / "whole")
    finished = whole.train()
    calls = iter(range(10_000))
    first = trainer(texts, pretrained, tmp_path, out_of_time=lambda: next(calls) >= stop_after)
    with pytest.raises(TimeLimitReached):
        first.train()
    second = trainer(texts, pretrained, tmp_path)
    resumed = second.train()
    for name, tensor in whole.student.state_dict().items():
        assert second.student.state_dict()[name].equal(tensor), name
    assert (resumed.step, resumed.triples, resumed.best_epoch) == (
        finished.step,
        finished.triples,
        finished.best_epoch,
    )
    assert [r["valid_mrr"] for r in resumed.history] == [r["valid_mrr"] for r in finished.history]


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
