"""`pmd-predict`, and the promise that the edge loads nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest
from tiny_bundle import ENTITIES

from pmd.serving import Scorer
from pmd.serving.cli import main

HEAVY = {
    "torch",
    "transformers",
    "onnx",
    "accelerate",
    "matplotlib",
    "optimum",
    "pydantic",
    "yaml",
    "psutil",
    "scipy",
}


def run(*args: object) -> int:
    with pytest.raises(SystemExit) as leaving:
        main([str(arg) for arg in args], "pmd-predict")
    return int(leaving.value.code or 0)


def last_line(out: str) -> dict:
    return json.loads(out.splitlines()[-1])


def test_a_table_and_then_one_json_line(tiny_folder, capsys):
    assert run(tiny_folder, "--head", "heart_attack", "--relation", "causes", "-k", 3, "--threads", 1) == 0
    out, err = capsys.readouterr()
    expected = Scorer.load(tiny_folder, threads=1).top_tails("heart_attack", "causes", k=3)
    assert last_line(out) == {
        "schema": "pmd-predict/1",
        "bundle": str(tiny_folder),
        "head": "heart_attack",
        "relation": "causes",
        "predictions": [{"entity": p.entity, "name": p.name, "score": p.score} for p in expected],
    }
    table = out.splitlines()[:-1]
    assert table[0].split() == ["rank", "score", "entity", "name"]
    assert [line.split()[:3] for line in table[1:]] == [
        [str(rank), f"{p.score:.4f}", p.entity] for rank, p in enumerate(expected, start=1)
    ]
    assert err == ""


def test_json_alone(tiny_folder, capsys):
    assert run(tiny_folder, "--relation", "part of", "--tail", "body", "--json") == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    expected = Scorer.load(tiny_folder).top_heads("part_of", "body")
    assert [p["entity"] for p in last_line(out)["predictions"]] == [p.entity for p in expected]
    assert last_line(out)["tail"] == "body"


def test_known_answers_are_shown_only_when_asked_for(tiny_folder, capsys):
    question = (tiny_folder, "--head", "aspirin", "--relation", "treats", "-k", 50, "--json")
    run(*question)
    without = {p["entity"] for p in last_line(capsys.readouterr().out)["predictions"]}
    run(*question, "--include-known")
    everything = {p["entity"] for p in last_line(capsys.readouterr().out)["predictions"]}
    assert everything - without == {"pain", "fever", "heart_attack"}
    assert everything == {row.id for row in ENTITIES}


def test_a_unique_name_is_that_entity(tiny_folder, capsys):
    run(tiny_folder, "--head", "heart attack", "--relation", "causes", "--json")
    out, err = capsys.readouterr()
    assert last_line(out)["head"] == "heart_attack"
    assert err == ""


@pytest.mark.parametrize("text", ["a drug against fever", "cold"])
def test_anything_else_is_taken_as_text_and_said_so(tiny_folder, capsys, text):
    assert run(tiny_folder, "--head", text, "--relation", "treats", "--json") == 0
    out, err = capsys.readouterr()
    assert err == f"{text!r} is no entity's id or unique name; taken as text\n"
    assert last_line(out)["head"] == text
    expected = Scorer.load(tiny_folder).top_tails(text, "treats", head_is_text=True)
    assert [p["entity"] for p in last_line(out)["predictions"]] == [p.entity for p in expected]
    run(tiny_folder, "--head", text, "--relation", "treats", "--json", "--quiet")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--head", "heart"), "give --relation, and --head or --tail"),
        (("--relation", "treats"), "give either --head or --tail"),
        (("--relation", "treats", "--head", "heart", "--tail", "body"), "give either --head or --tail"),
        (("--relation", "trats", "--head", "heart"), "nearest: treats"),
        (("--relation", "treats", "--head", " ", "--quiet"), "empty"),
        (("--relation", "treats", "--tail", "\udcff", "--quiet"), "not valid Unicode"),
        (("--relation", "treats", "--head", "heart", "-k", "0"), "Invalid value for '-k'"),
        (("--relation", "treats", "--head", "heart", "--threads", "0"), "Invalid value for '--threads'"),
    ],
)
def test_mistakes_are_one_line_and_code_2(tiny_folder, capsys, args, message):
    assert run(tiny_folder, *args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_a_path_that_is_no_bundle(tmp_path, capsys):
    assert run(tmp_path / "absent", "--head", "x", "--relation", "y") == 2
    assert capsys.readouterr().err.startswith("error: no bundle at ")


def test_help_has_examples(capsys):
    assert run("--help") == 0
    out = capsys.readouterr().out
    assert "Examples:" in out
    assert out.count("pmd-predict ") >= 3


def test_names_cannot_steer_the_terminal(tiny_scorer, tmp_path, capsys):
    tiny_scorer.add_entity("evil", name="\x1b[2Jgone" + "x" * 200, vector=[1.0] * 16)
    run(tiny_scorer.save(tmp_path / "evil"), "--head", "heart", "--relation", "causes", "-k", 99)
    out = capsys.readouterr().out
    table = "\n".join(out.splitlines()[:-1])
    assert "\x1b" not in out
    assert "gone" in table
    assert max(len(line) for line in table.splitlines()) < 120
    assert any(p["name"].startswith("\x1b[2Jgone") for p in last_line(out)["predictions"])


def modules_after(code: str, *args: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after running `code`."""
    code = textwrap.dedent(code) + "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    child = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
    return set(child.stdout.splitlines()[-1].split())


def test_importing_serving_loads_neither_the_runtime_nor_anything_heavy():
    loaded = modules_after("import pmd, pmd.serving")
    assert not (HEAVY | {"onnxruntime", "click"}) & loaded
    assert {"numpy", "tokenizers"} <= loaded


def test_answering_a_query_loads_nothing_heavy(tiny_folder):
    loaded = modules_after(
        """
        import sys
        from pmd.serving import Scorer
        scorer = Scorer.load(sys.argv[1], threads=1, verify=True)
        scorer.top_tails("aspirin", "treats")
        scorer.evaluate()
        scorer.add_entity("new", name="new")
        """,
        str(tiny_folder),
    )
    assert not HEAVY & loaded
    assert "onnxruntime" in loaded


def test_the_command_as_installed(tiny_folder):
    child = subprocess.run(
        [
            sys.executable,
            "-m",
            "pmd.serving.cli",
            str(tiny_folder),
            "--head",
            "heart",
            "--relation",
            "causes",
            "--json",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(child.stdout)["schema"] == "pmd-predict/1"
    assert child.stderr == ""
