PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
VLLM   := .venv-vllm
TRITON := .triton
TOOLS  := .venv-tools
LOCKED := -m pip install --quiet --require-hashes --only-binary :all: --no-deps --requirement
COMPILE = $(TOOLS)/bin/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 \
	--no-annotate --custom-compile-command "make lock" $(LOCK)
# Licences that ask for no more than a notice from those who use what they cover unchanged.
LICENCES := Apache;BSD;MIT;ISC;PSF;Python Software Foundation;MPL;Mozilla;Artistic
# MIT by their licence files; their metadata does not say so.
UNSTATED := huey skops
# LGPL: libraries that anything may use as they are.
LIBRARIES := psycopg psycopg-binary

SAMPLE := 40
DRAW := 0

# Side by side, each with one thread: two torch processes that share two cores with two threads each
# take ten times as long.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=logical --maxprocesses=4 \
	--dist=loadscope

.PHONY: run check test test-browser test-kills test-faults test-soak test-mutants lint unit bench vllm \
	triton lock audit clean

run: $(READY)  ## the main job: three kinds of feedback compared, in minutes
	$(BIN)/sdcore run quickstart

check: $(READY)  ## lint, types, layers and unit tests, side by side
	@$(MAKE) --jobs=2 --output-sync=target lint unit

unit: $(READY)
	$(PYTEST) tests/unit

test: $(READY) lint  ## all but the next ones; what `make vllm` and `make triton` install too
	$(PYTEST) -m "not browser and not kills and not night and not soak"

test-browser: $(READY)  ## Prefect's UI, MLflow's and the report in Chromium, which must be installed
	$(BIN)/python -m pytest -m browser

test-kills: $(READY)  ## a run of the quickstart's size, killed at twenty random moments
	$(BIN)/python -m pytest -m kills

test-faults: $(READY)  ## all faults and thousands of inputs, of which `make test` has a sample
	$(PYTEST) -m night --hypothesis-profile=night
	$(PYTEST) tests/faults/test_properties.py tests/unit/grading/test_drawn_equations.py \
		--hypothesis-profile=night

test-soak: $(READY)  ## twenty small runs in one process: memory, handles and disk stay flat
	$(BIN)/python -m pytest -m soak

test-mutants: $(READY) $(TOOLS)/.ready  ## faults planted in the code; SAMPLE=40 of each group, another DRAW
	PYTHONPATH=$(abspath $(wildcard $(VENV)/lib/python3*/site-packages)) OMP_NUM_THREADS=1 \
		$(TOOLS)/bin/python -m tests.mutants $(SAMPLE) $(DRAW)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)  ## every benchmark, one JSON line each
	@for file in tests/benchmarks/[a-z]*.py; do $(BIN)/python $$file || exit 1; done

vllm: $(VLLM)/.ready  ## vLLM in an environment of its own, for engine.kind = "vllm"

triton: $(TRITON)/.ready  ## the interpreter that runs the GPU's kernels in the tests

lock: $(TOOLS)/.ready  ## hashes for what pyproject.toml asks; LOCK=--upgrade for newer versions
	cat requirements.lock requirements-torch.lock > $(TOOLS)/all.lock
	$(COMPILE) --extra dev pyproject.toml --output-file $(TOOLS)/all.lock
	awk '/^[a-z]/ {torch = /^(torch=|cuda|nvidia|triton)/} {print > "requirements" (torch ? "-torch" : "") ".lock"}' \
		$(TOOLS)/all.lock
	$(COMPILE) --group tools --output-file requirements-tools.lock

audit: $(READY) $(TOOLS)/.ready  ## known vulnerabilities and licences of every dependency; asks PyPI
	$(TOOLS)/bin/pip-licenses --python $(BIN)/python --partial-match --allow-only "$(LICENCES)" \
		--ignore-packages $(UNSTATED) $(LIBRARIES) --from mixed --summary
	cat requirements.lock requirements-torch.lock > $(TOOLS)/all.lock
	$(TOOLS)/bin/pip-audit --strict --disable-pip --require-hashes --requirement $(TOOLS)/all.lock

clean:
	rm -rf $(VENV) $(VLLM) $(TRITON) $(TOOLS) runs build *.egg-info

# PyTorch's build for CPUs, where an index has it, does without 3 GB of CUDA's libraries.
$(READY): requirements.lock requirements-torch.lock requirements-torch-cpu.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(LOCKED) requirements.lock
	{ ! command -v nvidia-smi && $(BIN)/python $(LOCKED) requirements-torch-cpu.lock 2> /dev/null; } \
		|| { echo "installing PyPI's torch, with 3 GB of CUDA's libraries"; \
		$(BIN)/python $(LOCKED) requirements-torch.lock; }
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip check
	touch $@

$(TOOLS)/.ready: requirements-tools.lock
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python $(LOCKED) requirements-tools.lock
	touch $@

$(VLLM)/.ready: requirements-vllm.lock
	$(PYTHON) -m venv $(VLLM)
	if command -v nvidia-smi; then $(VLLM)/bin/python -m pip install --quiet vllm==0.32.0; \
	else $(VLLM)/bin/python -m pip install --quiet --no-deps --requirement $<; fi
	touch $@

# Beside the environment: torch would import it in every process.
$(TRITON)/.ready: requirements-torch.lock $(READY)
	mkdir -p $(TRITON)
	awk '/^[a-z]/ {triton = /^triton=/} triton' $< > $(TRITON)/triton.lock
	$(BIN)/python $(LOCKED) $(TRITON)/triton.lock --target $(TRITON) --upgrade
	touch $@
