# Every target does its own set-up: a virtual environment with the versions of constraints.txt.
#   make demo       the whole way on a laptop: no network beyond the package index, no account, no GPU
#   make compare    every method, two students, several seeds: up to 90 minutes on two cores
#   make test       what CI runs
#   make test-all   the long tests too
#   make test-scale what Ray and an S3 server hold up: brings the extra [scale]
#   make gpu        what only a machine with a GPU can show
#   make bad-inputs every wrong file, option, config and folder: one line each
#   make docs       the documentation as a site, in site/
#   make release-check  wheel, documentation, links, licences: what must hold before a release
#   make crash      500 kills, 2,000 flipped bits, 1,000 malformed documents, full disks and more
PYTHON ?= python3
VENV ?= .venv
# Where torch comes from, if not from the default index (say, a CPU-only or a CUDA wheel index).
TORCH_INDEX_URL ?=
# Processes that share the tests out; a GPU's tests run one after the other.
JOBS ?= 2
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# The comparison's corpus: a folder with train, dev and test.jsonl; the built-in one where it is not there.
COMPARE_DATA ?= ../shared/data/dolly

DOCS_READY := $(VENV)/.docs-ready
SCALE_READY := $(VENV)/.scale-ready

.PHONY: help demo compare test test-all test-scale gpu bad-inputs crash lint types layers bench docs release-check clean
help:
	@sed -n 's/^#   //p' Makefile

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is too old: Python 3.11 or newer is needed; set PYTHON=python3.12, say" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[dev]'
	@touch $(READY)

$(SCALE_READY): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[scale]'
	@touch $(SCALE_READY)

$(DOCS_READY): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[docs]'
	@touch $(DOCS_READY)

demo: $(READY)
	@$(BIN)/python pipelines/demo/run.py --output demo-output

compare: $(READY)
	@$(BIN)/python pipelines/compare/run.py --output compare-output $(if $(wildcard $(COMPARE_DATA)),--data $(COMPARE_DATA))

test: $(READY) lint types layers
	$(BIN)/python -m pytest -m "not slow" -n $(JOBS)

test-all: $(READY) lint types layers
	$(BIN)/python -m pytest -n $(JOBS) --cov --cov-report=term

test-scale: $(SCALE_READY)
	$(BIN)/python -m pytest tests/unit/engines tests/unit/shards/test_stores_s3.py $(wildcard tests/integration/test_ray*.py tests/integration/test_*store*.py)

gpu: $(READY)
	CUDA_VISIBLE_DEVICES=$${CUDA_VISIBLE_DEVICES-0} $(BIN)/python -m pytest tests/gpu

bad-inputs: $(READY)
	@$(BIN)/python -m tests.bad_inputs.run

crash: $(READY)
	@$(BIN)/python -m tests.crash.run

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

layers: $(READY)
	$(BIN)/lint-imports

bench: $(READY)
	@for script in align cache read scale start train; do $(BIN)/python benchmarks/$$script.py || exit 1; done

docs: $(DOCS_READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "open site/index.html"

release-check: $(DOCS_READY)
	@$(BIN)/python -m tests.release

clean:
	rm -rf $(VENV) build dist *.egg-info demo-output compare-output site
