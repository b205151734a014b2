# The commands of the project. They need Python 3.10 or newer, with venv.
# By default, an existing environment keeps its Python. To change it, set PYTHON.
PYTHON ?= $(if $(shell .venv/bin/python -c 'print("works")' 2>/dev/null),.venv/bin/python,python3)
BIN := .venv/bin
# In a small terminal, psql would open a pager and wait for a key.
export PSQL_PAGER := cat
# In the C locale, Python cannot start in an environment whose path is not ASCII.
ifneq ($(filter C POSIX,$(LC_ALL)),)
export LC_ALL := C.UTF-8
endif

.PHONY: demo test test-slow check generate site revision release matrix benchmark clean dev embedded docs python

## demo: migrate the embedded database, and print its tables
demo: embedded
	$(BIN)/alembic -x embedded=true upgrade head
	$(BIN)/alembic -x embedded=true current
	$(BIN)/langfuse-schema dev psql -c '\dt public.*'

## test: run the fast tests, and list the skipped ones with their reasons
test: dev
	@echo "The fast tests take about 3 minutes on two idle cores."
	$(BIN)/pytest -rs $(TESTS)

## test-slow: run the slow tests, and the tests of revisions and permissions on PostgreSQL 16
test-slow: dev docs
	$(BIN)/pytest -m slow --durations=15
	LANGFUSE_SCHEMA_TEST_POSTGRESQL=16 $(BIN)/pytest tests/revisions tests/access

## check: check lint, format, types and language
check: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m tools.prose

## generate: write the snapshots and the generated parts of the docs
generate: dev
	$(BIN)/python -m tools.generate

## site: build the documentation site into build/site
site: docs
	$(BIN)/python -m tools.site

## revision: create a revision, for example: make revision MESSAGE="add a table"
revision: dev
	$(BIN)/python -m tools.revision "$(MESSAGE)"

## release: freeze the revisions, their snapshots and the helpers that they call
release: dev
	$(BIN)/python -m tools.release

## matrix: run the fast tests with all versions in pyproject.toml
matrix: dev
	$(BIN)/pip install --quiet --disable-pip-version-check 'tox>=4.25'
	PATH="$$PATH$$(printf ':%s' "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/*/bin)" $(BIN)/tox

## benchmark: compare with a bare Alembic project and the plan's SQL
benchmark: dev
	$(BIN)/python benchmarks/compare.py

## clean: delete the embedded database and all created files of this checkout
clean: python
	@$(PYTHON) tools/clean.py

# Each command checks the environment, and recreates it if it was moved or PYTHON changed.
dev embedded docs: python
	@$(PYTHON) tools/environment.py $(if $(filter dev,$@),dev embedded,$@)

python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and \
	  "Python 3.10 or newer is required. Set PYTHON, for example: make PYTHON=python3.12 demo")'
