"""`pmd-data`: every command ends in one JSON object, or in one `error:` line and the right exit code."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from pmd.datasets import load_graph
from pmd.datasets.cli import main
from tests.graphs import assert_same, id_triples
from tests.tiny_encoder import tiny_graph, tiny_tokenizer, write_graph


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PMD_CACHE", "cache")
    monkeypatch.delenv("PMD_DATA", raising=False)
    write_graph(tmp_path / "tiny")
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "tokenizer.json").write_text(tiny_tokenizer().to_str())


def run(*args):
    result = CliRunner().invoke(main, [str(arg) for arg in args], prog_name="pmd-data")
    assert not result.exception or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def last(stdout):
    return json.loads(stdout.splitlines()[-1])


def test_list(tmp_path, monkeypatch):
    code, stdout, _ = run("list")
    assert code == 0
    rows = {row["name"]: row for row in last(stdout)["datasets"]}
    assert (rows["umls"]["where"], rows["kinship"]["where"]) == ("package", "to fetch")
    assert "kinship" in stdout.splitlines()[2]
    monkeypatch.setenv("PMD_DATA", str(tmp_path))
    code, stdout, _ = run("list", "--json")
    assert len(stdout.splitlines()) == 1
    assert {"name": "tiny", "where": "PMD_DATA"}.items() <= last(stdout)["datasets"][1].items()


def test_get_takes_a_local_copy_first(tmp_path, monkeypatch):
    monkeypatch.setenv("PMD_DATA", str(tmp_path))
    code, stdout, stderr = run("get", "tiny")
    assert (code, last(stdout)["path"], stderr) == (0, str(tmp_path / "tiny"), "")


def test_get_from_a_catalogue_of_ones_own(tmp_path):
    (tmp_path / "ring.tsv").write_text("a\tr\tb\nb\tr\ta\n")
    file = {"address": (tmp_path / "ring.tsv").as_uri(), "sha256": None, "save_as": "train.tsv"}
    entry = {"about": "a ring", "licence": "CC0", "files": [file]}
    (tmp_path / "own.yaml").write_text(
        json.dumps({"schema": "pmd-data-catalogue/1", "datasets": {"ring": entry}})  # JSON is YAML
    )
    code, _, stderr = run("get", "ring", "--catalogue", "own.yaml")
    assert code == 2 and "--trust-first-download" in stderr
    code, stdout, stderr = run("get", "ring", "--catalogue", "own.yaml", "--trust-first-download")
    assert code == 0, stderr
    assert last(stdout) == {
        "schema": "pmd-data-get/1", "name": "ring", "path": "cache/datasets/ring", "licence": "CC0",
    }  # fmt: skip
    assert load_graph("ring").entity_ids == ("a", "b")
    code, stdout, _ = run("get", "ring")
    assert code == 0


@pytest.mark.parametrize("layout", ["tsv.xz", "simkgc", "kgbert", "parquet", "turtle"])
def test_convert_there_and_back(layout):
    code, stdout, stderr = run("convert", "tiny", "there", "--to", layout)
    assert code == 0, stderr
    assert {"schema": "pmd-data-convert/1", "path": "there", "layout": layout}.items() <= last(stdout).items()
    code, _, stderr = run("convert", "there", "back", "--to", "tsv")
    assert code == 0, stderr
    assert_same(load_graph("back"), tiny_graph())


def test_convert_of_one_file_makes_splits():
    with open("graph.csv", "w") as file:
        file.write("".join(f"{a},r,{b}\n" for a in range(5) for b in range(5)))
    code, stdout, _ = run("convert", "graph.csv", "out", "--to", "tsv")
    assert code == 0
    assert last(stdout)["counts"] == {"entities": 5, "relations": 1, "train": 21, "valid": 2, "test": 2}


def test_split_is_repeatable_and_loses_nothing():
    code, stdout, _ = run("split", "tiny", "one", "--seed", "5", "--valid", "0.2", "--test", "0.1")
    assert code == 0
    assert last(stdout)["rule"] == {"seed": 5, "valid": 0.2, "test": 0.1, "inductive": False}
    assert [last(stdout)["counts"][split] for split in ("train", "valid", "test")] == [37, 10, 5]
    run("split", "tiny", "two", "--seed", "5", "--valid", "0.2", "--test", "0.1")
    assert_same(load_graph("one"), load_graph("two"))
    every = [triple for split in ("train", "valid", "test") for triple in id_triples(load_graph("one"), split)]
    assert sorted(every) == sorted(t for s in ("train", "valid", "test") for t in id_triples(tiny_graph(), s))


def test_split_remarks_go_to_stderr_unless_quiet():
    with open("graph.tsv", "w") as file:
        file.write("".join(f"{a}\tr\t{b}\n" for a in range(5) for b in range(5)) * 2)
    assert "note: graph: 25 repeated triples left out" in run("split", "graph.tsv", "one")[2]
    assert run("split", "graph.tsv", "two", "--quiet")[2] == ""


def test_check_as_text_json_and_page():
    code, stdout, stderr = run("check", "tiny", "--encoder", "encoder", "--html", "page.html")
    assert (code, stderr) == (0, "")
    report = last(stdout)
    assert (report["schema"], report["passed"], report["html"]) == ("pmd-data-check/1", True, "page.html")
    assert "reversed in train, any relation" in stdout
    with open("page.html") as file:
        assert "tiny: the dataset checked" in file.read()
    code, stdout, _ = run("check", "tiny", "--json")
    assert len(stdout.splitlines()) == 1
    assert last(stdout)["tokens"] is None or last(stdout)["tokens"]["encoder"] == "all-MiniLM-L6-v2"


def test_check_stops_on_what_makes_figures_meaningless():
    with open("tiny/test.tsv", "a") as file:
        file.write("e1\tisa\tnobody\n" + "\t".join(id_triples(tiny_graph(), "train")[0]) + "\n")
    code, stdout, stderr = run("check", "tiny")
    assert code == 2
    assert last(stdout)["passed"] is False
    assert stderr.startswith(
        "error: figures on tiny would mean nothing: 1 test triple stands in train as well (and"
    )
    assert stderr.count("\n") == 1
    assert run("check", "tiny", "--allow", "unknown-ids")[0] == 2
    code, stdout, _ = run("check", "tiny", "--allow", "unknown-ids", "--allow", "test-in-train")
    assert code == 0
    assert "allowed  unknown-ids" in stdout


MISTAKES = {
    "no command": ([], "Missing command. (see pmd-data --help)"),
    "unknown command": (["mend"], "No such command 'mend'"),
    "missing argument": (["check"], "Missing argument 'DIR'. (see pmd-data check --help)"),
    "missing dataset": (["check", "nowhere"], "no dataset folder nowhere"),
    "unknown kind": (["check", "tiny", "--allow", "all"], "Invalid value for '--allow'"),
    "unknown encoder": (["check", "tiny", "--encoder", "no/such"], "no tokenizer of 'no/such'"),
    "unknown layout": (["convert", "tiny", "out", "--to", "xml"], "Invalid value for '--to'"),
    "no layout": (["convert", "tiny", "out"], "Missing option '--to'"),
    "target exists": (["convert", "tiny", "encoder", "--to", "tsv"], "exists already"),
    "texts would be lost": (["convert", "tiny", "out", "--to", "bare"], "--drop-texts"),
    "shares": (["split", "tiny", "out", "--valid", "0.9", "--test", "0.1"], "sum to less than 1"),
    "unknown name": (["get", "kinshp"], "no dataset 'kinshp' in the catalogue; there is kinship"),
    "name is a path": (["get", "../tiny"], "no dataset '../tiny' in the catalogue"),
    "no catalogue": (["list", "--catalogue", "none.yaml"], "Invalid value for '--catalogue'"),
    "page in no folder": (["check", "tiny", "--html", "no/page.html"], "No such file or directory"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_end_in_one_line_and_code_2(mistake):
    args, message = MISTAKES[mistake]
    code, _, stderr = run(*args)
    assert code == 2, stderr
    assert stderr.startswith("error: ") and stderr.count("\n") == 1
    assert message in stderr
    assert not Path("out").exists()


@pytest.mark.parametrize("command", [[], ["list"], ["get"], ["convert"], ["split"], ["check"]])
def test_help_has_examples(command):
    code, stdout, _ = run(*command, "--help")
    assert code == 0
    assert "Examples:" in stdout and "pmd-data" in stdout
