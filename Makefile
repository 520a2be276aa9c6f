# Two commands matter: `make demo` and `make test`. Both install what they need into .venv first.
SHELL := /bin/bash
PYTHON ?= python3.11
# full, or quick: the same path with few steps
PROFILE ?= full
# cpu or gpu
LOCK ?= cpu
BIN := .venv/bin
BENCHMARKS := multilora rollout sync memory sft reward readers
LOCKFILE := requirements/$(LOCK).lock
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu

# Two processes take whole files of tests in turn (tests/support/schedule.py).
PYTEST := $(BIN)/pytest -n 2 --dist loadscope --no-loadscope-reorder

.PHONY: help demo test test-fast test-all conformance bench lint format lock clean

help:
	@echo "make demo [PROFILE=full|quick]  the film-review example, from data to served adapters"
	@echo "make test                       every mechanism once for real"
	@echo "make test-fast                  the tests of less than a second each"
	@echo "make test-all                   all tests, folder by folder; called again, it goes on"
	@echo "make conformance                every method under every strategy, as a table"
	@echo "make bench                      speed against peers, as tables and as JSON in build/bench"
	@echo "make lint                       ruff, mypy, and which package imports which"
	@echo "make lock                       write the locks anew from .venv"
	@echo "make clean                      remove build outputs and caches (never runs/)"
	@echo "LOCK=gpu installs the CUDA builds instead of the CPU builds"

# torch's CPU build is on PyTorch's own index only, unless the configured index mirrors it.
.venv/.installed: $(LOCKFILE) pyproject.toml
	$(PYTHON) -m venv .venv
	torch=$$(grep '^torch==' $(LOCKFILE)); \
	$(BIN)/pip install --quiet --no-deps "$$torch" || \
	$(BIN)/pip install --quiet --no-deps --extra-index-url $(TORCH_CPU_INDEX) "$$torch"
	$(BIN)/pip install --quiet --no-deps -r $(LOCKFILE)
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

# What tests alone need; pycosat among it is compiled, by a C compiler and Python's headers.
.venv/.tested: .venv/.installed requirements/tests.lock
	$(BIN)/pip install --quiet --no-deps -r requirements/tests.lock
	touch $@

demo: .venv/.installed
	$(BIN)/python examples/reviews/demo.py --profile $(PROFILE)

# Tests that start clusters and engines run one after another: two at once use both cores, as one of them nearly does,
# and run into their time limits.
test: .venv/.tested
	$(PYTEST) -m "not cluster and not exhaustive"
	$(BIN)/pytest -m "cluster and not exhaustive"

test-fast: .venv/.tested
	$(PYTEST) -m "not slow and not exhaustive"

test-all: .venv/.tested
	$(BIN)/python tools/run_tests.py

conformance: .venv/.installed
	$(BIN)/python -m tests.support.conformance.table --out build/conformance

bench: .venv/.installed
	set -e; for name in $(BENCHMARKS); do $(BIN)/python tests/bench/$$name.py --out build/bench/$$name.json; done

lint: .venv/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

format: .venv/.installed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# The GPU lock is resolved by uv, in an environment of its own.
lock: .venv/.tested
	$(BIN)/python requirements/lock.py cpu
	$(BIN)/python requirements/lock.py tests
	$(PYTHON) -m venv build/uv && build/uv/bin/pip install --quiet uv packaging
	build/uv/bin/python requirements/lock.py gpu

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find platform tests examples -name __pycache__ -prune -exec rm -rf {} +
	rm -rf platform/*.egg-info
