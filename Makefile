# `make demo` and `make test` are the two commands; each makes .venv, installs what it needs and runs.
PYTHON ?= python3
# This release of torch has small CPU builds in many package mirrors; any torch >= 2.5 works:
#   make demo TORCH="torch --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.13.0
BIN := .venv/bin

# Folders of data sets that the benchmark compares the methods on, next to the demo's:
#   make bench-train bench DATA="/data/bottle /data/tiles" WEIGHTS=imagenet
# What is left out is as in the run before, and in a first run the demo's, without a download.
DATA ?=
WEIGHTS ?=
ENGINES ?=
SWEEP ?= sweep
FIRST_WEIGHTS := texture
FIRST_ENGINES := onnxruntime openvino:bf16 openvino:int8
SWEEP_COMMAND = $(BIN)/python -m benchmarks.sweep --out $(SWEEP)
ifeq ($(wildcard $(SWEEP)/plan.json),)
SWEEP_COMMAND += --demo --weights $(or $(WEIGHTS),$(FIRST_WEIGHTS)) \
	--engines $(or $(ENGINES),$(FIRST_ENGINES)) $(if $(DATA),--data $(DATA))
else
SWEEP_COMMAND += $(if $(WEIGHTS),--weights $(WEIGHTS)) $(if $(ENGINES),--engines $(ENGINES)) \
	$(if $(DATA),--demo --data $(DATA))
endif

.PHONY: demo test test-alone test-slow test-arm64 lint docs bench-train bench clean

.venv/train: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -e ".[train]"
	touch $@

.venv/dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -e ".[dev]" $(TORCH)
	touch .venv/train $@

.venv/bench: .venv/train
	$(BIN)/python -m pip install --quiet -e ".[openvino]" $(TORCH)
	touch $@

demo: .venv/train
	$(BIN)/python -m benchmarks.demo --out demo

# A test that hangs outside of Python, where pytest-timeout cannot end it, ends its process.
LIMIT := -o faulthandler_timeout=300 -o faulthandler_exit_on_timeout=true

# One process per core, each with one thread; a file's tests stay together, as they share fixtures.
# A process that crashes ends the run and names its test: after a restart, xdist can wait for ever.
test: .venv/dev
	$(MAKE) -j2 --output-sync=target lint test-alone
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --max-worker-restart=0 \
		-m "not alone" $(LIMIT)

test-alone: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m alone $(LIMIT) \
		$$(grep -rl --include="test_*.py" "mark.alone" tests)

test-slow: .venv/dev
	$(BIN)/python -m pytest --slow -m slow

# The runtime on 64-bit Arm, in QEMU; root on Debian.
test-arm64: .venv/dev
	.ci/test-arm64

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python .ci/check_style.py
	$(BIN)/mypy

docs: .venv/dev
	$(BIN)/python .ci/commands_page.py
	$(BIN)/python .ci/station_schema.py

# Both continue where they were ended, and do only what SWEEP lacks.
bench-train: .venv/bench
	$(SWEEP_COMMAND) --train-only --budget-minutes 90

bench: .venv/bench
	$(SWEEP_COMMAND) --measure-only --budget-minutes 20

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
