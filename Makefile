# Everything that a person or a CI runs. The first two targets set up .venv: the package alone, then what its tests
# need. They run again when the dependencies change.

PYTHON ?= python3
BIN := .venv/bin
# Each file of tests runs in one process; the number of processes is that of the cores, at most 8.
PYTEST := $(BIN)/python -m pytest -q -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder
INSTALLED := .venv/.installed
INSTALLED_DEV := .venv/.installed-dev

# Also where the environment turns files of bytecode off: the tests start many processes, and each would compile the
# package again.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help demo check test lint bench results docs format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "unmask needs Python 3.11 or newer; '$(PYTHON)' is not. Use: make PYTHON=python3.12 ..." >&2; exit 2; }
	@echo "Setting up .venv (a few minutes, once) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@# torch alone and first: the pin takes a CPU build where pip is shown one, and nothing after it asks for another.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(INSTALLED_DEV): $(INSTALLED)
	@echo "Adding what the tests need ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(INSTALLED) ## the main job on the embedded default: pretrain, post-train, evaluate
	$(BIN)/unmask demo

check: lint ## format, lint, types and the fast tests: run it before every commit
	$(PYTEST) -m "not slow"

test: lint ## everything that must pass: format, lint, types, all tests, doctests
	$(PYTEST)

lint: $(INSTALLED_DEV) ## format, lint and types only
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(INSTALLED_DEV) ## speed of each phase as a ratio to its baseline
	$(BIN)/python -m benchmark.speed

results: $(INSTALLED_DEV) ## tables and figures of docs/results.md from the committed results
	$(BIN)/python -m benchmark.results

docs: $(INSTALLED_DEV) ## the documentation site, built strictly into build/site; open build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

format: $(INSTALLED_DEV) ## rewrite the code in the project's format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## remove caches and built packages; keeps .venv and runs/
	rm -rf build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.venv/*' -not -path './runs/*' -prune -exec rm -rf {} +
