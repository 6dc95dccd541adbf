# Two commands: `make demo` trains on the embedded digits, `make test` runs the suite. Both make their own
# environment in $(VENV) first. `make check` is what continuous integration runs.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python

.PHONY: demo test lint types tensorflow-free check docs clean

demo: $(VENV)/.core
	$(RUN) -m vitjax.main --config configs/quickstart.py --workdir runs/quickstart

test: $(VENV)/.test
	$(RUN) -m pytest

lint: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/.test
	$(VENV)/bin/pyright --pythonpath $(RUN)

tensorflow-free: $(VENV)/.test
	$(RUN) tests/imports_no_tensorflow.py

check: lint types tensorflow-free test

docs: $(VENV)/bin/python
	$(RUN) -m pip install --quiet --editable ".[docs]"
	$(RUN) -m sphinx -q -W docs docs/_build

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vitjax needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip

$(VENV)/.core: $(VENV)/bin/python setup.py
	$(RUN) -m pip install --quiet --editable .
	touch $@

$(VENV)/.test: $(VENV)/bin/python setup.py
	$(RUN) -m pip install --quiet --editable ".[test]"
	touch $@ $(VENV)/.core

clean:
	rm -rf $(VENV) build *.egg-info
