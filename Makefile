# make study                     every notebook on the embedded digits
# make study DATASET=cifar10     the real thing (hours without a GPU; finished parts are read back)
# make test                      lint, fast tests, every notebook once in a small way; make test-slow: all the rest
# make test-all                  both | make test-fast: neither notebooks nor lint | make lint | make lab
DATASET ?= digits
PYTHON  ?= python3
WORKERS ?= 2
PARALLEL := --numprocesses $(WORKERS) --dist loadgroup --no-loadscope-reorder
BIN     := .venv/bin

# Names of data sets and folders go to the notebooks as they are given: through the environment, so that neither make
# nor a shell takes a blank, quote, $ or & in them for its own.
define as-given
ifneq ($(origin $(1)),undefined)
override export $(1) := $$(value $(1))
endif
endef
$(foreach name,DATASET RESULTS_DIR ARTIFACTS_DIR CIFAR10_ROOT,$(eval $(call as-given,$(name))))

.PHONY: study test test-fast test-slow test-all lint lab setup
setup: .venv/.ready

.venv/.ready: requirements.txt pyproject.toml
	@echo "Setting up .venv (once, a few minutes) ..."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt \
		--config-settings editable_mode=compat --editable .
	@touch $@

study: setup
	$(BIN)/python -m notebooks.run

test: setup lint
	$(BIN)/python -m pytest $(PARALLEL)

test-fast: setup
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not longest"

test-slow: setup
	$(BIN)/python -m pytest $(PARALLEL) -m slow

test-all: test test-slow

lint: setup
	$(BIN)/ruff check .

lab: setup
	$(BIN)/python -m notebooks.run --lab
