# Every target sets up what it needs on a fresh machine: only Python 3.11+ and make are assumed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint bench fuzz clean

demo: $(VENV)/core.stamp
	$(BIN)/egal-bench compare --preset quick --out runs/demo
	$(BIN)/egal-bench report runs/demo

test: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python tests/compile_kernels.py & compiling=$$!; $(MAKE) --no-print-directory lint && wait $$compiling
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadgroup

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(VENV)/dev.stamp
	$(BIN)/python -m benchmarks

fuzz: $(VENV)/dev.stamp
	$(BIN)/python -m pytest --hypothesis-profile=fuzz tests/shards/test_fuzz.py tests/shards/test_faults.py \
		tests/shards/test_bounded_memory.py tests/bench/runs/test_kills.py tests/bench/scoring/test_features_cache.py

clean:
	rm -rf $(VENV) runs

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/core.stamp: pyproject.toml | $(VENV)/bin/python
	@echo "Installing egal-bench into $(VENV) (a few minutes the first time: PyTorch is large)"
	$(BIN)/python -m pip install --quiet --editable '.[report]'
	@touch $@

$(VENV)/dev.stamp: pyproject.toml | $(VENV)/bin/python
	@echo "Installing egal-bench with its test and peer libraries into $(VENV) (a few minutes the first time)"
	$(BIN)/python -m pip install --quiet --editable '.[dev,peers,ray]'
	@touch $@ $(VENV)/core.stamp
