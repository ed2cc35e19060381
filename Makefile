# make study                     every notebook on the embedded digits
# make study DATASET=cifar10     the same on CIFAR-10, drawn from the committed records
# make report                    results/report/index.html: a page to explore the records, of CIFAR-10 if no DATASET is named
# make study RAY=auto            models are made on a Ray cluster: the one here, a new one, or that at an address
# make test                      lint, types, fast tests, two of the notebooks in a small way
# make test-slow | test-all      all the other tests | both | make test-fast: neither notebooks nor lint
# make test-networks             every large network of torchvision through every step: half an hour
# make lint | format | lab | requirements           How long each takes is in the README, "Run it".
SHOWN   := $(if $(filter undefined,$(origin DATASET)),--dataset cifar10)
DATASET ?= digits
PYTHON  ?= python3
# A second index for PyTorch. Its CPU builds make a much smaller .venv, untested:
#   make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
WORKERS ?= 2
PARALLEL := --numprocesses $(WORKERS) --dist loadgroup --no-loadscope-reorder
BIN     := .venv/bin
# One thread a worker: threads of several that wait for each other take ten times as long.
PYTEST  := OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL)

# Names of data sets and folders go to the notebooks as they are given: through the environment, so that neither make
# nor a shell takes a blank, quote, $ or & in them for its own.
define as-given
ifneq ($(origin $(1)),undefined)
override export $(1) := $$(value $(1))
endif
endef
$(foreach name,DATASET RESULTS_DIR ARTIFACTS_DIR RAY STORE $(filter %_ROOT,$(.VARIABLES)),$(eval $(call as-given,$(name))))

.PHONY: study report test test-fast test-slow test-all test-networks lint format lab setup requirements
setup: .venv/.ready

.venv/.ready: requirements.lock pyproject.toml
	@echo "Setting up .venv (once, a few minutes) ..."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
		--constraint requirements.lock --config-settings editable_mode=compat --editable '.[dev]'
	@touch $@

study: setup
	$(BIN)/python -m notebooks.run

report: setup
	$(BIN)/python -m plots.page $(SHOWN)

test: setup lint
	$(PYTEST)

test-fast: setup
	$(PYTEST) -m "not slow and not longest and not networks"

test-slow: setup
	$(PYTEST) -m slow

test-all: test test-slow

test-networks: setup
	$(PYTEST) -m networks

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
	$(BIN)/python -m notebooks.run --lab
