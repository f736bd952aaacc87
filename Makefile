PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2
SLOW_JOBS ?= 3
PRESET ?= cpu

.PHONY: setup demo test test-slow lint docs bench clean

setup: $(VENV)/.complete

# The stamp is written last, so that an interrupted set-up is done again and a finished one is not.
$(VENV)/.complete: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "autoexplore needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(BIN)/python -m envs.roms
	touch $@

demo: setup
	$(BIN)/autoexplore pipeline --preset $(PRESET) --out runs/demo

# Processes that each take the tests of whole files: a Ray of its own suits each of them. The slow
# files keep the order of tests/conftest.py, the longest first; they wait for Ray more than they
# compute, so that two cores have time for three.
PYTEST = $(BIN)/python -m pytest --dist loadfile

test: setup
	$(PYTEST) -n $(JOBS) -m "not slow"

test-slow: setup
	$(PYTEST) -n $(SLOW_JOBS) --no-loadscope-reorder -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: setup
	$(BIN)/python -m scripts.make_cli_docs

bench: setup
	$(BIN)/autoexplore benchmark --out runs/benchmark

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build *.egg-info
