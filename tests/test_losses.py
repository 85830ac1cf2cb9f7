"""Every loss equals a slow, obvious reference in float64."""

import math

import numpy as np
import pytest
import torch

from pmd.losses import (
    distillation_loss,
    margin_logits,
    pooled_by_text,
    score_loss,
    squared_gaps,
    task_loss,
)


def reference_task_loss(scores, positive, negative, inverse_temperature, margin):
    terms = []
    for q in range(scores.shape[0]):
        rivals = sum(math.exp(scores[q, c] * inverse_temperature) for c in range(scores.shape[1]) if negative[q, c])
        for c in range(scores.shape[1]):
            if positive[q, c]:
                own = math.exp((scores[q, c] - margin) * inverse_temperature)
                terms.append(-math.log(own / (own + rivals)))
    return sum(terms) / len(terms)


@pytest.fixture
def example():
    rng = np.random.default_rng(3)
    scores = rng.uniform(-1, 1, (5, 9))
    positive = np.zeros((5, 9), bool)
    positive[np.arange(5), [0, 3, 3, 8, 1]] = True
    positive[2, 5] = True
    negative = ~positive & (rng.random((5, 9)) < 0.8)
    return scores, positive, negative


def test_task_loss_equals_the_reference(example):
    scores, positive, negative = example
    wanted = reference_task_loss(scores, positive, negative, 20.0, 0.02)
    got = task_loss(*(torch.tensor(a) for a in example), torch.tensor(20.0, dtype=torch.float64), 0.02)
    assert float(got) == pytest.approx(wanted, abs=1e-9)


def test_a_candidate_that_is_neither_answer_nor_negative_takes_no_part(example):
    scores, positive, negative = (torch.tensor(a) for a in example)
    changed = scores.clone()
    changed[~positive & ~negative] = 0.99
    scale = torch.tensor(20.0, dtype=torch.float64)
    assert torch.equal(
        task_loss(scores, positive, negative, scale, 0.02), task_loss(changed, positive, negative, scale, 0.02)
    )


def test_a_query_without_negatives_has_no_loss_and_finite_gradients():
    scores = torch.zeros(2, 2, requires_grad=True)
    positive = torch.tensor([[True, False], [True, True]])
    negative = torch.tensor([[False, True], [False, False]])
    loss = task_loss(scores, positive, negative, torch.tensor(20.0), 0.0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(math.log(2) / 3)
    assert torch.isfinite(scores.grad).all()


def test_score_and_feature_losses_equal_the_reference():
    rng = np.random.default_rng(5)
    student, teacher = rng.normal(size=(4, 6)), rng.normal(size=(4, 6))
    gaps = [(s - t) ** 2 for s, t in zip(student.ravel(), teacher.ravel(), strict=True)]
    assert float(score_loss(torch.tensor(student), torch.tensor(teacher))) == pytest.approx(np.mean(gaps))
    assert float(squared_gaps(torch.tensor(student), torch.tensor(teacher))) == pytest.approx(np.sum(gaps))


def test_margin_logits_equal_the_reference(example):
    scores, positive, _ = example
    got = margin_logits(torch.tensor(scores), torch.tensor(positive), torch.tensor(20.0, dtype=torch.float64), 0.02)
    for q, c in np.ndindex(scores.shape):
        wanted = 20.0 * (scores[q, c] - (0.02 if positive[q, c] else 0.0))
        assert float(got[q, c]) == pytest.approx(wanted, abs=1e-12)


def test_pooled_features_equal_the_reference():
    rng = np.random.default_rng(6)
    states, text = rng.normal(size=(7, 4)), np.array([0, 2, 2, 0, 3, 3, 3])
    got = pooled_by_text(torch.tensor(states), torch.tensor(text), 5)
    for index in range(5):
        own = [states[row] for row in range(7) if text[row] == index]
        mean = np.mean(own, axis=0) if own else np.zeros(4)
        wanted = mean / math.sqrt(sum(x * x for x in mean)) if own else mean
        np.testing.assert_allclose(got[index].numpy(), wanted, atol=1e-12)


def test_nothing_masked_gives_exactly_zero():
    nothing = torch.zeros(0, 8)
    assert float(squared_gaps(nothing, nothing)) == 0.0


def test_the_total_is_the_weighted_sum():
    parts = distillation_loss(torch.tensor(2.0), torch.tensor(3.0), torch.tensor(5.0), alpha=0.1, beta=0.2)
    assert float(parts.total) == pytest.approx(0.7 * 2 + 0.1 * 3 + 0.2 * 5)
