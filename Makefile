# make demo | test | lint | bench | gpu | soak      a fresh machine needs Python 3.11+ with venv, and make
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := build/demo
# Tests that launch two or more ranks. Two files at a time: a launch does not keep two cores busy
# while it imports or waits. The longest files come first.
LAUNCHING := tests/faults tests/slurm tests/end_to_end

.PHONY: help install demo test lint format bench gpu soak clean

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

install: $(VENV)/installed ## .venv with the project and its pinned dependencies

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mmsa needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install ## made-up data, packed, trained on all GPUs or two CPU processes, evaluated
	rm -rf $(DEMO)
	$(BIN)/python -m launch.demo $(DEMO)

test: install ## the tests that this machine can run; MMSA_REQUIRE=shared,slurm fails where these are missing
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile $(addprefix --ignore=,$(LAUNCHING))
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(LAUNCHING)

lint: install ## ruff, ruff format, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install ## ruff format, and the safe fixes of ruff
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install ## the benchmarks, in their short form
	$(BIN)/python -m benchmarks.loader --images 600 --passes 2
	$(BIN)/python -m benchmarks.handover
	$(BIN)/python -m benchmarks.dataloader --batches 10 --repeats 1 --starts 0
	$(BIN)/python -m benchmarks.packing --images 600
	$(BIN)/python -m benchmarks.plan
	$(BIN)/python -m benchmarks.step --batches 16 --arms seed accelerate ours
	$(BIN)/python -m benchmarks.scaling --size tiny
	$(BIN)/python -m benchmarks.start --no-stall
	$(BIN)/python -m benchmarks.search --trials 12 --repeats 1

gpu: install ## correctness and speed on the GPUs of this machine, at most 25 minutes; continues in build/gpu
	$(BIN)/python -m benchmarks.gpu

soak: install ## the long versions of the tests
	MMSA_TEST_EXEC=1 $(BIN)/python -m pytest -m soak --timeout 3600

clean: ## remove everything that make created, except .venv
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
