# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: help setup demo serve test test-clients test-ray test-tracking test-remote bench bench-engine bench-gateway soak bench-judge bench-judges engine-parity engine-precision check acceptance lock clean
.DEFAULT_GOAL := help

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

$(STAMP): pyproject.toml requirements/lock.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --progress-bar off -r requirements/lock.txt
	$(BIN)/python -m pip install --quiet --progress-bar off --no-deps --editable .
	touch $@

setup: $(STAMP)  ## create .venv from the lock file

demo: $(STAMP)  ## sixty real requests through a running gateway, then a table and a report
	$(BIN)/smallcall demo

serve: $(STAMP)  ## the gateway on port 8080
	$(BIN)/smallcall serve --port 8080

test: $(STAMP) check  ## every check and test that CI runs
	$(BIN)/python -m pytest --quiet

test-clients: $(STAMP)  ## real client libraries run an agent against a gateway; downloads them, minutes
	$(BIN)/python -m tests.clients

test-ray: $(STAMP)  ## sixty recorded answers collected over Ray equal those without it; needs smallcall[ray]
	$(BIN)/python -m tests.acceptance.shards_over_ray

test-tracking: $(STAMP)  ## a run reports its losses to MLflow and W&B, offline; needs smallcall[mlflow,wandb]
	$(BIN)/python -m tests.acceptance.tracking

test-remote: $(STAMP)  ## the engines' conformance suite against llama.cpp's server and the real model; downloads it
	$(BIN)/python -m tests.engines

bench: $(STAMP)  ## hold the scorer against published verdicts, model by model
	$(BIN)/python -m bench.scorer

bench-engine: $(STAMP)  ## the engine against llama.cpp and transformers on real tool calls; downloads it, 20 minutes
	$(BIN)/python -m bench.engine

bench-gateway: $(STAMP)  ## the gateway beside LiteLLM, Portkey, TensorZero and SGLang's; downloads them, minutes
	$(BIN)/python -m bench.gateway

soak: $(STAMP)  ## a thousand streams at once whose clients stall, leave and ask again; minutes
	$(BIN)/python -m tests.acceptance.thousand_streams

bench-judge: $(STAMP)  ## what judging one draft costs, beside scikit-learn
	$(BIN)/python -m bench.judge

bench-judges: $(STAMP)  ## artemis-ai, cascadeflow and RouteLLM on the same drafts; downloads them, minutes
	$(BIN)/python -m bench.judges

engine-parity: $(STAMP)  ## are drafts token for token those of transformers' generate? 200 prompts; 40 minutes
	$(BIN)/python -m bench.parity

engine-precision: $(STAMP)  ## what bfloat16 and int8 change: drafts, pass rate, distributions; 20 minutes
	$(BIN)/python -m bench.precision

check: $(STAMP)  ## formatting, lint, types, import layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

acceptance: $(STAMP)  ## 200 BFCL cases through a real gateway, whole and streamed; minutes
	$(BIN)/python -m tests.acceptance.two_hundred_cases

lock: $(STAMP)  ## write the lock file anew from pyproject.toml; Ray, 80 MB, is left to who wants it
	$(BIN)/pip-compile --quiet --strip-extras --extra train --extra report --extra dev --no-emit-find-links --no-emit-index-url \
		--no-emit-trusted-host --output-file requirements/lock.txt pyproject.toml
	sed -i 's/^\(torch==[0-9.]*\)+cpu/\1/' requirements/lock.txt  # the local label exists on some indexes only

clean:  ## remove the environment and caches
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
