"""Promises that hold the project together: who may import whom, and what the wheel installs."""

import ast
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "serving": {"numpy", "onnxruntime", "tokenizers", "click", "usearch", "cryptography"},
    "serving/server": {"starlette", "uvicorn", "h11", "pydantic", "pydantic_core", "prometheus_client", "click"},
    "pmd": {"numpy", "torch", "transformers", "huggingface_hub", "safetensors", "tokenizers", "pydantic", "yaml"}
    | {"rich", "click", "accelerate"},
    "pmd/study": {"numpy", "torch", "transformers", "pydantic", "yaml", "click", "optuna", "matplotlib"},
    "pmd/datasets": {"numpy", "click", "tokenizers", "huggingface_hub", "yaml"}
    | {"pyarrow", "rdflib", "matplotlib", "jinja2", "markupsafe"},
    "export": {"numpy", "torch", "transformers", "onnx", "onnxruntime", "tokenizers", "click", "optimum"}
    | {"huggingface_hub", "flatbuffers", "cryptography"},
    "benchmarks/gpu": {"numpy", "safetensors", "yaml", "click"},
    "benchmarks/loops": {"numpy", "torch"},
    "benchmarks/towers": {"numpy", "torch", "transformers", "safetensors", "sentence_transformers"},
    "benchmarks/edge": {"numpy", "onnxruntime", "torch", "sentence_transformers", "faiss", "usearch", "httpx"}
    | {"safetensors", "tokenizers"},
    "benchmarks/peers": {"numpy", "onnxruntime", "torch", "transformers", "sentence_transformers", "optimum"}
    | {"openvino", "faiss", "usearch"},
    "benchmarks": {"numpy", "psutil", "matplotlib", "jinja2", "click", "tokenizers", "onnxruntime", "markupsafe"},
}
OURS = {
    "serving": {"pmd.serving"},
    "serving/server": {"pmd.serving"},
    "pmd": {"pmd", "pmd.serving", "pmd.datasets"},
    "pmd/study": {"pmd", "pmd.serving", "pmd.datasets", "pmd.study"},
    "pmd/datasets": {"pmd.errors", "pmd.graph", "pmd.published", "pmd.serving", "pmd.datasets"},
    "export": {"pmd", "pmd.serving", "pmd.datasets", "pmd.export"},
    "benchmarks": {"pmd.serving", "pmd.benchmarks"},
    "benchmarks/gpu": {"pmd.serving", "pmd.benchmarks"},
    "benchmarks/loops": {"pmd", "pmd.serving", "pmd.datasets", "pmd.benchmarks"},  # in child processes alone
    "benchmarks/towers": {"pmd", "pmd.serving", "pmd.datasets", "pmd.benchmarks"},  # as well
    "benchmarks/edge": {"pmd", "pmd.serving", "pmd.benchmarks"},  # as well
    "benchmarks/peers": {"pmd", "pmd.serving", "pmd.benchmarks"},  # as well
}
FOLDERS = {"export", "serving", "benchmarks"}
PACKAGES = FOLDERS | {"datasets", "study"}
HEAVY = {"torch", "transformers", "onnx", "onnxruntime", "accelerate", "matplotlib", "optimum", "pydantic"}
HEAVY |= {"pyarrow", "rdflib", "optuna", "usearch", "starlette", "uvicorn", "prometheus_client", "cryptography"}
WHEEL_SUFFIXES = {".py", ".yaml", ".json", ".tsv", ".onnx", ".j2", ".html", ".css", ".js", ".svg"}
EDGE_BYTES = 300_000  # of our own code that answering needs


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


def modules(folder):
    return [path for path in sorted((ROOT / folder).glob("*.py"))]


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_import_rules(folder):
    """serving reads nobody, pmd reads serving, export reads both, benchmarks reads serving; datasets: no torch."""
    for path in modules(folder):
        for name in imported(path):
            top = name.split(".")[0]
            if top == "pmd":
                part = ".".join(name.split(".")[:2])
                owner = part if folder == "pmd/datasets" or part.split(".")[-1] in PACKAGES else "pmd"
                allowed = OURS[folder] | ({"pmd"} if name == "pmd" else set())  # `from pmd import __version__`
                assert owner in allowed, f"{path.name} imports {name}"
            else:
                assert top in MAY_IMPORT[folder] or top in sys.stdlib_module_names, f"{path.name} imports {name}"


LIGHT = ["pmd", "pmd.serving", "pmd.export", "pmd.benchmarks", "pmd.datasets"]
LIGHT += ["pmd.cli", "pmd.serving.cli", "pmd.datasets.cli", "pmd.study.cli", "pmd.export.hubcli"]
LIGHT += ["pmd.serving.server.cli", "pmd.serving.near", "pmd.export.signing"]


@pytest.mark.parametrize("module", LIGHT)
def test_importing_loads_nothing_heavy(module):
    """An edge box has no torch, and `--help` must not wait for it; one stray import breaks both."""
    code = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(child.stdout.split())


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_modules_keep_to_their_size(folder):
    for path in modules(folder):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 500, path
        assert path.stem not in {"utils", "common", "helpers", "misc"}


def test_the_edge_runtime_is_small():
    """Modules and graphs of `serving/`; the HTTP server, which has an extra of its own, is not among them."""
    files = [*modules("serving"), *(ROOT / "serving/graphs").iterdir()]
    assert sum(path.stat().st_size for path in files) < EDGE_BYTES


FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "joblib", "dill", "cloudpickle"}
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "torch.load",
    "torch.jit.load",
    "torch.hub.load",
    "yaml.load",
    "yaml.unsafe_load",
}
FORBIDDEN_CALLS |= {"os.system", "os.popen", "np.fromstring"}
FORBIDDEN_ARGUMENTS = {
    ("trust_remote_code", True),
    ("allow_pickle", True),
    ("shell", True),
    ("weights_only", False),
}


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_nothing_unpickles_evaluates_or_runs_what_a_file_says(folder):
    for path in modules(folder):
        assert not FORBIDDEN_MODULES & set(imported(path)), path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                where = f"{path}:{node.lineno}"
                assert ast.unparse(node.func) not in FORBIDDEN_CALLS, where
                given = {
                    (word.arg, word.value.value) for word in node.keywords if isinstance(word.value, ast.Constant)
                }
                assert not FORBIDDEN_ARGUMENTS & given, where
                if ast.unparse(node.func) in ("AutoModel.from_pretrained", "AutoConfig.from_pretrained"):
                    assert ("trust_remote_code", False) in given, f"{where}: code from a hub could run"


def test_the_wheel_installs_every_package_and_its_data(tmp_path):
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    (tmp_path / "extra.cfg").write_text(
        f"[build]\nbuild_base = {tmp_path / 'build'}\n"
    )  # not that of earlier trees
    variables = {**os.environ, "DIST_EXTRA_CONFIG": str(tmp_path / "extra.cfg")}
    built = subprocess.run(command, capture_output=True, text=True, env=variables)
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    installed = {folder: folder if folder.startswith("pmd") else f"pmd/{folder}" for folder in OURS}
    expected = {f"{installed[folder]}/{path.name}" for folder in OURS for path in modules(folder)}
    expected |= {f"pmd/data/umls/{name}.tsv" for name in ("entities", "relations", "train", "valid", "test")}
    expected |= {"pmd/datasets/catalogue.yaml", "pmd/datasets/templates/check.html.j2"}
    expected |= {"pmd/recipes/umls.yaml", "pmd/py.typed", "pmd/benchmarks/templates/report.html.j2"}
    expected |= {f"pmd/serving/server/static/{path.name}" for path in (ROOT / "serving/server/static").iterdir()}
    expected |= {"pmd/serving/graphs/int8.onnx", "pmd/serving/graphs/float32.onnx"}
    expected |= {"pmd/benchmarks/facts/report.schema.json", "pmd/benchmarks/facts/reference.json"}
    expected |= {"pmd/benchmarks/gpu/slices.yaml", "pmd/recipes/wn18rr-bert.yaml"}
    assert expected <= names, expected - names
    tops = {name.split("/")[0] for name in names}
    assert tops == {"pmd"} | {top for top in tops if top.endswith(".dist-info")}
    assert not any("test" in name.split("/")[-1] and name.endswith(".py") for name in names)
    for name in names:  # nothing but what lies in the repository, under the names that setup.py gives
        source = ROOT / re.sub(r"^pmd/(serving|export|benchmarks)/", r"\1/", name)
        assert ".dist-info/" in name or source.is_file(), name
        assert Path(name).suffix in WHEEL_SUFFIXES or ".dist-info/" in name or name == "pmd/py.typed", name
