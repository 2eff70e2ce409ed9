# The environment lives in .venv; a second run reinstalls nothing.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install quickstart test test-gpu chaos lint format docs dist clean help

help:
	@echo "make quickstart   set up, train VarCon on two processes, evaluate"
	@echo "make test         set up, run the tests"
	@echo "make chaos        attack what docs/reliability.md promises (minutes)"
	@echo "make test-gpu     set up, test and time on a GPU, write work_dirs/test_gpu/report.md"
	@echo "make install      set up only (PYTHON=python3.x picks the interpreter)"
	@echo "make lint|format  check or rewrite the code"
	@echo "make docs         build the documentation site into site/"
	@echo "make dist         build and check wheel and sdist into dist/"
	@echo "make clean        remove the environment and all outputs"

install: .venv/.installed

.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and \
		f"Python 3.10 or newer is needed, $(PYTHON) is {sys.version.split()[0]}; try make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --editable ".[all]" --group dev
	@touch $@

quickstart: install
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tools/quickstart.py

test: install
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest -n 2 --dist loadfile

chaos: install
	OMP_NUM_THREADS=1 $(BIN)/python tools/chaos.py

test-gpu: install
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m varcon_plugin.commands.gpu_report

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: install
	$(BIN)/python -m pip install --quiet --group docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

dist: install
	$(BIN)/python -m pip install --quiet build twine
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv work_dirs build dist site *.egg-info .*_cache
