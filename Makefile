PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: install sweep test check mutations torture page format benchmark clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

sweep: install
	$(BIN)/klsweep sweep experiment=quickstart

test: install
	$(BIN)/python -m pytest

check: test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

mutations: install
	$(BIN)/python tests/mutate.py

N ?= 1
torture: install
	$(BIN)/python -m tests.slurm.torture $(N) docs/slurm.md

page: install
	$(BIN)/klsweep audit --page docs

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: install
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf .venv build *.egg-info
