# One command for each thing; every target makes its own virtualenv. Needs only make and a Python >= 3.11.
#
#   PYTHON=/path/to/python   use this interpreter for the virtualenv
#   MINUTES=60               how long to soak; each pass has a seed of its own, printed before it (TEST_SEED=n repeats one)
#   ARGS="..."               more arguments for pytest (test, soak), bench or demo

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test check bench soak spark clean

MINUTES ?= 0
VENV  := .venv
BIN   := $(VENV)/bin
PIP   := $(BIN)/python -m pip --disable-pip-version-check --no-input
LINT  := . $(wildcard src/tierstore/*.py)
# The checkout itself is never importable: `import cache` must fail here as it does for a user.
export PYTHONSAFEPATH := 1

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.stamp-test  ## show what tierstore does, in a minute
	$(BIN)/tierstore demo $(ARGS)

test: $(VENV)/.stamp-dev  ## run the tests, except soak
	$(BIN)/pytest $(ARGS)

soak: $(VENV)/.stamp-dev  ## run the tests that take minutes: once, or with new seeds for MINUTES=...
	@end=$$(($$(date +%s) + 60 * $(MINUTES))); seed=$${TEST_SEED:-1}; \
	while echo "TEST_SEED=$$seed" && TEST_SEED=$$seed $(BIN)/pytest -m soak --timeout=0 -o faulthandler_timeout=0 $(ARGS); do \
	    seed=$$((seed + 1)); \
	    if [ $$(date +%s) -ge $$end ]; then exit 0; fi; \
	done; exit 1

spark: $(VENV)/.stamp-dev  ## run the tests of Spark with each line of Spark 4
	$(BIN)/python tests/spark_matrix.py $(ARGS)

check: $(VENV)/.stamp-dev  ## format, lint, types, layering and conventions; changes nothing
	$(BIN)/ruff format --check $(LINT)
	$(BIN)/ruff check $(LINT)
	$(BIN)/mypy
	$(BIN)/mypy tests
	$(BIN)/lint-imports
	$(BIN)/pytest -q tests/tidy

bench: $(VENV)/.stamp-dev  ## run the benchmarks at full size
	PYTHONPATH="$(CURDIR)" $(BIN)/python -m bench $(ARGS)

clean:  ## remove the virtualenv, caches and build output
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .benchmarks .hypothesis
	find . -name .git -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

# A stamp older than pyproject.toml installs again. The demo needs less than the checks do.
$(VENV)/.stamp-test: pyproject.toml | $(BIN)/python
	$(PIP) install -q -e '.[test]'
	@touch $@

$(VENV)/.stamp-dev: pyproject.toml | $(BIN)/python
	$(PIP) install -q -e '.[dev,bench]'
	@touch $@ $(VENV)/.stamp-test

$(BIN)/python:
	@for python in "$(PYTHON)" python3 python3.14 python3.13 python3.12 python3.11; do \
	    if [ -n "$$python" ] && "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        echo "$$python -m venv $(VENV)"; exec "$$python" -m venv --clear $(VENV); \
	    fi; \
	    if [ -n "$(PYTHON)" ]; then break; fi; \
	done; \
	echo "tierstore: found no Python >= 3.11 with venv and pip (have: $$(python3 --version 2>&1 || true))." >&2; \
	echo "tierstore: install one (Debian: apt install python3 python3-venv) or run: make PYTHON=/path/to/python3.11 ..." >&2; \
	exit 1
