# make study                     every notebook on the embedded digits (minutes)
# make study DATASET=cifar10     the real thing (hours without a GPU; finished parts are read back)
# make test | lint | lab
DATASET ?= digits
# Notebooks run in their folder: a relative path of images is taken from here.
override DATASET := $(if $(filter folder:%,$(DATASET)),folder:$(abspath $(patsubst folder:%,%,$(DATASET))),$(DATASET))
PYTHON  ?= python3
BIN     := .venv/bin

.PHONY: study test lint lab setup
setup: .venv/.ready

.venv/.ready: requirements.txt pyproject.toml
	@echo "Setting up .venv (once, a few minutes) ..."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt \
		--config-settings editable_mode=compat --editable .
	@touch $@

study: setup
	$(BIN)/python -m notebooks.run --dataset $(DATASET)

test: setup lint
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .

lab: setup
	DATASET=$(DATASET) $(BIN)/jupyter lab notebooks
