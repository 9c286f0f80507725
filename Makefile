# Two commands do everything on a machine that has python3 (3.11 or newer) and pip: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One more than the cores of a small machine: tests of several processes wait.
WORKERS := 3

.PHONY: demo test pytest install install-test lint format clean

demo: install
	$(BIN)/jaxrl-lm demo --out runs/demo-$$(date +%Y%m%d-%H%M%S)

# Linters use one core while pytest starts; make waits for both and fails if either does.
test: install-test
	$(MAKE) --no-print-directory --jobs 2 lint pytest

pytest: install-test
	$(BIN)/pytest -n $(WORKERS) --dist worksteal --durations 20

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

format: install-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(VENV)/.installed
install-test: $(VENV)/.installed-test

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

# Python compiles the few modules that tests import when they do; compiling all takes most of the installation.
$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[test]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) .cache build *.egg-info
