# Everything here sets itself up: a .venv, uv inside it, the pinned install. A second call starts at once.
PYTHON ?= python3
# Processes that test side by side; 0: none beside the first. What is killed or timed (-m slow) is tested alone.
JOBS ?= $(if $(findstring slow,$(ARGS)),0,2)
BIN := .venv/bin
PYTEST := $(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python --constraints constraints.txt

.PHONY: demo up down test coverage e2e check bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo      the whole pipeline on scikit-learn's digits, with its report"
	@echo "make up        the Prefect UI with all deployments (make up ARGS='--port 4300'); make down ends it"
	@echo "make test      the tests (make test ARGS='-m slow' for the slow ones)"
	@echo "make coverage  the tests with their coverage, which has a floor"
	@echo "make e2e       the tests that use the Prefect UI in a browser (Chromium, or LATEBLOOM_CHROMIUM=its path)"
	@echo "make check     lint, format, types, import rule"
	@echo "make bench     benchmarks: ratios of two ways measured in one run"
	@echo "make clean     remove .venv (runs/ stays)"

demo: .venv/.runtime
	$(BIN)/latebloom demo

up: .venv/.runtime
	$(BIN)/latebloom up $(ARGS)

down: .venv/.runtime
	$(BIN)/latebloom down

test: .venv/.dev
	$(PYTEST) $(ARGS)

coverage: .venv/.dev
	$(PYTEST) --cov --cov-report=term $(ARGS)

e2e: .venv/.e2e
	$(BIN)/pytest -m e2e tests/e2e $(ARGS)

check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/.peers
	$(BIN)/python tests/benchmarks/denoise_speed.py
	$(BIN)/python tests/benchmarks/latent_speed.py
	$(BIN)/python tests/benchmarks/sampler_distance.py
	$(BIN)/python tests/benchmarks/invariance.py cost
	$(BIN)/python tests/benchmarks/train_together.py
	$(BIN)/python tests/benchmarks/coreset_speed.py
	$(BIN)/python tests/benchmarks/augment_speed.py
	$(BIN)/python tests/benchmarks/train_speed.py
	$(BIN)/python tests/benchmarks/stream_speed.py
	$(BIN)/python tests/benchmarks/null_verdicts.py

clean:
	rm -rf .venv

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit("Latebloom needs Python 3.11 or newer, this is %d.%d; try make PYTHON=python3.11" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check uv

.venv/.runtime: pyproject.toml constraints.txt | $(BIN)/uv
	@echo "installing (a minute or two the first time)"
	$(UV) --editable .
	@touch $@

.venv/.dev: .venv/.runtime
	$(UV) --group dev
	@touch $@

# The browser itself is the system's.
.venv/.e2e: .venv/.dev
	$(UV) --group e2e
	@touch $@

# What selection is compared with; nothing else needs it.
.venv/.peers: .venv/.dev
	$(UV) --group peers
	@touch $@
