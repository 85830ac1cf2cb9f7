"""A step: its losses by a slow reference, and one gradient whatever the way to it."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from pmd import step as step_module
from pmd.batches import Batching, Masking, epoch_rows, make_batch, tokenise
from pmd.encoder import load_encoder, resolve_encoder
from pmd.learner import Compute, Learner, Objective, Precision, Schedule, new_learner
from pmd.memory import EntityMemory
from pmd.model import run_tower, unique_state
from pmd.packing import pack
from pmd.serving.texts import Templates
from pmd.serving.tokenization import TextTokenizer
from pmd.step import activation_bytes, sheets_kept, step_gradients, train_step
from pmd.teacher import Teacher
from tests.tiny_encoder import tiny_graph, tiny_tokenizer, write_encoder

ALL = Batching(batch_size=8, candidates="all", self_negatives=True, answers_per_query=None)
SOME = Batching(batch_size=8, candidates="batch", self_negatives=True, answers_per_query=None)
ALPHA, BETA, MARGIN, SCALE = 0.2, 0.3, 0.02, 20.0


@pytest.fixture(scope="module")
def texts():
    return tokenise(tiny_graph(), TextTokenizer(tiny_tokenizer().to_str(), 50), Templates(neighbours=3))


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    def make(width=32, dropout=0.0, sharing="none"):
        folder = tmp_path_factory.mktemp("encoder")
        files = resolve_encoder(str(write_encoder(folder, layers=4, width=width)))
        return load_encoder(files, dropout=dropout, temperature=0.05, sharing=sharing)

    return make


def objective(**changes):
    return Objective(**{"alpha": ALPHA, "beta": BETA, "margin": MARGIN, "score_scale": SCALE} | changes)


def learner_of(student, teacher, **changes):
    projection = changes.get("projection")
    parameters = [*student.parameters(), *(projection.parameters() if projection else ())]
    settings = {"objective": objective(), "clip_norm": 10.0} | changes
    return Learner(student, torch.optim.AdamW(parameters, lr=1e-3), teacher=teacher, **settings)


def batch_of(texts, rate=0.3, batching=ALL, shared_rows=True, step=0):
    rows = epoch_rows(texts, batching, np.random.default_rng(step))[0]
    return make_batch(texts, rows, batching, Masking(rate), np.random.default_rng(1), shared_rows=shared_rows)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def step_of(learner, batch, chunk_tokens=None):
    learner.optimizer.zero_grad()
    parts = step_gradients(learner, batch, 0, (0, 0), chunk_tokens)
    return parts, gradients(learner.student)


def reference(student, teacher, batch):
    """All three losses in float64, one query, one candidate and one masked token at a time."""
    outputs = {}
    for who, model in (("student", student.double()), ("teacher", teacher.double())):
        for side, sheet in (("query", batch.queries), ("entity", batch.entities)):
            outputs[who, side] = run_tower(model.tower(side), sheet)
    vectors = {key: output.vectors.detach().numpy() for key, output in outputs.items()}
    scores, taught = (
        np.array([[sum(a * b for a, b in zip(q, c, strict=True)) for c in vectors[who, "entity"]]
                  for q in vectors[who, "query"]])
        for who in ("student", "teacher")
    )  # fmt: skip
    inverse_temperature = math.exp(float(student.log_inverse_temperature.detach()))
    task, gaps = [], []
    for q, c in np.ndindex(scores.shape):
        gaps.append((SCALE * scores[q, c] - SCALE * taught[q, c]) ** 2)
        if batch.positive[q, c]:
            own = math.exp((scores[q, c] - MARGIN) * inverse_temperature)
            others = sum(
                math.exp(s * inverse_temperature) for s, n in zip(scores[q], batch.negative[q], strict=True) if n
            )
            task.append(-math.log(own / (own + others)))
    features = [
        float((own - theirs).detach() ** 2)
        for side in ("query", "entity")
        for token, target in zip(outputs["student", side].masked, outputs["teacher", side].masked, strict=True)
        for own, theirs in zip(token, target, strict=True)
    ]
    return np.mean(task), np.mean(gaps), np.mean(features)


def test_losses_equal_a_slow_reference_in_float64(texts, load):
    student, teacher = load().cut((1, 3)), load()
    batch = batch_of(texts)
    learner = learner_of(student, Teacher(teacher))
    got, _ = step_of(learner, batch)
    task, score, feature = reference(student, teacher, batch)
    assert float(got.task) == pytest.approx(task, rel=1e-5)
    assert float(got.score) == pytest.approx(score, rel=1e-5)
    assert float(got.feature) == pytest.approx(feature, rel=1e-5)
    assert float(got.total) == pytest.approx(0.5 * task + ALPHA * score + BETA * feature, rel=1e-5)


def test_gradients_equal_those_of_the_whole_graph(texts, load):
    """The graph is cut at the vectors; a step that is not cut gives the same gradients."""
    student, teacher = load().cut((1, 3)), load()
    batch = batch_of(texts)
    _, got = step_of(learner_of(student, Teacher(teacher)), batch)
    student.zero_grad()
    sides = (("query", batch.queries), ("entity", batch.entities))
    own, theirs = (
        {side: run_tower(model.tower(side), sheet) for side, sheet in sides} for model in (student, teacher)
    )
    scores, taught = (o["query"].vectors @ o["entity"].vectors.T for o in (own, theirs))
    logits = scores * student.log_inverse_temperature.exp()
    rivals = logits.masked_fill(~batch.negative, -1e30).logsumexp(1, keepdim=True)
    answers = logits - MARGIN * student.log_inverse_temperature.exp()
    task = (torch.logaddexp(answers, rivals) - answers)[batch.positive].mean()
    masked, target = (torch.cat([o["query"].masked, o["entity"].masked]) for o in (own, theirs))
    score = (SCALE * (scores - taught.detach())).square().mean()
    (0.5 * task + ALPHA * score + BETA * (masked - target.detach()).square().mean()).backward()
    wanted = gradients(student)
    assert set(got) == set(wanted)
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("chunk_tokens", [64, 130, 10_000])
@pytest.mark.parametrize("feature", ["positions", "pooled", "patient"])
def test_gradient_caching_gives_the_plain_gradient(texts, load, chunk_tokens, feature):
    inner = (0,) if feature == "patient" else ()
    teacher = Teacher(load(), (1,) if inner else ())
    learner = learner_of(load().cut((1, 3)), teacher, objective=objective(feature=feature, inner=inner))
    batch = batch_of(texts)
    plain, wanted = step_of(learner, batch)
    cached, got = step_of(learner, batch, chunk_tokens)
    torch.testing.assert_close(torch.stack(list(cached)), torch.stack(list(plain)), rtol=1e-5, atol=1e-6)
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-6)


def test_both_readings_of_gradient_caching_drop_the_same_units(texts, load):
    """With dropout the second reading must repeat the first, or the gradient is of another model."""
    learner = learner_of(load(dropout=0.5).train(), None)
    batch = batch_of(texts, rate=0.0)
    first, gradient = step_of(learner, batch, 64)
    again, same = step_of(learner, batch, 64)
    assert first.total == again.total
    assert all(gradient[name].equal(same[name]) for name in gradient)
    step = 1e-2 / sum(float(g.square().sum()) for g in gradient.values())
    with torch.no_grad():
        for name, parameter in learner.student.named_parameters():
            parameter -= step * gradient.get(name, torch.zeros_like(parameter))
    after, _ = step_of(learner, batch, 64)
    assert float(first.total - after.total) == pytest.approx(1e-2, rel=0.2), "not the gradient of this loss"


def test_terms_that_do_not_apply_are_zero(texts, load):
    student, teacher = load().cut((1, 3)), Teacher(load())
    unmasked, _ = step_of(learner_of(student, teacher), batch_of(texts, rate=0.0))
    assert unmasked.feature == 0
    torch.testing.assert_close(unmasked.total, 0.8 * unmasked.task + 0.2 * unmasked.score)
    alone, _ = step_of(learner_of(student, None), batch_of(texts))
    assert (alone.score, alone.feature) == (0, 0)
    assert alone.total == alone.task
    same, _ = step_of(learner_of(load(), teacher), batch_of(texts))
    assert same.score == same.feature == 0, "teacher and student must read the very same masked batch"


def test_scores_compared_as_logits_carry_margin_and_temperatures(texts, load):
    model = load()
    learner = learner_of(model, Teacher(load()), objective=objective(score_form="logit"))
    batch = batch_of(texts, rate=0.0)
    parts, _ = step_of(learner, batch)
    wanted = batch.positive.double().mul(MARGIN * 20.0).square().mean()
    assert float(parts.score) == pytest.approx(float(wanted), rel=1e-4), (
        "the same model differs by its margin alone"
    )


def test_a_remembered_teacher_says_what_it_reads(texts, load):
    reading, remembering = (Teacher(load(), (1,)) for _ in range(2))
    assert remembering.remember({"query": texts.queries, "entity": texts.entities})
    results = []
    for teacher in (reading, remembering):
        settings = objective(feature="patient", inner=(0,))
        results.append(
            step_of(learner_of(load().cut((1, 3)), teacher, objective=settings), batch_of(texts, 0.0, SOME))
        )
    torch.testing.assert_close(torch.stack(list(results[1][0])), torch.stack(list(results[0][0])))
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], gradient, rtol=1e-4, atol=1e-6)


def test_a_narrow_student_learns_a_projection(texts, load):
    torch.manual_seed(0)
    projection = nn.Linear(16, 32, bias=False)
    learner = learner_of(load(width=16).cut((1, 3)), Teacher(load()), projection=projection)
    before = projection.weight.detach().clone()
    parts = train_step(learner, batch_of(texts), 0, (0, 0), None)
    assert parts.feature > 0
    assert not projection.weight.equal(before)


@pytest.mark.parametrize(("sharing", "count"), [("none", 2), ("embeddings", 2), ("all", 1)])
def test_shared_towers_move_together(texts, load, sharing, count):
    model = load(sharing=sharing)
    assert model.sharing == sharing
    student = model.cut((1, 3))
    assert student.sharing == sharing, "a cut keeps what the towers share"
    words = "embeddings.word_embeddings.weight"
    assert (f"entity.{words}" in unique_state(student)) == (sharing == "none")
    assert len({id(tower) for tower in (student.query, student.entity)}) == count
    learner = learner_of(student, Teacher(load()))
    train_step(learner, batch_of(texts), 0, (0, 0), None)
    tables = [tower.embeddings.word_embeddings.weight for tower in (student.query, student.entity)]
    assert tables[0].equal(tables[1]) == (sharing != "none")
    assert student.num_parameters == sum(tensor.numel() for tensor in unique_state(student).values())


def test_rows_of_their_own_give_the_same_step(texts, load):
    """Encoders that cannot share rows: several sheets of texts of one length, the same losses and gradients."""
    shared, own = (batch_of(texts, rate=0.0, shared_rows=flag) for flag in (True, False))
    for side in (shared.queries, own.queries):
        side.types.zero_()  # such encoders take no token types
    results = [step_of(learner_of(load().cut((1, 3)), None), batch) for batch in (shared, own)]
    torch.testing.assert_close(results[1][0].total, results[0][0].total, rtol=1e-5, atol=1e-6)
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], gradient, rtol=1e-3, atol=1e-6)


def test_memory_lets_earlier_entities_compete(texts, load):
    model = load()
    learner = learner_of(model, None, memory=EntityMemory(torch.zeros(12, 32), horizon=1, self_negatives=True))
    few = Batching(batch_size=3, candidates="batch", self_negatives=False, answers_per_query=1)
    first, second, third = (batch_of(texts, 0.0, few, step=step) for step in (3, 4, 5))
    step_gradients(learner, first, 0, (0, 0), None)
    vectors, negative = learner.memory.rivals(second, 1)
    others = sorted(set(first.entity_ids) - set(second.entity_ids))
    entity = pack(texts.entities.take(np.array(others)))
    torch.testing.assert_close(vectors, run_tower(model.entity, entity).vectors.detach(), rtol=0, atol=1e-5)
    answers = {(int(q), int(e)) for q, e in zip(*second.known, strict=True)}
    for row, column in np.ndindex(*negative.shape):
        assert bool(negative[row, column]) == ((row, others[column]) not in answers)
    with_memory, _ = step_of_at(learner, second, 1)
    learner.memory = None
    without, _ = step_of_at(learner, second, 1)
    assert with_memory.task > without.task, "more rivals, more loss"
    assert third is not None


def test_memory_is_silent_while_vectors_move(texts):
    memory = EntityMemory(torch.zeros(12, 4), horizon=None, self_negatives=True)
    batch = batch_of(texts, 0.0, Batching(2, "batch", False, 1))
    one, other = torch.eye(4)[:1], torch.eye(4)[1:2]
    memory.fill(one.expand(12, 4), step=0)
    memory.put(batch.entity_ids, one.expand(len(batch.entity_ids), 4), step=1)
    assert memory.rivals(batch, 2) is not None
    memory.put(batch.entity_ids, other.expand(len(batch.entity_ids), 4), step=2)
    assert float(memory.steadiness) == 0.0
    assert memory.rivals(batch, 3) is None, "a model that moves could beat them all by moving away"
    copy = EntityMemory(torch.zeros(12, 4), horizon=None, self_negatives=True)
    copy.load(memory.state())
    assert copy.rivals(batch, 3) is None
    memory.put(batch.entity_ids, other.expand(len(batch.entity_ids), 4), step=3)
    assert memory.rivals(batch, 4) is not None


def test_vectors_that_are_not_finite_are_not_remembered(texts):
    memory = EntityMemory(torch.zeros(12, 4), horizon=None, self_negatives=True)
    vectors = torch.eye(4)[:3].clone()
    memory.put(np.array([1, 4, 7]), vectors, 0)
    vectors[1, 2] = float("nan")
    memory.put(np.array([1, 4, 7]), vectors, 1)
    assert memory.encoded_at[[1, 4, 7]].tolist() == [1, 0, 1]
    assert memory.vectors.isfinite().all()
    assert float(memory.steadiness) == 1.0


def test_of_a_large_memory_a_part_competes(texts, monkeypatch):
    monkeypatch.setattr("pmd.memory.MOST_RIVALS", 3)
    memory = EntityMemory(torch.zeros(12, 4), horizon=None, self_negatives=True)
    memory.fill(torch.arange(12.0)[:, None].expand(12, 4), step=0)
    batch = batch_of(texts, 0.0, Batching(2, "batch", False, 1))
    drawn = [memory.rivals(batch, step)[0][:, 0].int().tolist() for step in range(20)]
    assert all(len(set(rivals)) == 3 and not set(rivals) & set(batch.entity_ids.tolist()) for rivals in drawn)
    assert set().union(*drawn) == set(range(12)) - set(batch.entity_ids.tolist()), "each has its turn"
    assert memory.rivals(batch, 7)[0][:, 0].int().tolist() == drawn[7], "the step decides, so that a run resumes"


def test_memory_forgets_after_its_horizon(texts):
    memory = EntityMemory(torch.zeros(12, 4), horizon=2, self_negatives=True)
    batch = batch_of(texts, 0.0, Batching(2, "batch", False, 1))
    outside = np.setdiff1d(np.arange(12), batch.entity_ids)[:3]
    memory.put(outside, torch.ones(3, 4), step=5)
    assert len(memory.rivals(batch, 7)[0]) == 3
    assert memory.rivals(batch, 8) is None
    forever = EntityMemory(torch.zeros(12, 4), horizon=None, self_negatives=False)
    assert forever.rivals(batch, 1) is None, "what was never encoded cannot compete"
    forever.fill(torch.ones(12, 4), step=0)
    vectors, negative = forever.rivals(batch, 10_000)
    others = np.setdiff1d(np.arange(12), batch.entity_ids)
    assert len(vectors) == len(others)
    for row, head in enumerate(batch.heads):
        assert not negative[row, others == head].any(), "self-negatives are off"


def step_of_at(learner, batch, step):
    learner.optimizer.zero_grad()
    return step_gradients(learner, batch, step, (0, step), None), gradients(learner.student)


def test_bfloat16_moves_losses_by_its_rounding_only(texts, load):
    results = []
    for bf16 in (False, True):
        learner = learner_of(load().cut((1, 3)), Teacher(load()), precision=Precision("cpu", bf16=bf16))
        results.append(step_of(learner, batch_of(texts)))
    exact, rounded = (torch.stack(list(parts)) for parts, _ in results)
    assert not rounded.equal(exact), "nothing was computed in bfloat16"
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.02)
    assert all(gradient.dtype == torch.float32 for gradient in results[1][1].values())


@pytest.mark.slow  # the compiler takes a minute
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it compiles
def test_compiled_towers_give_the_same_step(texts, load):
    results = []
    for compiled in (False, True):
        schedule = Schedule(1, 1e-3, 0, 0.0, 10.0, 0.3, (0, 0))
        learner = new_learner(
            load().cut((1, 3)), Teacher(load()), objective(), schedule, Compute(compiled=compiled)
        )
        results.append(step_of(learner, batch_of(texts)))
    torch.testing.assert_close(torch.stack(list(results[1][0])), torch.stack(list(results[0][0])))
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("sharing", ["none", "all"])
def test_what_is_read_twice_for_want_of_room_changes_no_bit(texts, load, monkeypatch, sharing):
    """All sheets kept, some, or none: the same gradients to the bit, with dropout and a teacher."""
    monkeypatch.setattr(step_module, "CPU_SHEET_TOKENS", 32)
    batch = batch_of(texts)
    token = activation_bytes(load().query.config)
    sides = [[sheet.text.numel() for sheet in side.sheets(32)] for side in (batch.queries, batch.entities)]
    rooms = (10_000, sum(map(sum, sides)) - 1, max(sides[0]) + sides[1][0], 0)
    assert len({sheets_kept(*sides, room) for room in rooms}) >= 3
    found = []
    for room in rooms:
        monkeypatch.setattr(step_module, "CPU_ACTIVATION_BYTES", room * token)
        student, teacher = load(dropout=0.1, sharing=sharing).train(), Teacher(load(sharing=sharing))
        found.append(step_of(learner_of(student, teacher), batch))
    for parts, gradient in found[1:]:
        assert parts == found[0][0]
        assert gradient.keys() == found[0][1].keys()
        for name, value in gradient.items():
            assert torch.equal(value, found[0][1][name]), name


@pytest.mark.parametrize("room", [0, 1, 7, 10, 13, 19, 20, 40, 41, 100])
def test_no_more_is_kept_than_there_is_room_for(room):
    query, entity = [7, 6, 7], [10, 6, 4]
    kept_query, kept_entity = sheets_kept(query, entity, room)
    held = sum(query[:kept_query]) + sum(entity[:kept_entity])
    assert held <= room or held == 0
    if kept_query < len(query):  # one more is read while the entities' are held
        assert sum(entity[:kept_entity]) + max(query) <= room or kept_entity == 0
    assert ((kept_query, kept_entity) == (3, 3)) == (room >= 40)
