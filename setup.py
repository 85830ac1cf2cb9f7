"""Distribution `pmd-kgc`: four top-level folders that install as one package.

`export`, `serving` and `benchmarks` are too generic to own as import names, so the folders
install below `pmd`. The committed links `pmd/export -> ../export` (and so on) give a checkout
the same import names as an install; see docs/architecture.md.
"""

from pathlib import Path

from setuptools import setup

RUNTIME = ["numpy>=1.26", "tokenizers>=0.20", "click>=8.1"]
CPU = ["onnxruntime>=1.20"]
TRAIN = [
    "torch>=2.6",
    "transformers>=4.48,<6",
    "huggingface-hub>=0.26",
    "safetensors>=0.4.5",
    "pydantic>=2.8",
    "PyYAML>=6.0",
    "rich>=13.7",
    "accelerate>=1.1",
]
# The TorchScript exporter traces transformers 4's attention; optimum-onnx asks for < 4.58 too.
EXPORT = [*TRAIN, "onnx>=1.17", "onnx-ir>=0.1", "transformers<4.58"]
BENCH = ["psutil>=5.9", "matplotlib>=3.8", "Jinja2>=3.1"]
ANN = ["usearch>=2.16"]
SERVER = ["starlette>=0.40", "uvicorn>=0.30", "h11>=0.14", "pydantic>=2.8", "prometheus-client>=0.20"]
SIGN = ["cryptography>=42"]
STUDY = [*TRAIN, "optuna>=4.2", "matplotlib>=3.8"]
TRACK = ["tensorboard>=2.16", "mlflow>=2.16", "wandb>=0.17"]
DATA = ["pyarrow>=15", "rdflib>=7.0", "PyYAML>=6.0", "matplotlib>=3.8", "Jinja2>=3.1"]
DEV = [
    "pytest>=8.3",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    "ruff>=0.9",
    "mypy>=1.14",
    "build>=1.2",
    "optimum-onnx>=0.1",
    "sentence-transformers>=5.0",
    "pre-commit>=4.0",
    "types-PyYAML",
    "tensorboard>=2.16",
    "httpx>=0.27",
    "playwright>=1.45",
    "schemathesis>=4.0",
    "faiss-cpu>=1.8",
    "jsonschema>=4.20",
]

README = Path(__file__).with_name("README.md")

setup(
    name="pmd-kgc",
    version="0.1.0",
    description="Distil a text-based knowledge-graph link predictor and run it on the edge",
    long_description=README.read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    package_dir={
        "pmd": "pmd",
        "pmd.export": "export",
        "pmd.serving": "serving",
        "pmd.benchmarks": "benchmarks",
    },
    packages=[
        "pmd",
        "pmd.datasets",
        "pmd.study",
        "pmd.export",
        "pmd.serving",
        "pmd.serving.server",
        "pmd.benchmarks",
        "pmd.benchmarks.edge",
        "pmd.benchmarks.gpu",
        "pmd.benchmarks.loops",
        "pmd.benchmarks.peers",
        "pmd.benchmarks.towers",
    ],
    package_data={
        "pmd": ["py.typed", "recipes/*.yaml", "data/*/*.tsv", "data/*/*.json"],
        "pmd.datasets": ["catalogue.yaml", "templates/*"],
        "pmd.serving": ["graphs/*.onnx"],
        "pmd.serving.server": ["static/*"],
        "pmd.benchmarks": ["templates/*", "facts/*"],
        "pmd.benchmarks.gpu": ["slices.yaml"],
    },
    install_requires=RUNTIME,
    extras_require={
        "cpu": CPU,
        "gpu": ["onnxruntime-gpu>=1.20"],
        "train": TRAIN,
        "export": EXPORT,
        "bench": BENCH,
        "data": DATA,
        "server": SERVER,
        "ann": ANN,
        "sign": SIGN,
        "study": STUDY,
        "track": TRACK,
        "dev": DEV,
        "all": [*CPU, *EXPORT, *ANN, *BENCH, *DATA, *SERVER, *SIGN, *STUDY],
    },
    entry_points={
        "console_scripts": [
            "pmd-train = pmd.cli:main",
            "pmd-data = pmd.datasets.cli:main",
            "pmd-study = pmd.study.cli:main",
            "pmd-export = pmd.export.cli:main",
            "pmd-hub = pmd.export.hubcli:main",
            "pmd-sign = pmd.export.signing:main",
            "pmd-bench = pmd.benchmarks.cli:main",
            "pmd-predict = pmd.serving.cli:main",
            "pmd-serve = pmd.serving.server.cli:main",
        ]
    },
)
