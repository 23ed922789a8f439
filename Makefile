# Targets work in ./.venv, which the first one makes: Python >= 3.11 and make are all it takes. `up`, `load` and `down`
# take Docker instead.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
WAVES ?= 10
RESULTS ?= results
# What `make bench` serves. On a Neuron machine: make bench BACKEND=neuron MODEL='/models/llama2-13b-bs{slots}-neuron';
# {slots} becomes 1 for the configuration L and 4 for T. With one export: CONFIG=L or CONFIG=T.
BACKEND ?= cpu
MODEL ?=
CONFIG ?=
# PyTorch's own index holds CPU builds; PyPI's Linux wheel brings gigabytes of CUDA. A `+cpu` version sorts above the
# plain one, so pip takes the CPU build from whichever index it can reach.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
NEURON_INDEX ?= https://pip.repos.neuron.amazonaws.com
BENCH_BIN := $(if $(filter neuron,$(BACKEND)),.venv-neuron/bin,$(BIN))
OF_BACKEND := $(if $(filter cpu,$(BACKEND)),--threads 1)
PATIENCE := $(if $(filter neuron,$(BACKEND)),--serve-timeout 15m)
export HF_HUB_DISABLE_TELEMETRY = 1

.DEFAULT_GOAL := help
.PHONY: help install bench serve up load down test timing check format docs clean

help:            ## say what each target does
	@sed -n 's/^\([a-z]*\):.*## /  make \1: /p' Makefile

.venv/installed: pyproject.toml constraints.txt tests/contract/hub2.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"tokenclock needs Python >= 3.11; {sys.executable} is {sys.version.split()[0]}: say make PYTHON=/path/to/python3.11")'
	@$(PYTHON) -m venv .venv
	@echo 'installing into ./.venv: some minutes, most of them PyTorch'
	@$(BIN)/pip install -qq --disable-pip-version-check --retries 1 --timeout 20 --extra-index-url $(TORCH_INDEX) --constraint constraints.txt torch
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@$(PYTHON) -m venv .venv/hub2
	@.venv/hub2/bin/pip install --quiet --disable-pip-version-check --requirement tests/contract/hub2.txt
	@touch $@

install: .venv/installed ## make ./.venv with everything

# Neuron's own packages come from AWS's index and pin torch: they get an environment of their own.
.venv-neuron/installed: pyproject.toml
	@$(PYTHON) -m venv .venv-neuron
	@.venv-neuron/bin/pip install --quiet --disable-pip-version-check --extra-index-url $(NEURON_INDEX) \
	  --editable '.[loadtest,neuron]' 'optimum-neuron[neuronx]==0.4.5'
	@touch $@

bench: $(BENCH_BIN:bin=installed) ## measure the page's two configurations: of the demonstration model, under 5 minutes
	$(BENCH_BIN)/python -m loadtest run --plan published --waves $(WAVES) --results $(RESULTS) $(CONFIG:%=--config %) \
	  --serve '$(BENCH_BIN)/python -m server serve --backend $(BACKEND) $(MODEL:%=--model %) --slots {slots} --port {port} $(OF_BACKEND)' $(PATIENCE)

serve: .venv/installed ## serve the demonstration model on http://127.0.0.1:8080
	$(BIN)/python -m server serve

# These three need Docker with its compose plugin, and nothing else: docs/compose.md.
up:              ## with Docker: serve on :8080 (MODEL=...), watch on :9090 (Prometheus) and :3000 (Grafana)
	docker compose up --build --detach --wait

load:            ## with Docker: the same, and locust's page on http://127.0.0.1:8089 with WORKERS=2
	docker compose --profile load up --build --detach --wait

down:            ## with Docker: end all of it; models, metrics and results stay in their volumes
	docker compose --profile '*' down

test: .venv/installed ## run the tests (no absolute times); the Neuron contract in a process of its own
	$(BIN)/pytest -n logical --maxprocesses 4 --dist loadfile -m 'not timing'
	$(BIN)/pytest tests/neuron_contract

timing: .venv/installed ## run the tests that compare milliseconds with recorded sends; wants a quiet machine
	$(BIN)/pytest -m timing

check: .venv/installed ## format, lint, types, import rules, docs in step
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_layering.py tests/test_docs.py

format: .venv/installed ## rewrite the code in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: .venv/installed ## rewrite the generated parts of the docs
	$(BIN)/python -m tests.test_docs --write

clean:           ## remove .venv and caches; results stay
	rm -rf .venv .venv-neuron .mypy_cache .ruff_cache .pytest_cache
