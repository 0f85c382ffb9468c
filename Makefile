# Two commands are all a newcomer needs, on a machine with Python 3.11 and make:
#   make demo    shrink a real model and see what that does to its accuracy
#   make test    run the tests
# Both first make .venv with the tested versions of everything (constraints.txt).
# Another interpreter: make test PYTHON=/path/to/python3.12

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench fixtures clean

help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile

# Written last, so that an interrupted installation is done again.
$(STAMP): pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (a few minutes the first time)..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check \
		--constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/python fixtures/demo.py

test: $(STAMP)
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	@echo "make bench: the benchmarks are scripts in benchmarks/; run them with $(BIN)/python"

# Trains and converts the models in fixtures/ anew; they are committed, so this is rarely needed.
fixtures: $(STAMP)
	@$(BIN)/python fixtures/train_digits.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
