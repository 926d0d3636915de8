# One environment in $(VENV), made on first use.  Stamp files in it keep the second run quick.
#
# TORCH        what to install where the environment has no torch yet
# TORCH_INDEX  where from; on Linux without a GPU, https://download.pytorch.org/whl/cpu saves some gigabytes
# PYTHON       the Python (3.11 or newer) that makes the environment
# DEMO_ARGS    what `make demo` converts, and to what quality
# GLUE         folder with SST-2 and CoLA that `make demo-m2` trains on
# TEXT         text files that it learns from besides
# VOCAB        vocab.txt of bert-base-uncased; without it, from the hub
# PYTEST_ARGS  more for pytest, e.g. PYTEST_ARGS="-k plan"

VENV ?= .venv
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
OUT ?= out/hyenadna-chr20-8k
M2_OUT ?= out/m2-bert-small
DEMO_ARGS ?= demo/hyenadna-chr20-8k $(OUT) --max-ppl-increase 0.1% --calibration demo/chr20-held-out.fa.gz --force
PYTEST_ARGS ?=

NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for p in python3.11 python3; do $$p $(NEW_ENOUGH) 2>/dev/null && echo $$p && break; done)
BIN := $(VENV)/bin
KERNELS := sparsify/cpu/native/_kernels.so
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check

.PHONY: help demo demo-m2 test test-quick lint types docs clean
.NOTPARALLEL: # two pips at work in one environment would trip over each other

help:
	@echo "make demo   the fastest plan within 0.1 % for the demo checkpoint, against the published code"
	@echo "make demo-m2 GLUE=DIR TEXT='FILE ...' VOCAB=FILE"
	@echo "            train a small M2-BERT, SST-2 and CoLA in out/, goes on if stopped; a quarter of an hour"
	@echo "make test   run the tests; SPARSIFY_TEST_DATA=FOLDER adds those that need real weights and texts"
	@echo "make test-quick  the tests that take two minutes together"
	@echo "make lint   ruff: rules and format"
	@echo "make types  mypy"
	@echo "make docs   build the documentation in out/docs; open out/docs/index.html"
	@echo "make clean  remove .venv and what else the targets above made"

demo: $(KERNELS) $(VENV)/.core
	$(BIN)/sparsify convert $(DEMO_ARGS)

# One thread, so that whoever types it again gets the same weights.
demo-m2: $(KERNELS) $(VENV)/.core
	@test -n "$(GLUE)" || { echo "demo-m2 trains on SST-2 and CoLA; pass GLUE=DIR, the folder with them" >&2; exit 1; }
	OMP_NUM_THREADS=1 $(BIN)/python demo/train_m2.py --glue $(GLUE) $(if $(TEXT),--text $(TEXT)) \
	  $(if $(VOCAB),--vocab $(VOCAB)) --out $(M2_OUT)

test: $(KERNELS) $(VENV)/.with-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile $(PYTEST_ARGS)

test-quick: $(KERNELS) $(VENV)/.with-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist loadfile -m "not slow" $(PYTEST_ARGS)

lint: $(VENV)/.with-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.with-dev
	sh tools/link_types.sh
	cd .types && $(abspath $(BIN))/mypy --config-file ../pyproject.toml --cache-dir ../.mypy_cache -p sparsify

# Every warning is an error: a link that leads nowhere, a page that nothing leads to, a name that is not documented.
docs: $(VENV)/.with-docs
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --nitpicky -d out/.doctrees docs out/docs
	@echo "Built out/docs/index.html"

clean:
	rm -rf .venv .types out $(KERNELS) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache

$(VENV)/.python:
	@$(or $(PYTHON),false) $(NEW_ENOUGH) || { \
	  echo "sparsify needs Python 3.11 or newer, got $(or $(PYTHON),none on PATH); pass PYTHON=/path/to/python3" >&2; exit 1; }
	@test -x $(BIN)/python -a -x $(BIN)/pip || { echo "Making $(VENV) with $(PYTHON)"; $(PYTHON) -m venv $(VENV); }
	@touch $@

# Before the installation, which leaves kernels alone that fit their sources.  Without a compiler, or with one that
# fails, everything else still works: this says so, and tries again next time.
$(KERNELS): $(wildcard sparsify/cpu/native/*.h sparsify/cpu/native/*.cpp) sparsify/cpu/native/build.py | $(VENV)/.python
	@echo "Compiling the kernels"
	@$(BIN)/python sparsify/cpu/native/build.py || true

# On its own and first: as a dependency of something else pip would take the newest build, with CUDA and all.
$(VENV)/.torch: $(VENV)/.python
	@$(BIN)/python -c 'import torch' 2>/dev/null || { \
	  echo "Installing $(TORCH) into $(VENV)"; \
	  $(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) '$(TORCH)'; }
	@touch $@

$(VENV)/.core: $(VENV)/.torch pyproject.toml setup.py
	@echo "Installing sparsify into $(VENV)"
	@$(PIP) install --editable .
	@touch $@

$(VENV)/.with-%: $(VENV)/.torch pyproject.toml setup.py
	@echo "Installing sparsify and what \`$*\` needs into $(VENV)"
	@$(PIP) install --editable '.[$*]'
	@touch $@ $(VENV)/.core
