# Two commands are all a fresh machine needs (Python 3.11+ and make):
#   make tune    install, then search on this machine: real text, real training, an honest report
#   make test    install with the development tools, then ruff, mypy and the tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOB ?= jobs/local.yaml
ARGS ?=

.PHONY: tune test lint tests notebook clean

tune: $(VENV)/.runtime
	$(BIN)/hybrid-ray run $(JOB) $(ARGS)

test: lint tests

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

tests: $(VENV)/.dev
	$(BIN)/python -m pytest $(ARGS)

notebook: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt jupyterlab
	$(BIN)/jupyter lab notebooks/explore_results.ipynb

$(VENV)/.runtime: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
