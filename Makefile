# Every target sets up what it needs, in `.venv`, from a fresh clone. `make help` lists them.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Each stamp is one set of packages: a target installs only the sets that it uses.
$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade "pip>=25.1"
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml
	$(PIP) --editable . --group test --group types --group lint
	@touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(PIP) --group docs
	@touch $@

$(VENV)/.bench: $(VENV)/.installed
	$(PIP) --group bench
	@touch $@

# The tests alone, for the other versions of Python: make PYTHON=python3.13 VENV=.venv-3.13 .venv-3.13/.tests
$(VENV)/.tests: $(VENV)/.created pyproject.toml
	$(PIP) --editable . --group test
	@touch $@

.PHONY: venv $(VENV)
venv $(VENV): $(VENV)/.installed ## Create the virtual environment and install the project into it.

.PHONY: demo
demo: $(VENV)/.installed ## See the product: an app that leaks, one that blocks, and both wrapped.
	$(BIN)/python -m sandboxpool demo $(ARGS)

.PHONY: test
test: $(VENV)/.installed ## Run all tests. ARGS="-k pool -x" passes options on.
	$(PYTEST) $(ARGS)

.PHONY: check
check: lint types ## Lint, formatting and types.

.PHONY: lint
lint: $(VENV)/.installed ## Lint and check the formatting.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: types
types: $(VENV)/.installed ## Check the types (strict).
	$(BIN)/mypy

.PHONY: format
format: $(VENV)/.installed ## Format the code and fix what can be fixed.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: bench
bench: $(VENV)/.bench ## Measure against the alternatives, in one run.
	$(BIN)/python -m benchmarks $(ARGS)

.PHONY: bench-blocking
bench-blocking: $(VENV)/.bench ## Measure code that blocks against other servers; needs wrk.
	$(BIN)/python -m benchmarks.blocking $(ARGS)

.PHONY: docs
docs: $(VENV)/.docs ## Build the documentation into site/, warnings are errors.
	$(BIN)/zensical build --clean --strict

.PHONY: docs-serve
docs-serve: $(VENV)/.docs ## Show the documentation while writing it.
	$(BIN)/zensical serve

.PHONY: examples
examples: $(VENV)/.installed ## Run every example.
	$(PYTEST) tests/test_examples.py

.PHONY: clean
clean: ## Remove everything that was made here.
	rm -rf .venv .venv-* site dist build .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help
help: ## This list.
	@awk -F ':.*## ' '/^[a-z][a-z -]*[^#]*:.*## / {split($$1, t, " "); printf "  make %-14s %s\n", t[1], $$2}' $(MAKEFILE_LIST)
