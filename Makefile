# make demo | make test | make check | make clients | make bench | make nano
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check types fast-tests clients format bench nano clean

demo: $(STAMP)            ## the main job with the embedded model on the embedded data
	$(BIN)/afina demo --output-dir runs/demo --yes

test: $(STAMP)            ## all tests, one core each
	OMP_NUM_THREADS=1 $(BIN)/pytest -n logical --maxprocesses 8 --dist worksteal

check: $(STAMP)           ## the quick loop: format, lint, types, layers, fast tests
	$(BIN)/ruff format --check src tests pretraining benchmarks examples
	$(BIN)/ruff check src tests pretraining benchmarks examples
	$(BIN)/lint-imports
	@$(MAKE) --no-print-directory -j2 types fast-tests

types: $(STAMP)
	$(BIN)/pyright

fast-tests: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow and not gpu and not shared and not clients"

clients: $(STAMP)         ## other projects' clients against a real server, each in an environment of its own
	$(BIN)/pytest -m clients tests/clients

format: $(STAMP)
	$(BIN)/ruff format src tests pretraining benchmarks examples
	$(BIN)/ruff check --fix src tests pretraining benchmarks examples

bench: $(STAMP)           ## the short benchmarks, rivals included (about half an hour on two cores)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python benchmarks/train.py --shape 13m
	$(BIN)/python benchmarks/train.py --shape nano --time-to-quality
	$(BIN)/python benchmarks/answer.py --shape nano
	$(BIN)/python benchmarks/cost.py --quick
	$(BIN)/python benchmarks/serve.py
	$(BIN)/python benchmarks/prepare.py
	$(BIN)/python benchmarks/retrieve.py --quick

nano: $(STAMP)            ## pretrain the embedded model (about an hour on two cores)
	$(BIN)/python pretraining/train.py --data $${AFINA_SHARED:-../shared/data}/pretrain --out build/nano

clean:
	rm -rf $(VENV) build runs

# torch first and pinned: on a machine without a GPU a looser range pulls gigabytes of CUDA.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@
