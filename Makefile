# Two commands: `make demo` samples digits with a cache, `make test` runs everything CI runs.
# Both make .venv on their first run and use it again afterwards.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.PHONY: demo test lint clean

demo: $(STAMP)
	$(BIN)/hicache demo

test: lint
	$(BIN)/python -m pytest -n 2

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd $(VENV) && bin/mypy --config-file ../pyproject.toml -p hicache_compile

# torch first and alone: nothing else may pick another build of it. The strict editable install links every
# file, which mypy can follow; a new file is linked by installing again, so the folders count as sources.
$(STAMP): pyproject.toml hicache_compile hicache_compile/forecasters hicache_compile/demo passes backends
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet "torch>=2.11,<2.14"
	$(BIN)/pip install --quiet --editable ".[dev]" --config-settings editable_mode=strict
	touch $(STAMP)

clean:
	rm -rf $(VENV) build *.egg-info
