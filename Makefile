# Everything that a person types. Python >= 3.10 with venv is all that must be there.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow check generate revision release matrix benchmark clean

## demo: migrate the embedded database, and show what came of it
demo: .venv/embedded.stamp
	$(BIN)/alembic -x embedded=true upgrade head
	$(BIN)/alembic -x embedded=true current
	$(BIN)/langfuse-schema dev psql -c '\dt public.*'

## test: the fast tests
test: .venv/dev.stamp
	$(BIN)/pytest $(TESTS)

## test-slow: the long proofs, and revisions and permissions once more on PostgreSQL 16
test-slow: .venv/dev.stamp
	$(BIN)/pytest -m slow
	LANGFUSE_SCHEMA_TEST_POSTGRESQL=16 $(BIN)/pytest tests/revisions tests/access

## check: lint, format and types
check: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

## generate: write the snapshots and the generated parts of the docs
generate: .venv/dev.stamp
	$(BIN)/python -m tools.generate

## revision: create a revision, as in: make revision MESSAGE="add a table"
revision: .venv/dev.stamp
	$(BIN)/python -m tools.revision "$(MESSAGE)"

## release: freeze the revisions, their snapshots and the helpers that they call
release: .venv/dev.stamp
	$(BIN)/python -m tools.release

## matrix: the fast tests over Pythons, SQLAlchemys, Alembics and PostgreSQLs (pyproject.toml)
matrix: .venv/dev.stamp
	$(BIN)/pip install --quiet --disable-pip-version-check 'tox>=4.25'
	PATH="$$PATH$$(printf ':%s' "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/*/bin)" $(BIN)/tox

## benchmark: what it costs and saves, beside a bare Alembic project and the plan's SQL
benchmark: .venv/dev.stamp
	$(BIN)/python benchmarks/compare.py

## clean: remove the virtual environment and the embedded database
clean:
	rm -rf .venv .tox .langfuse-schema

.venv/embedded.stamp .venv/dev.stamp: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and \
	  "Python 3.10 or newer is needed. Name one: make PYTHON=python3.12 demo")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[$(basename $(@F))]'
	@touch $@
