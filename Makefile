# Every target works on a fresh machine that has only Python >= 3.11: the first one makes .venv.
#
#   make demo        the main job on real data; writes demo-report/index.html
#   make test        the tests
#   make lint types contracts docs examples    what CI runs besides
#   make bench       the benchmarks (minutes; not part of CI)
#
# PYTHON=python3.12 chooses the interpreter that makes .venv. TORCH_INDEX chooses where torch comes
# from, for instance TORCH_INDEX="--index-url https://download.pytorch.org/whl/cpu" for the small
# build without CUDA.

PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

.PHONY: demo test test-slow lint types contracts docs examples bench format clean
.DEFAULT_GOAL := test

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed, $(PYTHON) is older: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "Could not make $(VENV). On Debian and Ubuntu: apt-get install python3-venv"; rm -rf $(VENV); exit 1; }

$(READY): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV) (once; torch is large, so this can take a few minutes) ..."
	@$(PIP) install -c constraints.txt $(TORCH_INDEX) torch
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)
	@$(BIN)/convexnn demo --out demo-report

# One thread for each of several workers: the tests' problems are small, and threads that wait for
# each other on a shared machine made them ten times slower.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto

test-slow: $(READY)
	$(BIN)/python -m pytest -q -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff check --select F821 benchmarks examples tools  # no shapes in annotations there
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY)
	$(BIN)/mypy

contracts: $(READY)
	$(BIN)/lint-imports

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

examples: $(READY)
	@set -e; for script in examples/*.py; do \
	  quick=$$(grep -q '"--quick"' $$script && echo --quick || true); \
	  echo "== $$script $$quick"; $(BIN)/python $$script $$quick; \
	done

bench: $(READY)
	@set -e; for name in bounds training; do echo "== $$name"; $(BIN)/python -m benchmarks.$$name; done

clean:
	rm -rf build dist site demo-report .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
