# `make demo`, `make test`, `make check`, `make bench` and the others: each makes .venv first, once. ARGS="..." goes to the command.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# What the unit ring last passed for: `make test` after `make check` does not run it again for the very same files.
RINGS := -m tests.rings --unit-once=.venv/.unit-passed
export OMP_NUM_THREADS := 1

.PHONY: help install demo test test-long test-gpu check bench docs site-pages clean

help:
	@echo "make demo    two nnU-Nets trained, validated and compared on this machine, from nothing (10 minutes on 2 cores)"
	@echo "make check   format, lint, types, import walls, unit tests with warnings as errors"
	@echo "make test    unit and integration tests"
	@echo "make test-long  a head that dies, hosts that are cut off, chaos, elastic workers, drill, orphans: minutes each"
	@echo "make test-gpu  steps, epochs, resume and validation on a GPU beside the CPU's numbers; skips itself without one"
	@echo "make docs    this documentation as a site in build/docs/site"
	@echo "make bench   one table beside nnU-Net: samples, epoch, validation, memory, start (ARGS=--large: with more rounds)"
	@echo "make clean   removes .venv and caches"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) has no venv module. On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing into .venv (once; PyTorch is large) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,dev]'
	@touch $@

demo: $(INSTALLED)
	$(BIN)/nnfleet demo $(ARGS)

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python $(RINGS) tests/unit $(ARGS)

test: $(INSTALLED)
	$(BIN)/python $(RINGS) tests/unit tests/integration -m "not long" $(ARGS)

test-long: $(INSTALLED)
	$(BIN)/python -m tests.rings --at-once=1 --limit-s=3600 tests/integration -m long $(ARGS)

test-gpu: $(INSTALLED)
	$(BIN)/python -m pytest -q tests/gpu $(ARGS)

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.table $(ARGS)

SITE := build/docs
docs: $(INSTALLED) site-pages
	$(BIN)/zensical build --strict --config-file $(SITE)/mkdocs.yml
	@echo "Open $(SITE)/site/index.html"

site-pages:
	@rm -rf $(SITE)/pages && mkdir -p $(SITE)/pages
	@cp docs/mkdocs.yml $(SITE)
	@cp --parents -r *.md LICENSE docs benchmarks/README.md deploy $(SITE)/pages

clean:
	rm -rf .venv build/docs .mypy_cache .ruff_cache .pytest_cache
