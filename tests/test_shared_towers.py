"""Towers that share embeddings or everything: trained, killed, saved, loaded and exported without coming apart."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from pmd.batches import tokenise
from pmd.encoder import load_encoder, resolve_encoder
from pmd.errors import EncoderError
from pmd.evaluation import model_scores
from pmd.grade import load_grade
from pmd.model import share_towers
from tests.tiny_encoder import FAMILIES, tiny_graph, write_encoder, write_family, write_graph
from tests.toy_ladder import toy_ladder

SHARING = ("none", "embeddings", "all")


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    root = tmp_path_factory.mktemp("material")
    return write_graph(root / "tiny"), write_encoder(root / "encoder", layers=3)


def ladder(material, out, sharing, *, on_epoch=None, resume=False, **changes):
    settings = {"share_towers": sharing, "grades": [2], "mask_rates": [0.3], "batch_size": 24, "dropout": 0.1}
    return toy_ladder(out, *material, settings | changes, on_epoch=on_epoch, resume=resume)


@pytest.fixture(scope="module")
def runs(material, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return {sharing: (root / sharing, ladder(material, root / sharing, sharing)) for sharing in SHARING}


def test_shared_parameters_count_once(runs):
    counts = {sharing: [stage["parameters"] for stage in facts["stages"]] for sharing, (_, facts) in runs.items()}
    for position, stage in enumerate(("teacher", "grade-2")):
        model = load_grade(runs["none"][0] / stage).model
        tower = sum(parameter.numel() for parameter in model.query.parameters())
        embeddings = sum(parameter.numel() for parameter in model.query.embeddings.parameters())
        assert counts["none"][position] == 2 * tower + 1
        assert counts["embeddings"][position] == 2 * tower - embeddings + 1
        assert counts["all"][position] == tower + 1


@pytest.mark.parametrize("sharing", SHARING)
def test_the_file_holds_each_tensor_once_and_the_model_shares_it_again(runs, sharing):
    out, facts = runs[sharing]
    tensors = load_file(out / "grade-2" / "model.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == facts["stages"][1]["parameters"]
    sides = {name.split(".")[0] for name in tensors} - {"log_inverse_temperature"}
    assert sides == ({"query"} if sharing == "all" else {"query", "entity"})
    assert any(name.startswith("entity.embeddings") for name in tensors) == (sharing == "none")
    model = load_grade(out / "grade-2").model
    assert model.sharing == sharing
    assert (model.entity is model.query) == (sharing == "all")
    assert (model.entity.embeddings is model.query.embeddings) == (sharing != "none")
    for name, tensor in model.state_dict().items():
        stored = name if name in tensors else name.replace("entity.", "query.", 1)
        assert tensor.equal(tensors[stored]), name


class Killed(Exception):
    pass


@pytest.mark.parametrize("sharing", ["all", pytest.param("embeddings", marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_to_the_same_bytes(runs, material, tmp_path, sharing):
    def kill(stage, record):
        if (stage, record["epoch"]) == ("grade-2", 1):
            raise Killed

    with pytest.raises(Killed):
        ladder(material, tmp_path / "run", sharing, on_epoch=kill, checkpoint_seconds=1e-9)
    assert (tmp_path / "run" / "checkpoint.safetensors").is_file()
    again = ladder(material, tmp_path / "run", sharing, resume=True, checkpoint_seconds=1e-9)
    out, facts = runs[sharing]
    for stage, other in zip(facts["stages"], again["stages"], strict=True):
        assert stage["valid"] == other["valid"]
        weights = [(run / stage["stage"] / "model.safetensors").read_bytes() for run in (out, tmp_path / "run")]
        assert weights[0] == weights[1], stage["stage"]


@pytest.mark.parametrize(
    "sharing",
    ["all", pytest.param("embeddings", marks=pytest.mark.slow), pytest.param("none", marks=pytest.mark.slow)],
)
def test_bundles_answer_as_the_torch_model(runs, tmp_path, monkeypatch, sharing):
    pytest.importorskip("onnxruntime")
    from pmd.export.cli import main
    from pmd.serving import Scorer

    monkeypatch.chdir(tmp_path)
    out, facts = runs[sharing]
    result = CliRunner().invoke(main, ["--grade", "2", "--run", str(out), "--quiet"])
    assert result.exit_code == 0, result.stderr
    grade = load_grade(out / "grade-2")
    texts = tokenise(tiny_graph(), grade.tokenizer, grade.info.templates)
    heads, relations = (part.ravel() for part in np.meshgrid(np.arange(12), np.arange(6)))
    expected = model_scores(grade.model, texts, np.stack([heads, relations], axis=1))(heads, relations)
    for precision, closest in (("fp32", 1e-5), ("int8", 0.1)):
        bundle = tmp_path / "bundles" / f"tiny-pmd-grade-2-{precision}"
        assert json.loads((bundle / "manifest.json").read_text())["parameters"] == facts["stages"][1]["parameters"]
        found = Scorer.load(bundle).score_queries(heads, relations)
        assert np.abs(found - expected).max() < closest, precision
        new = Scorer.load(bundle).top_tails("big old alpha", "isa", k=3, head_is_text=True)
        assert len(new) == 3


def test_a_grade_saved_before_towers_could_share_still_loads(runs, tmp_path):
    folder = runs["none"][0] / "grade-2"
    (tmp_path / "tokenizer.json").symlink_to(folder / "tokenizer.json")
    save_file(
        load_file(folder / "model.safetensors"), tmp_path / "model.safetensors"
    )  # nor were weights sealed then
    config = json.loads((folder / "config.json").read_text())
    assert config.pop("share_towers") == "none"
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model = load_grade(tmp_path).model
    assert model.sharing == "none"
    expected = load_grade(folder).model.state_dict()
    assert all(tensor.equal(expected[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("family", sorted({"bert", "distilbert", "modernbert", "mpnet"} & set(FAMILIES)))
def test_every_family_has_embeddings_to_share(tmp_path, family):
    files = resolve_encoder(str(write_family(tmp_path, family, layers=2)))
    whole = load_encoder(files, dropout=0.0, temperature=0.05)
    shared = load_encoder(files, dropout=0.0, temperature=0.05, sharing="embeddings")
    size = sum(parameter.numel() for parameter in whole.query.embeddings.parameters())
    assert whole.num_parameters - shared.num_parameters == size
    assert shared.cut((0,)).sharing == "embeddings", "a cut keeps what is shared"


def test_an_encoder_without_a_part_called_embeddings_is_refused(material):
    model = load_encoder(resolve_encoder(str(material[1])), dropout=0.0, temperature=0.05)
    for tower in (model.query, model.entity):
        tower.words = tower.embeddings
        del tower.embeddings
    assert model.sharing == "none"
    with pytest.raises(EncoderError, match="no embeddings to share; set share_towers to none or all"):
        share_towers(model, "embeddings")
