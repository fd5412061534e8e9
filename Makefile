# Two commands: `make demo` draws emoji with a cache, `make test` runs everything CI runs.
# `make check` is for every edit: style, types, policies, passes and the layout of the source.
# `make docs` builds the documentation into ./site: open site/index.html.
# `make exhaustive` also runs the cases that `make test` leaves out (tests/support/sampled_cases.py): hours.
# All make .venv on their first run and use it again afterwards.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
EXAMPLES := $(patsubst examples/%.py,-m %,$(wildcard examples/*.py))  # scripts, which mypy takes as modules

.PHONY: demo check test exhaustive lint docs clean

demo: $(STAMP)
	$(BIN)/hicache demo

check: lint
	$(BIN)/python -m pytest -n 2 -q -m "not slow" tests/policy tests/passes/test_golden.py tests/passes/test_verify.py tests/test_imports.py tests/test_docs.py tests/test_sampled_cases.py

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

exhaustive: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal --exhaustive

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# mypy does not follow an editable install, so it is shown the package the way it installs.
lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf $(VENV)/typed
	mkdir -p $(VENV)/typed/hicache_compile
	ln -sfn $(CURDIR)/hicache_compile/* $(CURDIR)/passes $(CURDIR)/backends $(CURDIR)/benchmarks $(VENV)/typed/hicache_compile
	cd $(VENV) && MYPYPATH=typed:../examples bin/mypy --config-file ../pyproject.toml -p hicache_compile $(EXAMPLES)

# torch first and alone: nothing else may pick another build of it.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(STAMP)

# Checks, builds and checks what was built; uploads nothing (scripts/release.py --upload does).
.PHONY: release
release: $(STAMP)
	$(BIN)/pip install --quiet --editable ".[release]"
	$(BIN)/python scripts/release.py

# What commands generate: .gitignore names the same.
clean:
	rm -rf $(VENV) build dist out site *.egg-info *.png *.mp4 hicache_demo.png .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
	find . -type f \( -name '*.bak' -o -name '*.unfinished' \) -not -path './.git/*' -delete
