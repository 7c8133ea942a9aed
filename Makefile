# make demo | test | chat | lint: each creates .venv and installs what it needs, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install -q --disable-pip-version-check --no-compile
# pip compiles on one core, this on all; like pip it passes over files that are templates and no Python.
COMPILE := $(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true

.PHONY: demo test chat lint clean

demo: $(VENV)/.base
	$(BIN)/mmvl demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

chat: $(VENV)/.base
	$(BIN)/mmvl chat

lint: $(VENV)/.dev
	$(BIN)/ruff check .

# Half an environment (python3-venv is missing on Debian) is removed: it would pass for a whole one the next time.
$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("mmvl needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.base: pyproject.toml | $(VENV)/bin/python
	$(INSTALL) -e .
	@$(COMPILE)
	touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(INSTALL) -e '.[train,dev]'
	@$(COMPILE)
	touch $@ $(VENV)/.base

clean:
	rm -rf $(VENV) build dist *.egg-info
