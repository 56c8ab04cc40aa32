# tinysweep: `make` lists what can be done. Everything is installed into .venv in this folder.
SHELL := /bin/sh
PYTHON ?= python3
PY := .venv/bin/python
# `make bench` measures on real data (`python data.py fetch`); this is their folder.
DATA_DIR ?= data

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: .venv/.installed ## make .venv and install requirements.txt (about 6 GB, most of it torch)
	@echo "ready: .venv ($$($(PY) --version)); next: make demo"

demo: .venv/.installed ## no account, no network but the package index: a short sweep on the built-in data set, and its report
	@$(PY) data.py shapes
	@$(PY) data.py show --dataset=shapes -o augmented.png
	@study=sweeps/demo-$$(date +%Y%m%d-%H%M%S); \
	$(PY) sweep.py run demo.yaml --dir $$study --workers 2 && \
	$(PY) report.py $$study -o report.html && \
	echo && \
	echo "Open report.html in a browser. Each run has a folder in runs/: figures/, history.csv," && \
	echo "checkpoints, W&B's offline record (.venv/bin/wandb leet runs/…/wandb). The study: $$study" && \
	echo "Next: $(PY) sweep.py confirm $$study --workers 2, or the real data: $(PY) data.py fetch"

test: .venv/.installed-dev ## all tests but the slow ones
	@$(PY) -m pytest -n auto -m "not slow"

test-all: .venv/.installed-dev ## all tests
	@$(PY) -m pytest -n auto

lint: .venv/.installed-dev ## ruff: mistakes and format; known vulnerabilities, where the index tells
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@mkdir -p .cache
	@$(PY) -m pip_audit --progress-spinner off --no-deps --disable-pip -r requirements-dev.txt \
	  > .cache/audit.txt 2>&1 || { \
	  if grep -q "known vulnerabilit" .cache/audit.txt; then cat .cache/audit.txt; exit 1; fi; \
	  echo "the index cannot be asked for known vulnerabilities: none was looked for"; exit 0; }
	@awk '/known vulnerabilit/ { asked = 1; print } /could not be audited/ { unknown++ } END \
	  { if (asked && unknown) print unknown " packages are not in the index'"'"'s list: not looked at" }' \
	  .cache/audit.txt

bench: .venv/.installed-bench ## speed against peers, 20 minutes; real data in DATA_DIR (default: data)
	@$(PY) bench/loader.py --data_dir="$(DATA_DIR)"
	@$(PY) bench/peers.py --data_dir="$(DATA_DIR)"
	@$(PY) bench/explain.py --data_dir="$(DATA_DIR)"

clean: ## remove .venv and caches, never data or runs
	@rm -rf .venv .cache/wandb-sweeps .pytest_cache .ruff_cache __pycache__ */__pycache__

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "tinysweep needs Python 3.11 or newer, and $(PYTHON) is not:" \
	       "make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@if command -v uv >/dev/null; then uv venv --quiet --allow-existing --python "$(PYTHON)" .venv; \
	else $(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) has no venv module: install it (Debian: apt install $(notdir $(PYTHON))-venv)" >&2; exit 1; }; \
	  $(PYTHON) -m venv .venv; fi

.venv/.installed: requirements.txt | .venv/bin/python
	@echo "installing requirements.txt into .venv"
	@$(call install,-r requirements.txt)
	@touch $@

.venv/.installed-dev: requirements-dev.txt .venv/.installed
	@echo "installing requirements-dev.txt into .venv"
	@$(call install,-r requirements-dev.txt)
	@touch $@

.venv/.installed-bench: requirements-bench.txt .venv/.installed-dev
	@echo "installing requirements-bench.txt into .venv"
	@$(call install,-r requirements-bench.txt)
	@touch $@

install = if command -v uv >/dev/null; then uv pip install --quiet --compile-bytecode --python $(PY) $(1); \
	else $(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip >/dev/null; \
	$(PY) -m pip install --quiet --disable-pip-version-check $(1); fi
