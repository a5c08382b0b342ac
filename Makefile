# Commands for a fresh machine with Python >= 3.11 and make: `make demo`, `make test`, `make chaos` for faults, `make soak`
# for leaks.
# `make CONSTRAINTS=requirements/lowest.txt test` installs pinned versions, here the oldest ones that are allowed.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?=
BIN := $(VENV)/bin
export JAX_PLATFORMS ?= cpu

.PHONY: demo test test-slow compare docs chaos soak lint resolve pins clean

demo: $(VENV)/installed
	$(BIN)/deberta-jax demo --output runs/demo

test: $(VENV)/installed
	$(BIN)/python -m pytest -m "not slow and not torch and not long" -n 2 --dist loadfile

# What .ci/run adds: the slow tests, the kernels through the TPU compiler, and parity with transformers on torch.
test-slow: $(VENV)/installed $(VENV)/peers
	$(BIN)/python -m pytest -m "(slow or torch) and not long" -n 2 --dist loadfile

# Features and benchmarks beside other libraries, into docs/compare.md.
compare: $(VENV)/peers
	$(BIN)/python -m pip install --quiet 'keras==3.15.1' 'keras-hub==0.32.0'
	$(BIN)/python -m tests.benchmarks.compare

# The documentation's site, in build/site. A warning is an error.
docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Twenty faults on a run of four processes; its report says what was lost (nothing) and whether the losses are the same.
chaos: $(VENV)/installed
	$(BIN)/python -m tests.chaos

# 3,000 steps of pre-training and 10 seeds of fine-tuning in one process: memory, threads and open files have to be flat.
soak: $(VENV)/installed
	$(BIN)/python -m tests.soak

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

$(VENV)/installed: pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "deberta-jax needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(addprefix --constraint=,$(CONSTRAINTS)) --editable '.[train,convert,adapt,datasets,test]'
	@touch $@

# PyTorch, transformers, the TPU compiler and servers for s3:// and gs://, which only tests and benchmarks use.
$(VENV)/peers: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[train,convert,adapt,datasets,mlflow,wandb,test,test-stores,docs,tpu]' \
	  'torch==2.13.0' 'transformers>=5,<6' 'sentence-transformers>=6,<7' onnx onnxruntime onnxscript
	@touch $@

$(VENV)/docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[train,convert,adapt,datasets,test,docs]'
	@touch $@

# Resolves deberta-jax beside the packages that people use with it, and writes the pinned sets (needs the package uv).
resolve pins: $(VENV)/installed
	$(BIN)/python -m pip install --quiet uv
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python .ci/requirements.py $(if $(filter pins,$@),write,table)

clean:
	rm -rf $(VENV) build dist *.egg-info
