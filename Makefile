# `make help` lists every habit of this project.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
FIND_LINKS := $(if $(PIP_FIND_LINKS),--find-links "$(PIP_FIND_LINKS)")
PROTOS := $(shell find proto -name '*.proto')

.PHONY: help setup demo test check bench lab attacks journeys families gpu proto locks python clean

help:  ## List what there is to do.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## Make .venv with hash-pinned packages (done by every other target).

$(STAMP): deploy/locks/uv.txt deploy/locks/dev.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r deploy/locks/uv.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --compile-bytecode \
		$(FIND_LINKS) --override deploy/locks/overrides.txt -r deploy/locks/dev.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

proto: $(STAMP)  ## Generate appliance/api and the methods of the SDK from proto/.
	find appliance/api -name '*_pb2*' -delete
	$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=. --pyi_out=. --grpc_python_out=. $(PROTOS)
	$(BIN)/python -m deploy.sdk

check: $(STAMP)  ## Format, lint, types, import contracts, protos fresh and compatible with what was released.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --explicit-package-bases --package bench --package deploy
	$(BIN)/lint-imports
	$(BIN)/buf lint proto
	$(BIN)/buf format --exit-code --diff proto
	for base in proto/released/*.binpb; do $(BIN)/buf breaking proto --against $$base || exit 1; done
	$(BIN)/python deploy/checks/protos_fresh.py

test: $(STAMP)  ## Every test but the longest: about half an hour on two cores.
	$(BIN)/python -m pytest -m "not long and not families"

families: $(STAMP)  ## A real engine for every family of models that is served, held against transformers; minutes.
	$(BIN)/python -m pytest -m families -v --durations=0 tests/families

attacks: $(STAMP)  ## One attack per guard.
	$(BIN)/python -m pytest -m attack

journeys: $(STAMP)  ## The whole system, as its users drive it.
	$(BIN)/python -m pytest tests/journeys

gpu: $(STAMP)  ## The trainer on a real GPU; skipped by name where there is none.
	$(BIN)/python -m pytest tests/gpu

demo: $(STAMP)  ## Raw text to a served model on this machine, with every step shown. KEEP=1 leaves it running.
	$(BIN)/python -m deploy.demo $(if $(KEEP),--keep)

bench: $(STAMP)  ## Measured claims with their bars; ONLY=flood,hostile_text for some. JSON in build/bench/.
	$(BIN)/python -m bench $(ONLY)

lab: $(STAMP)  ## Throw-away servers: Ansible converges, agents join, a job crosses two servers.
	ansible/lab/run.sh

PYTHONS := 3.11 3.12 3.13
LOCK = $(BIN)/uv pip compile --quiet --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate \
	--no-header --python-platform x86_64-unknown-linux-gnu --python-version
CPU := --override deploy/locks/overrides.txt $(FIND_LINKS) pyproject.toml
locks: $(STAMP)  ## Resolve pyproject.toml again into deploy/locks/, for each Python.
	for python in $(PYTHONS); do \
		mkdir -p deploy/locks/$$python && \
		$(LOCK) $$python $(CPU) --extra server -o deploy/locks/$$python/control.txt && \
		$(LOCK) $$python $(CPU) --extra test -o deploy/locks/$$python/test.txt && \
		$(LOCK) $$python pyproject.toml --extra node-gpu -o deploy/locks/$$python/node-gpu.txt && \
		{ $(LOCK) $$python $(CPU) deploy/locks/torch-cpu.txt --extra node-cpu -o deploy/locks/$$python/node-cpu.txt || \
			{ test ! -e deploy/locks/$$python/node-cpu.txt && \
			echo "no node-cpu for $$python: torch's CPU build for it is in no folder of PIP_FIND_LINKS"; }; } || exit 1; \
	done
	$(LOCK) 3.11 $(CPU) deploy/locks/torch-cpu.txt --extra node-cpu --extra dev -o deploy/locks/dev.txt

python: $(STAMP)  ## The unit tests in a throw-away Debian 13, on its own Python 3.13. Root, and Debian's mirror.
	ansible/lab/python.sh

clean:  ## Remove everything that was built.
	rm -rf build .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
