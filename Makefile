PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
VLLM   := .venv-vllm

# Side by side, each with one thread: two torch processes that share two cores with two threads each
# take ten times as long.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=logical --maxprocesses=4 \
	--dist=loadscope

.PHONY: run check test test-browser test-kills test-faults lint unit bench vllm clean

run: $(READY)  ## the main job: three kinds of feedback compared, in minutes
	$(BIN)/sdcore run quickstart

check: $(READY)  ## lint, types, layers and unit tests, side by side
	@$(MAKE) --jobs=2 --output-sync=target lint unit

unit: $(READY)
	$(PYTEST) tests/unit

test: $(READY) lint  ## all but the next two; with `make vllm` before, a real vLLM server too
	$(PYTEST) -m "not browser and not kills and not night"

test-browser: $(READY)  ## Prefect's UI, MLflow's and the report in Chromium, which must be installed
	$(BIN)/python -m pytest -m browser

test-kills: $(READY)  ## a run of the quickstart's size, killed at twenty random moments
	$(BIN)/python -m pytest -m kills

test-faults: $(READY)  ## all faults and thousands of inputs, of which `make test` has a sample
	$(PYTEST) tests/faults --hypothesis-profile=night

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)  ## every benchmark, one JSON line each
	@for file in tests/benchmarks/[a-z]*.py; do $(BIN)/python $$file || exit 1; done

vllm: $(VLLM)/.ready  ## vLLM in an environment of its own, for engine.kind = "vllm"

clean:
	rm -rf $(VENV) $(VLLM) runs build *.egg-info

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

$(VLLM)/.ready: requirements-vllm.lock
	$(PYTHON) -m venv $(VLLM)
	if command -v nvidia-smi; then $(VLLM)/bin/python -m pip install --quiet vllm==0.32.0; \
	else $(VLLM)/bin/python -m pip install --quiet --no-deps --requirement $<; fi
	touch $@
