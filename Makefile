# make study                     every notebook on the embedded digits
# make study DATASET=cifar10     the same on CIFAR-10, drawn from the committed records
# make test | lint | format | lab | requirements           How long each takes is in the README, "Run it".
DATASET ?= digits
# Notebooks run in their folder: a relative path of images is taken from here.
override DATASET := $(if $(filter folder:%,$(DATASET)),folder:$(abspath $(patsubst folder:%,%,$(DATASET))),$(DATASET))
PYTHON  ?= python3
# A second index for PyTorch. Its CPU builds make a much smaller .venv, untested:
#   make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
BIN     := .venv/bin

.PHONY: study test lint format lab setup requirements
setup: .venv/.ready

.venv/.ready: requirements.lock pyproject.toml
	@echo "Setting up .venv (once, a few minutes) ..."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
		--constraint requirements.lock --config-settings editable_mode=compat --editable '.[dev]'
	@touch $@

study: setup
	$(BIN)/python -m notebooks.run --dataset $(DATASET)

test: setup lint
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# After a change of dependencies in pyproject.toml, and again once the tests have passed with new versions.
requirements: setup
	$(BIN)/python .ci/requirements.py

lab: setup
	DATASET=$(DATASET) $(BIN)/jupyter lab notebooks
