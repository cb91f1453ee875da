# Every verb sets up what it needs in .venv and is quick when nothing changed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed
export HF_HUB_OFFLINE ?= 1

.DEFAULT_GOAL := help
.PHONY: help install train test test-all test-gpu check audit bench

help:      ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(READY)  ## set up .venv from the pinned versions

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

train: install  ## the main job: fine-tune the shipped mini GPT-2 on pydocs
	$(BIN)/python train.py

test: install  ## the quick tests
	$(BIN)/python -m pytest -n auto --dist worksteal

test-all: install  ## every test, the slow ones too
	$(BIN)/python -m pytest -n auto --dist worksteal -m ''

test-gpu: install  ## what runs on a GPU alone
	TEST_ON_GPU=1 $(BIN)/python -m pytest -m gpu

check: install  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

audit:     ## look the pinned versions up among known vulnerabilities; needs the package index
	test -x .audit/bin/pip-audit || { $(PYTHON) -m venv .audit && .audit/bin/python -m pip install --quiet pip-audit==2.10.1; }
	.audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --progress-spinner off --strict

bench: install  ## measure again what benchmarks/results states: a day
	$(BIN)/python benchmarks/run.py
