# Two commands: `make run` and `make test`. The rest is for those who stay.
SHELL  := /bin/bash
VENV   ?= .venv
PYTHON ?= python3.11
BIN    := $(VENV)/bin
JOBS   ?= 2
STAMP  := $(VENV)/.kullback-stamp
export PATH := $(abspath $(BIN)):$(PATH)
export PYTHONPATH := $(CURDIR)

.DEFAULT_GOAL := help
.PHONY: help setup run test site bench lock

help: ## this list
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  make %-6s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## the environment in .venv, from requirements.lock (uv where it works, else pip)

$(STAMP): requirements.lock settings.ini setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	export UV_EXTRA_INDEX_URL="$$($(BIN)/python -m pip config get global.extra-index-url 2>/dev/null)" \
	       UV_FIND_LINKS="$$($(BIN)/python -m pip config get global.find-links 2>/dev/null)" \
	       UV_INDEX_STRATEGY=unsafe-best-match; \
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.lock \
	  || { echo "uv could not install the lock; trying pip (3 to 5 minutes)"; \
	       $(BIN)/python -m pip install --quiet -r requirements.lock; }
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

run: $(STAMP) ## every reproduction at scale smoke, then ledger and site; the last line says where to look
	$(BIN)/kullback run --all --scale smoke --jobs $(JOBS) --root . ; code=$$?; \
	$(BIN)/kullback site --root . || code=1; exit $$code

test: $(STAMP) ## ruff, every library page in a fresh kernel, pytest
	$(BIN)/ruff check .
	$(BIN)/nbdev_test --path nbs --n_workers 2 --do_print
	$(BIN)/python -m pytest -q -n 2 --dist loadfile tests

site: $(STAMP) ## the ledger and the site in _site/, from the committed runs
	$(BIN)/kullback site --root .

bench: $(STAMP) ## ratios against the peers, interleaved (installs the extra `peers`)
	for script in bench/[!_]*.py; do $(BIN)/python $$script || exit 1; done

lock: $(STAMP) ## requirements.lock from settings.ini
	$(BIN)/python .ci/lock.py
