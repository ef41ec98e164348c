# Two commands for a newcomer: `make demo` and `make test`. Each sets up what it needs and then does its job.
#
#   make demo         score the example explanations and compare with the usual way
#   make test         all tests that need no GPU
#   make lint         ruff, the format check and mypy
#   make docs         build the documentation into build/docs
#   make bench        the CPU benchmarks (minutes; stop other work first), beside the peers of `make peers`
#   make bench-compare BASE=REV   the working tree's speed beside an older commit's
#   make peers        the libraries that `make bench` compares with, in an environment of their own
#   make train-demo   a small policy through CPT, SFT and GRPO (a quarter of an hour)
#   make train-arms   GRPO with other rewards, three seeds each; it goes on where it stopped
#   make gpu          the tests on CUDA, then the GPU benchmarks, with this machine's own python3
#   make clean        remove the environment and what the tools left behind

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-cpu test-interpreter test-compile test-trl lint format coverage docs \
	bench bench-compare peers train-demo train-arms gpu clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# torch by its exact pin, before anything that needs it: an open range may pull another build, of gigabytes.
TORCH := $(shell grep -E '^torch==' constraints.txt)
# The oldest Triton that is supported: kernels are compiled ahead of time with it as well.
TRITON_OLDEST := 3.6.0
# The oldest TRL that is supported, which unsloth pins.
TRL_OLDEST := 1.15.0

export HF_HUB_OFFLINE ?= 1

help:
	@sed -n 's/^#   //p' Makefile

$(VENV)/.ready: constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fastreward needs Python >= 3.11, this is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12 ...")'
	@echo "Setting up $(VENV) (once; a minute or two) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "pip>=25"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(TORCH)
	@# A CUDA torch pins a Triton of its own; only a CPU torch leaves the choice to the constraints.
	@$(BIN)/python -c 'import torch; print(torch.version.cuda or "cpu")' > $(VENV)/torch-build
	@if [ "$$(cat $(VENV)/torch-build)" = cpu ]; then cp constraints.txt $(VENV)/constraints.txt; \
	  else grep -v '^triton==' constraints.txt > $(VENV)/constraints.txt; fi
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -c $(VENV)/constraints.txt -e '.[dev]'
	@touch $@

setup: $(VENV)/.ready

demo: setup
	@$(BIN)/python examples/demo.py

test: test-cpu test-interpreter test-compile test-trl

test-cpu: setup
	$(BIN)/python -m pytest -q tests

# A process of its own: Triton reads TRITON_INTERPRET when a kernel module is imported.
test-interpreter: setup
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -q tests/ops

$(VENV)/triton-$(TRITON_OLDEST)/.ready: $(VENV)/.ready
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
	  --target $(VENV)/triton-$(TRITON_OLDEST) triton==$(TRITON_OLDEST)
	@touch $@

# The same compilation under the oldest supported Triton; `test-cpu` ran it under the installed one.
test-compile: $(VENV)/triton-$(TRITON_OLDEST)/.ready
	PYTHONPATH=$(VENV)/triton-$(TRITON_OLDEST) $(BIN)/python -m pytest -q tests/kernels

$(VENV)/trl-$(TRL_OLDEST)/.ready: $(VENV)/.ready
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
	  --target $(VENV)/trl-$(TRL_OLDEST) trl==$(TRL_OLDEST)
	@touch $@

# The adapter under the oldest supported TRL; `test-cpu` ran it under the installed one. Its losses are Triton
# kernels whatever the device, which only the interpreter runs on a CPU.
test-trl: $(VENV)/trl-$(TRL_OLDEST)/.ready
	TRITON_INTERPRET=1 PYTHONPATH=$(VENV)/trl-$(TRL_OLDEST) $(BIN)/python -m pytest -q \
	  tests/integrations/test_trl.py tests/integrations/test_trl_trainers.py \
	  tests/integrations/test_trl_profiling.py -m "not slow"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

coverage: setup
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -q tests
	TRITON_INTERPRET=1 $(BIN)/coverage run --append -m pytest -q tests/ops
	$(BIN)/coverage report --skip-covered --show-missing

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

bench: setup
	$(BIN)/python -m pytest benchmarks --benchmark-only

# The working tree beside an older commit, in turns.
bench-compare: setup
	@test -n "$(BASE)" || { echo "Which commit to compare with? make bench-compare BASE=main" >&2; exit 2; }
	$(BIN)/python benchmarks/compare.py $(BASE) $(if $(SUITES),--suites $(SUITES)) $(if $(FAIL_ABOVE),--fail-above $(FAIL_ABOVE))

train-demo: setup
	$(BIN)/python benchmarks/train_demo.py

train-arms: setup
	$(BIN)/python benchmarks/train_arms.py

# They need an older transformers than ours.
peers: $(VENV)/peers/.ready

$(VENV)/peers/.ready: $(VENV)/.ready benchmarks/peers_cpu/requirements.txt
	@$(PYTHON) -m venv $(VENV)/peers
	@$(VENV)/peers/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	@$(VENV)/peers/bin/python -m pip install --quiet --disable-pip-version-check \
	  -r benchmarks/peers_cpu/requirements.txt
	@touch $@

# For a machine whose python3 already holds CUDA torch: no environment is made and nothing is fetched.
gpu:
	$(PYTHON) -m pytest -q tests
	$(PYTHON) benchmarks/gpu_suite.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
