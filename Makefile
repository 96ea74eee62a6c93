# `make` lists what there is. A fresh machine needs Python 3.11 and make; the rest is installed into
# this folder: .venv (stream and tools), .venv-triton (Triton's server), .venv-train (torch, only for
# training), .eddy (jars, logs, data).

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?=
ARGS ?=
export PYTHON

# No __pycache__ of a root-owned image, no user site: only what the locks name.
export PYTHONNOUSERSITE := 1

BIN := .venv/bin
SOURCES := flink_jobs models state deploy tests
TIMED := stack or flink or faults or slow or bench

##@ Use
.PHONY: demo up down
demo: setup ## real Kafka, Triton and Flink on simulated payments (ARGS="--seed 7 --keep")
	$(BIN)/eddy demo $(ARGS)

up: setup ## start Kafka, Triton and Flink on this machine
	$(BIN)/eddy up $(ARGS)

down: ## stop them
	if [ -x $(BIN)/eddy ]; then $(BIN)/eddy down; fi

##@ Develop
.PHONY: test test-fast bounds stack-test coverage check lint format train bench locks
test: setup ## unit tests and one short run on the real servers (minutes)
	$(BIN)/python -m pytest -m "not (slow or bench)" $(ARGS)

test-fast: .venv/.eddy ## tests that need no server
	$(BIN)/python -m pytest -m "not ($(TIMED))" $(ARGS)

bounds: .venv/.eddy ## fast tests with every index of the compiled kernels checked
	NUMBA_BOUNDSCHECK=1 NUMBA_CACHE_DIR=.cache/numba-bounds $(BIN)/python -m pytest \
	    -m "not ($(TIMED))" --timeout 600 $(ARGS)

stack-test: setup ## everything that needs real servers, kills them or takes long
	$(BIN)/python -m pytest -m "$(TIMED)" $(ARGS)

coverage: .venv/.eddy ## branches of the pure core that the tests reach, at least 95%
	mkdir -p .cache
	rm -f .cache/coverage .cache/coverage.*
	# Compiled kernels cannot be traced: the tests of the core run once as plain Python, without those
	# that would take long so, and all run once compiled.
	NUMBA_DISABLE_JIT=1 COVERAGE_FILE=.cache/coverage.plain $(BIN)/python -m pytest \
	    -m "not ($(TIMED) or compiled)" --timeout 600 --cov --cov-report= \
	    tests/models tests/state tests/flink_jobs $(ARGS)
	COVERAGE_FILE=.cache/coverage.compiled $(BIN)/python -m pytest -m "not ($(TIMED))" --timeout 600 \
	    --cov --cov-report= tests/models tests/state tests/flink_jobs tests/deploy $(ARGS)
	$(BIN)/coverage combine .cache/coverage.plain .cache/coverage.compiled
	$(BIN)/coverage report --fail-under 95

check: .venv/.eddy ## format, lint, types and import contracts: what CI runs before the tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

lint: .venv/.eddy ## lint only
	$(BIN)/ruff check $(ARGS) .

format: .venv/.eddy ## rewrite the sources in the house's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only --exit-zero .

bench: setup ## benchmarks; JSON under docs/benchmarks (BENCH="throughput latency state")
	mkdir -p docs/benchmarks
	for name in $(or $(BENCH),throughput latency state); do \
	    $(BIN)/eddy bench $$name --json $(ARGS) > docs/benchmarks/$$name.json.new; \
	    mv docs/benchmarks/$$name.json.new docs/benchmarks/$$name.json; \
	done

train: .venv/.eddy .venv-train/.ready ## train the intensity model (installs torch: 3 GB)
	$(BIN)/eddy train $(ARGS)

locks: .venv-tools/.ready ## write deploy/locks/*.lock anew from the *.in beside them (UPGRADE=1)
	for name in tools build stream dev train triton; do \
	    if [ $$name = triton ] && [ ! -f deploy/locks/triton.in ]; then continue; fi; \
	    deps=$$(if [ $$name = triton ]; then echo --no-deps; fi); \
	    (cd deploy/locks && ../../.venv-tools/bin/uv pip compile -q --no-header --no-emit-index-url \
	        --python-version 3.11 --generate-hashes $$deps $(if $(UPGRADE),--upgrade) \
	        $$name.in -o $$name.lock); \
	done

##@ Install and remove
.PHONY: setup setup-train clean distclean
setup: .venv/.eddy .venv-triton/.ready .venv/.jars ## install what the stream needs (2 minutes)

setup-train: .venv-train/.ready ## install torch, for training only (3 GB)

.venv/.ready: deploy/locks/dev.lock deploy/locks/build.lock
	deploy/install .venv dev

# Editable: Flink's Python worker imports this checkout.
.venv/.eddy: pyproject.toml .venv/.ready
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation \
	    --no-index -e .
	touch $@

.venv-triton/.ready: deploy/locks/triton.lock deploy/locks/build.lock
	deploy/install .venv-triton triton

.venv-train/.ready: deploy/locks/train.lock deploy/locks/build.lock
	deploy/install .venv-train train

.venv-tools/.ready: deploy/locks/tools.lock
	deploy/install .venv-tools tools

# Kafka, Flink's connector and the like, as jgo.toml pins them.
.venv/.jars: jgo.toml deploy/locks/jars.lock .venv/.eddy
	$(BIN)/python -m deploy.stack.java prepare
	touch $@

clean: down ## remove caches, logs and data of the local stack
	rm -rf .eddy .cache .ruff_cache .mypy_cache .pytest_cache .hypothesis build dist
	find $(SOURCES) triton_repo -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## remove the environments as well
	rm -rf .jars .venv .venv-triton .venv-train .venv-tools *.egg-info

.PHONY: help
help:
	@awk 'BEGIN {FS = ":.*## "} /^##@ / {printf "\n%s\n", substr($$0, 5)} \
	    /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
