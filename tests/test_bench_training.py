"""The training bench: its padded loop is a fair reference, its floor is right, its report is whole."""

import ast
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pmd.batches import Batching, Masking, make_batch, tokenise
from pmd.benchmarks.loops.floor import floor_flops, matmul_rate, product_shapes, stack_parameters
from pmd.benchmarks.loops.naive import NaiveLearner, naive_batches, padded_batch
from pmd.benchmarks.loops.setting import Setting
from pmd.benchmarks.loops.sides import OurLoop, StepSize, only
from pmd.benchmarks.loops.speed import Lap, loop_figures
from pmd.benchmarks.loops.wanted import CASES, LOOPS, MASKED, NAIVE, TEACHER, UNMASKED, Wanted
from pmd.benchmarks.training import main
from pmd.benchmarks.training_curve import figure
from pmd.encoder import load_encoder, resolve_encoder
from pmd.learner import Learner, Objective, Precision
from pmd.serving.texts import Templates
from pmd.serving.tokenization import TextTokenizer
from pmd.step import step_gradients
from pmd.teacher import Teacher
from tests.graphs import graph_of
from tests.tiny_encoder import tiny_graph, tiny_tokenizer, write_encoder, write_graph, write_recipe

TEXTS = Templates(neighbours=0)
FP32 = Precision("cpu", bf16=False)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder"), layers=4)


@pytest.fixture
def models(encoder):
    teacher = load_encoder(resolve_encoder(str(encoder)), dropout=0.0, temperature=0.05)
    return teacher.cut((1, 3)).train(), teacher.eval().requires_grad_(False)


def distinct_texts():
    """Triples that share nothing: each query has one answer, and no head is an answer."""
    graph = graph_of([(0, 0, 4), (1, 1, 5), (2, 0, 6), (3, 1, 7)], entities=8)
    graph = replace(graph, names=tiny_graph().names[:8], descriptions=("big old", "red", "", "small") * 2)
    return tokenise(graph, TextTokenizer(tiny_tokenizer().to_str(), 50), TEXTS)


def both_batches(texts, rate, self_negatives):
    """The four forward triples as a batch of each loop, with the same masks where nothing else is drawn."""
    chosen = np.flatnonzero(texts.known.queries()[:, 0] < 4)
    rows = np.stack([chosen, texts.known.offsets[chosen], texts.known.offsets[chosen + 1]], axis=1)
    rows = rows[np.argsort(texts.known.answers[rows[:, 1]])]  # tails rise, as candidates do
    batching = Batching(4, "batch", self_negatives, None)
    ours = make_batch(texts, rows, batching, Masking(rate), np.random.default_rng(1), shared_rows=True)
    tails = texts.known.answers[rows[:, 1]]
    theirs = padded_batch(texts, rows[:, 0], tails, rate, np.random.default_rng(1), self_negatives=self_negatives)
    return ours, theirs


def losses(models, ours, theirs, objective, *, taught):
    """Loss and gradient norm of our step and of the padded one."""
    student, teacher = models
    optimizer = torch.optim.AdamW(student.parameters())
    learner = Learner(student, optimizer, objective, 10.0, teacher=Teacher(teacher) if taught else None)
    own = step_gradients(learner, ours, 0, (0,), None).total
    norms = [gradient_norm(student)]
    student.zero_grad()
    other = NaiveLearner(student, teacher if taught else None, optimizer, objective, 10.0, FP32).loss(theirs)
    other.backward()
    norms.append(gradient_norm(student))
    return (float(own), float(other.detach())), norms


def gradient_norm(model):
    return float(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm())


@pytest.mark.parametrize(("taught", "rate"), [(False, 0.0), (True, 0.0), (True, 0.4)])
def test_the_padded_loop_has_our_loss_where_nothing_is_shared(models, taught, rate):
    objective = Objective(alpha=0.2, beta=0.3, margin=0.02, score_scale=20.0)
    ours, theirs = both_batches(distinct_texts(), rate, self_negatives=False)
    assert ours.num_masked == sum(int(side.masked.sum()) for side in theirs.sides)
    assert (ours.num_masked > 0) == (rate > 0)
    (own, other), (norm, other_norm) = losses(models, ours, theirs, objective, taught=taught)
    assert own == pytest.approx(other, abs=1e-5)
    assert norm == pytest.approx(other_norm, rel=1e-4)


def test_a_padded_query_competes_with_its_own_head(models):
    """Ours lets all heads of a batch compete; with each query's own alone the losses are the same."""
    objective = Objective(alpha=0.2, beta=0.3, margin=0.02)
    ours, theirs = both_batches(distinct_texts(), 0.0, self_negatives=True)
    own_head = torch.from_numpy(ours.heads[:, None] == ours.entity_ids)
    is_tail = torch.from_numpy(ours.entity_ids >= 4)
    ours = replace(ours, negative=ours.negative & (own_head | is_tail))
    (own, other), _ = losses(models, ours, theirs, objective, taught=False)
    assert own == pytest.approx(other, abs=1e-5)
    without = losses(models, *both_batches(distinct_texts(), 0.0, self_negatives=False), objective, taught=False)
    assert without[0][1] != pytest.approx(other, abs=1e-3)


def test_known_answers_are_no_negatives_of_the_padded_loop(models):
    """A tail that also completes another query of the batch takes no part in it, however it scores."""
    graph = replace(graph_of([(0, 0, 4), (0, 0, 5)], entities=6), names=tiny_graph().names[:6])
    texts = tokenise(graph, TextTokenizer(tiny_tokenizer().to_str(), 50), TEXTS)
    query = int(np.flatnonzero(texts.known.queries()[:, 1] == 0)[0])
    batch = padded_batch(
        texts, np.array([query] * 2), np.array([4, 5]), 0.0, np.random.default_rng(0), self_negatives=False
    )
    assert not batch.negative.any()
    learner = NaiveLearner(models[0], None, torch.optim.AdamW(models[0].parameters()), Objective(0, 0, 0), 1, FP32)
    loss = learner.loss(batch)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert gradient_norm(models[0]) == 0.0


def test_an_epoch_of_the_padded_loop_reads_every_directed_triple_once():
    texts = tokenise(tiny_graph(), TextTokenizer(tiny_tokenizer().to_str(), 50), Templates(neighbours=3))
    batches = list(naive_batches(texts, 16, 0.0, np.random.default_rng(0), self_negatives=True))
    assert sum(len(batch.own) for batch in batches) == len(texts.known.answers) == 80
    heads = [side.ids.shape for batch in batches for side in batch.sides]
    assert len(heads) == 3 * len(batches)


def test_the_floor(models):
    """2 operations a parameter and token forward and 4 backward, and 2 for a teacher's token."""
    student, teacher = models
    width, inner = 32, 64
    layer = 4 * (width * width + width) + 2 * width * inner + inner + width + 4 * width
    assert (stack_parameters(student), stack_parameters(teacher)) == (2 * layer, 4 * layer)
    assert product_shapes(student) == {(32, 32): 8, (32, 64): 2, (64, 32): 2}
    size = StepSize(triples=5, queries=4, tokens=100, laid_out=125, taught_tokens=10)
    assert floor_flops(size, 1000, 2000) == 6 * 1000 * 100 + 2 * 2000 * 10
    rate = matmul_rate(student, 64, bf16=False, laps=1)
    assert rate["dtype"] == "float32"
    assert min(rate["forward"], rate["input_gradient"], rate["weight_gradient"]) > 0
    figures = loop_figures([Lap(2.0, 1.0, size), Lap(4.0, 1.0, size)], lambda _: 1.0)
    assert figures["floor_share"]["median"] == pytest.approx(0.375)
    assert figures["triples_per_second"]["max"] == 2.5
    assert figures["padding_share"] == pytest.approx(0.2)
    assert figures["tokens_per_triple"] == 20


def setting_of(tmp_path, encoder, **changes):
    data = write_graph(tmp_path / "tiny")
    recipe = write_recipe(tmp_path / "recipe.yaml", data, encoder, order="graph", earlier_batches="all")
    plain = {"recipe": str(recipe), "data": str(data), "encoder": None, "batch_size": 16, "batch_of": "queries"}
    plain |= {"teacher_layers": 4, "student_layers": 2, "mask_rate": 0.2, "threads": torch.get_num_threads()}
    return Setting.load(Wanted(**plain | changes))


def test_a_teacher_that_read_a_part_says_of_it_what_it_would_have_said(tmp_path, encoder):
    """The bench lets the teacher read only the texts of the batches to come."""
    setting = setting_of(tmp_path, encoder)
    loop = OurLoop(setting, setting.case(UNMASKED), "graph", 1)
    batch = next(loop.batches())
    told = loop.learner.teacher.says("query", batch.queries, batch.query_ids).vectors
    read = Teacher(setting.encoder).says("query", batch.queries, batch.query_ids).vectors
    torch.testing.assert_close(told, read, rtol=0, atol=1e-5)
    assert loop.remembered["tokens"] < loop.remembered["all_tokens"]
    assert loop.size(batch).taught_tokens == 0
    masked = OurLoop(setting, setting.case(MASKED), "graph", 1)
    assert masked.size(next(masked.batches())).taught_tokens == masked.size(next(masked.batches())).tokens


def test_texts_left_out_are_empty():
    table = TextTokenizer(tiny_tokenizer().to_str(), 50)(["alpha", "beta gamma", "delta"])
    kept = only(table, np.array([2, 2, 0]))
    assert kept.lengths.tolist() == [3, 0, 3]
    assert kept.take(np.array([2])).ids.tolist() == table.take(np.array([2])).ids.tolist()


def test_as_many_triples_a_step(tmp_path, encoder):
    known = (setting := setting_of(tmp_path, encoder, batch_of="triples")).texts.known
    assert setting.queries_per_step == round(16 * len(known.keys) / len(known.answers)) < 16


@pytest.fixture(scope="module")
def run(tmp_path_factory, encoder):
    """The command on the toy graph, all parts but memory; the report and where it is kept."""
    root = tmp_path_factory.mktemp("bench")
    data = write_graph(root / "tiny")
    recipe = write_recipe(root / "recipe.yaml", data, encoder, order="graph", earlier_batches="all")
    command = ["--data", str(data), "--recipe", str(recipe), "--layers", "4,2", "--batch-size", "16", "--no-memory"]
    command += ["--steps", "2", "--warmup", "1", "--making", "20", "--curves", "--curve-data", str(data)]
    command += ["--curve-recipe", str(recipe), "--epochs", "2", "--threads", "1", "--out", str(root / "found.json")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pmd.benchmarks.training.run_python", in_process)
        result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    return result, root / "found.json", command


def in_process(code, *arguments, timeout):
    """The child's work without the seconds that a fresh process takes to import torch."""
    from pmd.benchmarks.loops import child

    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["-c", *arguments])
        patch.setattr("sys.stdout", type("Told", (), {"write": staticmethod(printed.append)}))
        child.answer()
    return "".join(printed)


def test_the_report_has_every_key(run):
    result, kept, _ = run
    report = json.loads(result.stdout.splitlines()[-1])
    assert report == json.loads(kept.read_text(encoding="utf-8"))
    assert set(report) == {"schema", "machine", "setting", "cases", "making", "curves"}
    assert report["schema"] == "pmd-training-bench/1"
    assert report["machine"]["training_versions"]["torch"] == torch.__version__
    assert [case["case"] for case in report["cases"]] == list(CASES)
    for case in report["cases"]:
        assert list(case["loops"]) == list(LOOPS)
        assert set(case["ratio"]) == set(LOOPS[:-1])
        assert case["layers"] == (4 if case["case"] == TEACHER else 2)
        for loop in case["loops"].values():
            assert loop["steps"] == 2
            assert set(loop) == {
                *("steps", "seconds", "cpu_seconds", "triples_per_second", "tokens_per_second", "floor_share"),
                *("padding_share", "tokens_per_triple", "triples_per_step", "queries_per_step"),
                *("remembered", "memory"),
            }
            assert set(loop["seconds"]) == {"min", "p25", "median", "p75", "max"}
    assert [row["times"] for row in report["making"]] == [1, 2, 4]
    padded = report["cases"][0]["loops"][NAIVE]
    assert padded["tokens_per_triple"] > report["cases"][0]["loops"][LOOPS[0]]["tokens_per_triple"]


def test_a_teacher_is_read_beforehand_only_where_nothing_is_masked(run):
    report = json.loads(run[1].read_text(encoding="utf-8"))
    remembers = {(case["case"], name): loop["remembered"] for case in report["cases"]
                 for name, loop in case["loops"].items()}  # fmt: skip
    assert {key for key, found in remembers.items() if found} == {(UNMASKED, name) for name in LOOPS[:-1]}


def test_curves_are_kept_and_drawn(run, monkeypatch):
    """Run again with the same --out, the curves are taken from there; with other settings they are not."""
    _, kept, command = run
    curves = json.loads(kept.read_text(encoding="utf-8"))["curves"]
    assert list(curves["arms"]) == list(LOOPS)
    for records in curves["arms"].values():
        assert [record["epoch"] for record in records] == [1, 2]
        assert all(0 < record["valid_mrr"] <= 1 for record in records)
    assert abs(curves["arms"][NAIVE][-1]["step"] - curves["arms"][LOOPS[0]][-1]["step"]) <= 2
    assert kept.with_suffix(".svg").read_bytes() == figure(curves["arms"], "svg")
    assert kept.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    asked = []
    monkeypatch.setattr("pmd.benchmarks.training.run_python", lambda *a, **k: asked.append(a) or '{"found": []}')
    monkeypatch.setattr("pmd.benchmarks.training.figure", lambda *_: b"")  # drawn once is enough
    again = [*command, "--no-speed", "--making", "0"]
    assert CliRunner().invoke(main, again).exit_code == 0
    assert not asked
    assert len(json.loads(kept.read_text(encoding="utf-8"))["cases"]) == len(CASES)
    assert CliRunner().invoke(main, [*again, "--out", str(kept.with_name("other.json"))]).exit_code == 0
    assert len(asked) == len(LOOPS)


def test_a_mistake_is_the_users(tmp_path):
    """A recipe that is not there is told by the child and ends with code 2; so does an --out of another kind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pmd.benchmarks.training.run_python", in_process)
        result = CliRunner().invoke(main, ["--recipe", "none-such"])
    assert result.exit_code == 2
    assert "no recipe 'none-such'" in result.stderr
    (tmp_path / "other.json").write_text('{"schema": "else"}', encoding="utf-8")
    for wrong in (["--out", str(tmp_path / "other.json")], ["--layers", "6"]):
        assert CliRunner().invoke(main, wrong).exit_code == 2


def test_only_child_processes_load_the_training_core():
    """Outside loops/ the bench takes nothing of it but what is asked for, which is plain values."""
    folder = Path(__file__).resolve().parents[1] / "benchmarks"
    for path in folder.glob("training*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pmd.benchmarks.loops"):
                assert node.module == "pmd.benchmarks.loops.wanted", path
    wanted = ast.parse((folder / "loops" / "wanted.py").read_text(encoding="utf-8"))
    names = {node.module for node in ast.walk(wanted) if isinstance(node, ast.ImportFrom)}
    assert names == {"__future__", "dataclasses", "typing"}
