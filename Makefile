# `make` lists the targets. Each works alone on a fresh clone: the environment in .venv is made when first needed.

PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check --quiet

# The directories that mypy reads, as seen from TYPED: pyro_latent with models/ in its place, and our scripts.
TYPED := build/typed
TYPED_DIRS := pyro_latent $(sort $(patsubst %/,%,$(dir $(wildcard tests/*.py examples/*.py benchmarks/*.py))))

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow gpu links lint format bench docs docs-numbers clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | awk -F ':.*## ' '{ printf "  make %-12s %s\n", $$1, $$2 }'

demo: $(STAMP) ## fit Old Faithful by coordinate ascent and by SVI, and compare; results in demo-output/
	$(RUN) examples/compare_guides.py --out demo-output

# Two workers, each with one thread; a file's tests stay together, in order.
TESTS := OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile

test: $(STAMP) ## run the tests, but for the slow ones
	$(TESTS)

test-slow: $(STAMP) ## run the slow tests
	$(TESTS) -m slow

# Any Python with a torch that sees a card, and with what pyproject.toml asks for; nothing is installed into it.
GPU_PYTHON ?= $(RUN)

gpu: $(if $(filter $(RUN),$(GPU_PYTHON)),$(STAMP)) links ## run the tests and benchmarks of GPUs; PART=tests|mixture|lda|vae|race, GPU_PYTHON=...
	PYTHONSAFEPATH=1 PYTHONPATH=$(CURDIR)/$(TYPED)$${PYTHONPATH:+:$$PYTHONPATH} $(GPU_PYTHON) -m benchmarks.gpu $(PART)

# A package that pyproject.toml maps from another directory is there once it is installed; without that, by these links.
# Type checkers need them too, for they do not follow an editable install; a strict one has such links, but no new files.
links:
	@rm -rf $(TYPED) && mkdir -p $(TYPED)/pyro_latent
	@ln -s $(addprefix ../../../,$(wildcard pyro_latent/*) models) $(TYPED)/pyro_latent/
	@ln -s $(addprefix ../../,$(filter-out pyro_latent,$(TYPED_DIRS))) $(TYPED)/

lint: $(STAMP) links ## check style, formatting and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	cd $(TYPED) && ../../$(RUN) -m mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache $(TYPED_DIRS)

format: $(STAMP) ## format the code, and mend what the linter can
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

bench: $(STAMP) ## run the benchmarks
	$(RUN) -m benchmarks

docs: $(STAMP) ## build the documentation into build/docs; a warning is an error
	$(RUN) -m sphinx -W --keep-going -q -b html -d build/doctrees docs build/docs
	@echo "Open build/docs/index.html"

docs-numbers: $(STAMP) ## run what prints the numbers of the pages (half an hour); outputs in docs/numbers/
	$(RUN) -m benchmarks.page_numbers

clean: ## remove the environment and everything that was built or written
	rm -rf $(VENV) build docs/api dist *.egg-info demo-output bench-output .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp holds the path that was installed: in a moved or copied clone it differs, and the environment is made anew.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  found=$$($(PYTHON) -c 'import platform; print(platform.python_version())' 2>/dev/null || echo none); \
	  echo "Expected Python 3.11 or newer as $(PYTHON); got $$found." \
	    "Name another: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	@echo "Installing the pinned packages into $(VENV), once; this takes a few minutes."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) install --constraint constraints.txt setuptools setuptools-scm
	@$(PIP) install --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@echo '$(CURDIR)' > $@
