# make demo: set up and run registry.yaml.   make test: set up and pass the tests.
PYTHON ?= python3
VENV ?= .venv
PEERS ?= .venv-peers
WORKERS ?= auto
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready-$(shell cat pyproject.toml constraints.txt requirements-demo.txt Makefile | cksum | cut -d' ' -f1)
# Tests take one thread each, and those of a file stay together, for they share what takes long to make; the order of
# files is that of their collection.
SIDE_BY_SIDE := -n $(WORKERS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations 30

.PHONY: setup demo test test-slow check docs bench clean

setup: $(STAMP)

$(STAMP):
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch torchvision
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-demo.txt
	rm -f $(VENV)/.ready-*
	touch $@

demo: setup
	$(BIN)/saebench run registry.yaml
	$(BIN)/saebench report registry.yaml

test: setup
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-slow: setup
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m slow

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) docs

docs: setup
	$(BIN)/python -m sphinx -W -n --keep-going -q docs docs/_build/html

# The libraries that are compared with need other versions of what is used here, so they get an environment of their own.
$(PEERS)/.ready:
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch torchvision
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check torch sae-lens dictionary-learning
	touch $@

bench: setup $(PEERS)/.ready
	$(BIN)/python benchmarks/steps.py --peers $(PEERS)/bin/python
	$(BIN)/python benchmarks/groups.py
	$(BIN)/python benchmarks/worlds.py --peers $(PEERS)/bin/python
	$(BIN)/python benchmarks/truth.py --peers $(PEERS)/bin/python
	$(BIN)/python benchmarks/scale.py --steps 5
	$(BIN)/python benchmarks/scale.py --steps 5 --twin

clean:
	rm -rf $(VENV) $(PEERS) docs/_build dist build
