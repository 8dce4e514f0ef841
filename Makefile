# On a fresh machine, `make run` and `make test` do everything. They need Python ≥ 3.10 and make; what they install goes
# into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help run test test-slow test-all lint format bench soak clean

help:  ## show this
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

run: $(STAMP)  ## fine-tune with uaf-hard on the built-in data
	$(BIN)/ftkit run --strategy uaf-hard

test: $(STAMP)  ## the default test suite
	$(BIN)/python -m pytest -n auto

test-slow: $(STAMP)  ## the slow tests alone
	$(BIN)/python -m pytest -n auto -m "slow and not benchmark"

test-all: $(STAMP)  ## slow tests too
	$(BIN)/python -m pytest -n auto -m "not benchmark"

lint: $(STAMP)  ## the three other checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check

format: $(STAMP)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

SIZE ?= paper
bench: $(STAMP)  ## measure speed against the straight reference; SIZE=small is quick
	$(BIN)/python -m pytest -m benchmark --benchmark-only
	$(BIN)/python tests/benchmarks/speed.py --size $(SIZE) --json .benchmarks/speed-$(SIZE).json

MINUTES ?= 60
soak: $(STAMP)  ## kill runs, feed readers nonsense, compare seeds, for MINUTES=60
	$(BIN)/python tests/soak/soak.py --minutes $(MINUTES)

# First torch and the build tool, in the tested versions; so no later step replaces them or fetches others.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch setuptools
	$(PIP) --no-build-isolation -e '.[dev]'
	touch $(STAMP)

clean:  ## remove what was installed and built
	rm -rf $(VENV) build dist *.egg-info
