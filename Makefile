# Two commands are all a fresh machine needs (Python 3.11+ and make):
#   make tune    install, then search on this machine: real text, real training, an honest report
#   make test    install with the development tools, then ruff, mypy and the tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOB ?= jobs/local.yaml
ARGS ?=

.PHONY: tune test lint tests-faults tests-ray tests-rest notebook clean

tune: $(VENV)/.runtime
	$(BIN)/hybrid-ray run $(JOB) $(ARGS)

# Tests that start Ray wait for processes most of their time, so three parts run side by side. With ARGS, one pytest as asked.
test: $(VENV)/.dev
ifeq ($(ARGS),)
	$(MAKE) --no-print-directory --jobs 3 --output-sync=target tests-faults tests-ray lint tests-rest
else
	$(BIN)/python -m pytest $(ARGS)
endif

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# In a process of its own: it starts clusters, and tests/ray_local keeps one Ray until the end.
tests-faults: $(VENV)/.dev
	$(BIN)/python -m pytest --durations 30 tests/faults

tests-ray: $(VENV)/.dev
	$(BIN)/python -m pytest --durations 30 tests/ray_local

tests-rest: $(VENV)/.dev
	$(BIN)/python -m pytest --durations 30 tests --ignore tests/ray_local --ignore tests/faults

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
