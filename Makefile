# `make help` lists the targets. Variables to override, as in `make test VENV=../env`:
#   VENV    where the virtual environment is, made when missing
#   TORCH   what pip is asked for to get torch (may hold pip options, such as another index)
#   PYTHON  the interpreter to make VENV with; found when not given
VENV ?= .venv
TORCH ?= torch==2.13.0
PYTHON ?=

BIN := $(VENV)/bin
PIP := "$(BIN)/python" -m pip -qq --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test test-all contract ahead fmt generate clean env-demo env-dev

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' Makefile

demo: env-demo ## compile a spec and train with it, beside torch's own optimizer
	@"$(BIN)/python" examples/train_digits.py

test: env-dev ## lint, types, tests (of generated files, too)
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/mypy"
	OMP_NUM_THREADS=1 OPTDSL_FUZZ="$${OPTDSL_FUZZ:-0.2}" "$(BIN)/python" -m pytest -n 2 --dist loadgroup

test-all: env-dev ## the tests on every method and many random programs, which takes hours
	OMP_NUM_THREADS=1 OPTDSL_FULL=1 OPTDSL_FUZZ="$${OPTDSL_FUZZ:-2}" "$(BIN)/python" -m pytest -n 2 --dist loadgroup

contract: env-dev ## what makes a class like torch's own, tried on every method; writes docs/contract.md
	OMP_NUM_THREADS=1 "$(BIN)/python" -m pytest -n 2 --dist loadgroup -m contract -p tests.contract.table \
	  --contract-table docs/contract.md tests/contract tests/distributed

ahead: env-dev ## compile what changed of the Triton kernels for three kinds of GPU, and record what came of it
	@"$(BIN)/python" -m tests.backends.machine_code

fmt: env-dev ## format the Python files and the specs, and mend what the linter can
	@"$(BIN)/ruff" check --fix-only --quiet .
	@"$(BIN)/ruff" format .
	@"$(BIN)/optdsl" fmt specs/

# Made beside generated/ and moved into place, so that a failure leaves the old files and no spec's file outlives it.
generate: env-dev ## compile specs/ into generated/, and write the table of them in docs/zoo.md
	@tmp=$$(mktemp -d ./.generated.XXXXXX) && trap 'rm -rf "$$tmp"' EXIT && \
	"$(BIN)/optdsl" compile specs/ -o "$$tmp/new" && \
	"$(BIN)/optdsl" list --markdown >"$$tmp/zoo.md" && \
	rm -rf generated && mv "$$tmp/new" generated && mv "$$tmp/zoo.md" docs/zoo.md

clean: ## remove .venv, build outputs and caches
	rm -rf .venv build dist checkpoints digits.png .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Installs the package with extra $* unless VENV already holds it for this checkout, this pyproject.toml and TORCH.
# What [dev] installs includes what [demo] does.
env-demo env-dev: env-%:
	@set -eu; \
	key=$$({ cat pyproject.toml; printf '%s\n' '$(TORCH)' '$(CURDIR)'; } | cksum); \
	if "$(BIN)/python" -c '' 2>/dev/null; then \
	  for stamp in '$*' dev; do \
	    if [ "$$(cat "$(VENV)/.optdsl-$$stamp" 2>/dev/null)" = "$$key" ]; then exit 0; fi; \
	  done; \
	else \
	  python=; \
	  for candidate in $(if $(PYTHON),"$(PYTHON)",python3 python3.13 python3.12 python3.11); do \
	    if "$$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; \
	    then python=$$candidate; break; fi; \
	  done; \
	  if [ -z "$$python" ]; then \
	    echo 'optdsl needs Python 3.11 or later with its venv module; $(if $(PYTHON),$(PYTHON) is not one,none was found)' >&2; \
	    echo 'Name one with `make PYTHON=/path/to/python ...`' >&2; \
	    exit 1; \
	  fi; \
	  echo "making $(VENV) with $$("$$python" --version)"; \
	  clear=; if [ -f "$(VENV)/pyvenv.cfg" ]; then clear=--clear; fi; \
	  "$$python" -m venv $$clear "$(VENV)"; \
	fi; \
	rm -f "$(VENV)"/.optdsl-*; \
	echo 'installing $(TORCH) and optdsl[$*] into $(VENV), which takes some minutes the first time'; \
	$(PIP) install $(TORCH); \
	$(PIP) install --editable '.[$*]'; \
	printf '%s\n' "$$key" >"$(VENV)/.optdsl-$*"
