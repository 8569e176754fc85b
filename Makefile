# Every target works from a clean clone: the first one that needs packages makes a virtual environment (or uses the active one).
PYTHON ?= python3
VENV ?= $(or $(VIRTUAL_ENV),.venv)
BIN := $(VENV)/bin
READY := $(VENV)/.channelscope-ready
CHROMIUM := $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)

.PHONY: help architectures demo test test-data test-browser test-slow lint mutants wheel docs pictures bench papers report clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch torchvision
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: $(READY)  ## train, profile and report on scanned digits, about two minutes
	$(BIN)/channelscope demo --out runs/demo

test: $(READY)  ## the default suite: no data, no browser, no network
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-data: $(READY)  ## tests on the real images and networks of ../shared/data
	$(BIN)/python -m pytest -m data

test-browser: $(READY)  ## open every page in headless Chromium (installed from Debian when missing)
ifeq ($(CHROMIUM),)
	apt-get update -qq && apt-get install -y -qq chromium
endif
	$(BIN)/python -m pytest -m browser

test-slow: $(READY)  ## full-width networks
	$(BIN)/python -m pytest -m slow

lint: $(READY)  ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

wheel: $(READY)  ## build sdist and wheel, install the wheel into an empty environment and run it there
	rm -rf dist build/empty
	$(BIN)/python -m build --quiet --outdir dist .
	$(PYTHON) -m venv build/empty
	build/empty/bin/python -m pip install --quiet -c constraints.txt dist/*.whl
	cd build && ./empty/bin/channelscope demo --out wheel-demo
	test -s build/wheel-demo/report.html

docs: $(READY)  ## build the documentation site in build/docs; its notebooks run the first time and when they change
	PATH=$(abspath $(BIN)):$$PATH $(BIN)/python -m sphinx -b html -W --keep-going -q docs build/docs
	@echo "open build/docs/index.html"

pictures: $(READY)  ## photograph the main pages for the documentation, in headless Chromium
	$(BIN)/python tools/pictures.py

mutants: $(READY)  ## make 200 small changes of the source and see which the tests notice, resumable
	$(BIN)/python tools/mutants.py

bench: $(READY)  ## every benchmark table, ratios of medians taken in one run
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

architectures: $(READY)  ## which network families can be cut: docs/supported-networks.md, hours; goes on where it stopped
	OMP_NUM_THREADS=1 $(BIN)/python tools/architectures.py --all

papers: $(READY)  ## train ResNet-18, VGG-16-BN and MobileNetV2 on CIFAR-100 where they are missing, hours; goes on where it stopped
	OMP_NUM_THREADS=2 GOMP_SPINCOUNT=0 OMP_WAIT_POLICY=passive nice -n 19 $(BIN)/python tools/papers.py

report: $(READY)  ## write the demo's report again from its tables
	$(BIN)/channelscope report runs/demo

clean:  ## remove what the targets made
	rm -rf runs .venv build dist .pytest_cache .ruff_cache .hypothesis
