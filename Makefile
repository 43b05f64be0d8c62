# `make serve` and `make test` set everything up on a fresh machine: git, make and Python 3.11+ with venv suffice.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PORT   ?= 8000
ARGS   ?=
# dev,triton: also the tests of the GPU kernels, in Triton's interpreter and through its compiler (700 MB on disk).
EXTRAS ?= dev
comma  := ,
SERVES := $(VENV)/.installed
STAMP  := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: install serve check test test-ops gpu-check lint format clean

install: $(STAMP)

# What serving needs; the tools for tests come on top of it.
$(SERVES): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Setting up $(VENV), once: PyTorch, which is most of it ..."
	@$(PIP) torch
	@echo "... and the rest"
	@$(PIP) -e .
	@touch $(SERVES)

$(STAMP): $(SERVES)
	@echo "Adding to $(VENV): $(EXTRAS)"
	@$(PIP) -e '.[$(EXTRAS)]'
	@touch $(STAMP)

serve: $(SERVES)
	exec $(BIN)/lightcone serve --port $(PORT) $(ARGS)

# What CI runs. CI sets EXTRAS=dev,triton, so that the GPU kernels are tested too.
check: lint test

# Two workers: the suite starts real server processes, each of which pins its own torch threads.
test: install
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

# Two replicas behind HAProxy, watched by Prometheus. Skips what is not installed (Debian: haproxy, prometheus).
test-ops: install
	$(BIN)/python -m pytest -m ops -rs tests/ops $(ARGS)

# Installs nothing: for a GPU machine as it is, with its own torch and triton.
gpu-check:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m tools.gpu_check $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
