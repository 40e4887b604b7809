# Everything from a machine with Python 3.11+, make and a C++ compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
JOBS ?= 2
BENCHMARKS := $(filter-out __init__,$(notdir $(basename $(wildcard benchmarks/*.py))))

.PHONY: help install demo test test-all lint format experiments benchmarks clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

install: $(INSTALLED) ## set up .venv with everything

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet '.[dev,leiden,export]'
	touch $@

demo: $(INSTALLED) ## train the demo experiment and print its table
	$(BIN)/python train.py

test: $(INSTALLED) ## run the tests
	$(BIN)/python -m pytest -n $(JOBS)

test-all: $(INSTALLED) ## run the slow tests too
	$(BIN)/python -m pytest -n $(JOBS) -m 'slow or not slow'

lint: $(INSTALLED) ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED) ## repair style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

experiments: $(INSTALLED) ## print the table of experiments, and put it into the README
	$(BIN)/python -m runs.experiment_table

benchmarks: $(INSTALLED) ## measure against the alternatives (prints ratios)
	@for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python -m benchmarks.$$name || exit 1; done

clean: ## remove what the project made (not the outputs)
	rm -rf $(VENV) .pytest_cache .ruff_cache *.egg-info
