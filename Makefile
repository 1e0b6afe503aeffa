# `make quickstart` and `make test` do all their set-up on a machine with git, make and Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE = 1

.PHONY: quickstart test test-slow check lint docs install clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Skillgraft needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -e .
	touch $@

quickstart: install
	$(BIN)/skillgraft run recipes/quickstart.yaml

# Workers of the tests: as many as there are cores.
PYTEST := $(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist worksteal

test: lint
	$(PYTEST) --durations 25 --durations-min 1

check: lint
	$(PYTEST) -m "not slow and not docs and not process and not train and not field"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-slow: install
	OMP_NUM_THREADS=$$($(BIN)/python -c 'import os; print(os.cpu_count())') $(BIN)/python -m pytest -m slow

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --clean

clean:
	rm -rf $(VENV) build dist site src/*.egg-info
