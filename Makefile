# Everything that a person types. Python >= 3.10 with venv is all that must be there.
# The Python of an existing environment is kept, unless you name another one.
PYTHON ?= $(if $(shell .venv/bin/python -c 'print("works")' 2>/dev/null),.venv/bin/python,python3)
BIN := .venv/bin
# In a small terminal, psql would wait in a pager.
export PSQL_PAGER := cat
# In the plain C locale, Python could not start in an environment whose path is not ASCII.
ifneq ($(filter C POSIX,$(LC_ALL)),)
export LC_ALL := C.UTF-8
endif

.PHONY: demo test test-slow check generate site revision release matrix benchmark clean dev embedded docs python

## demo: migrate the embedded database, and print its tables
demo: embedded
	$(BIN)/alembic -x embedded=true upgrade head
	$(BIN)/alembic -x embedded=true current
	$(BIN)/langfuse-schema dev psql -c '\dt public.*'

## test: the fast tests; -rs lists the skipped ones with their reasons
test: dev
	@echo "The fast tests take about 3 minutes on two idle cores."
	$(BIN)/pytest -rs $(TESTS)

## test-slow: the long proofs, and revisions and permissions once more on PostgreSQL 16
test-slow: dev docs
	$(BIN)/pytest -m slow --durations=15
	LANGFUSE_SCHEMA_TEST_POSTGRESQL=16 $(BIN)/pytest tests/revisions tests/access

## check: lint, format, types and language
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

## revision: create a revision, as in: make revision MESSAGE="add a table"
revision: dev
	$(BIN)/python -m tools.revision "$(MESSAGE)"

## release: freeze the revisions, their snapshots and the helpers that they call
release: dev
	$(BIN)/python -m tools.release

## matrix: the fast tests over Pythons, SQLAlchemys, Alembics and PostgreSQLs (pyproject.toml)
matrix: dev
	$(BIN)/pip install --quiet --disable-pip-version-check 'tox>=4.25'
	PATH="$$PATH$$(printf ':%s' "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/*/bin)" $(BIN)/tox

## benchmark: what it costs and saves, beside a bare Alembic project and the plan's SQL
benchmark: dev
	$(BIN)/python benchmarks/compare.py

## clean: delete everything that this checkout left on the machine
clean: python
	@$(PYTHON) tools/clean.py

# Each command checks the environment: a moved one, or one of another PYTHON, is created again.
dev embedded docs: python
	@$(PYTHON) tools/environment.py $(if $(filter dev,$@),dev embedded,$@)

python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and \
	  "Python 3.10 or newer is needed. Name one: make PYTHON=python3.12 demo")'
