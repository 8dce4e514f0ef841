# Python ≥ 3.10 and make are all that is needed; everything is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: run test test-all lint format benchmark clean

run: $(STAMP)  ## fine-tune with uaf-hard on the built-in data
	$(BIN)/ftkit run --strategy uaf-hard

test: $(STAMP)  ## the default test suite
	$(BIN)/python -m pytest

test-all: $(STAMP)  ## slow tests too
	$(BIN)/python -m pytest -m "not benchmark"

lint: $(STAMP)  ## what CI checks besides the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: $(STAMP)
	$(BIN)/python -m pytest -m benchmark --benchmark-only

# torch first: the CPU build is enough for everything here, and the constraint keeps later steps from replacing it.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist *.egg-info
