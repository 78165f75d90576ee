# Two commands for newcomers, `make demo` and `make test`; both do all of their own set-up in .venv.

PYTHON ?= $(firstword $(foreach name,python3.11 python3 python3.12 python3.13 python3.14,$(shell command -v $(name) 2>/dev/null)))
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
DEMO_OUT ?= runs/demo
# One thread a test worker: two workers with two threads each are slower than two with one.
TEST := OMP_NUM_THREADS=1 MPLBACKEND=Agg RAY_USAGE_STATS_ENABLED=0 $(BIN)/python -m pytest

.PHONY: help demo test check bench docs nightly clean
.DEFAULT_GOAL := help

help:
	@echo "make demo     the tour: models, certificate, speculation, world, control -> one page (a quarter of an hour, 2 cores)"
	@echo "make test     the test suite (under 10 minutes on 2 cores)"
	@echo "make check    ruff, pyright, import contracts, lengths, forbidden calls"
	@echo "make bench    every benchmark in full, results in benchmarks/results"
	@echo "make docs     renew docs/reference from the code"
	@echo "make nightly  the slow tests too, under -O as well, with coverage"
	@echo "make clean    remove the environment and the caches"

.venv/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one: make PYTHON=/path/to/python3.11 ..." >&2; exit 2; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.core: .venv/.created pyproject.toml constraints.txt
	$(PIP) -e .
	@touch $@

.venv/.demo: .venv/.core
	$(PIP) -e '.[demo]'
	@touch $@

.venv/.dev: .venv/.core
	$(PIP) -e '.[dev,data,cluster,serve,certify,control,world,gguf,onnx]'
	@touch $@

demo: .venv/.demo
	$(BIN)/forethought demo --out $(DEMO_OUT) --exists resume

test: .venv/.dev
	$(TEST) -n 2 --dist loadfile -m "not nightly" $(TESTS)

check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache
	$(BIN)/python scripts/check_structure.py src

bench: .venv/.dev
	@for script in benchmarks/*.py; do \
	  case $$script in */harness.py|*/__init__.py) continue;; esac; \
	  echo "== $$script"; $(BIN)/python $$script || exit 1; done

docs: .venv/.dev
	$(BIN)/python scripts/write_reference.py

nightly: .venv/.dev
	$(TEST) -n 2 --dist loadfile
	OMP_NUM_THREADS=1 $(BIN)/python -O -m pytest -W ignore::pytest.PytestConfigWarning -n 2 --dist loadfile -m "not nightly"
	OMP_NUM_THREADS=1 $(BIN)/python -m coverage run -m pytest -m "not nightly" tests/core tests/stats
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report --include='*/forethought/core/*,*/forethought/stats/*' --show-missing

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis .coverage*
