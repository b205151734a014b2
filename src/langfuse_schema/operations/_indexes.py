"""Build and drop indexes with CONCURRENTLY, or in a script."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alembic import op
from alembic.util import CommandError
from sqlalchemy import text
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError

from langfuse_schema.operations._locks import execute, lock_tables

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection


@dataclass(frozen=True)
class Index:
    """An index: its names, quoted where needed, and its definition from USING on."""

    schema: str
    table: str
    name: str
    kind: str
    body: str

    def __str__(self) -> str:
        """Return `schema.name`."""
        return f"{self.schema}.{self.name}"

    def create(
        self, existing: str = "", *, concurrently: bool = False, table: str | None = None
    ) -> str:
        """Return the statement that creates it. Without options, pg_get_indexdef prints it so."""
        how = "CONCURRENTLY " if concurrently else ""
        table = table or f"{self.schema}.{self.table}"
        return f"CREATE {self.kind} {how}{existing}{self.name} ON {table} {self.body}"


# The preparer of the connection doubles each %, which the execution of a text does too.
_PREPARER = postgresql.dialect(paramstyle="named").identifier_preparer  # type: ignore[no-untyped-call] # of SQLAlchemy


def quoted(name: str) -> str:
    """Return an identifier, quoted if it needs to be."""
    return _PREPARER.quote(name)


def build(index: Index) -> None:
    """Build an index, unless a valid one of the same definition exists.

    Raises:
        CommandError: another object has the name, or the index has another definition.
    """
    if op.get_context().opts.get("plain_indexes"):
        # A file of `export` is one transaction, which cannot contain CONCURRENTLY.
        _drop_invalid_index(index)
        execute(index.create("IF NOT EXISTS "))
        return
    offline = op.get_context().as_sql
    leftover = False if offline else _find_leftover(index)
    if leftover is None:
        return
    with _without_lock_timeout():
        if offline:
            _drop_invalid_index(index, "langfuse_schema.lock_timeout")
        if leftover:
            execute(f"DROP INDEX CONCURRENTLY {index}")
        # With a connection, an index that appeared after the check must raise an error.
        execute(index.create("IF NOT EXISTS " if offline else "", concurrently=True))


def drop(place: str) -> None:
    """Drop the index `schema.name`, if it exists."""
    if op.get_context().opts.get("plain_indexes"):
        execute(f"DROP INDEX IF EXISTS {place}")
        return
    with _without_lock_timeout():
        execute(f"DROP INDEX CONCURRENTLY IF EXISTS {place}")


@contextmanager
def _without_lock_timeout() -> Iterator[None]:
    """End the transaction, and execute statements whose waits block no query."""
    with op.get_context().autocommit_block():
        if op.get_context().opts.get("watches_builds"):
            # The runner sets lock_timeout around each statement with CONCURRENTLY.
            yield
            return
        if not op.get_context().opts.get("keeps_lock_timeout"):
            _keep_setting("lock_timeout", "langfuse_schema.lock_timeout")
        op.execute("SET lock_timeout = 0")
        yield
        _keep_setting("langfuse_schema.lock_timeout", "lock_timeout")


def _find_leftover(index: Index) -> bool | None:
    """Return whether an INVALID index must be dropped first; None if a valid one exists."""
    found = _find_object(index)
    if found is not None and found.valid is False and found.of_table:
        # A running build holds this lock. An index that is INVALID after it is a leftover.
        lock_tables({f"{index.schema}.{index.table}": "SHARE UPDATE EXCLUSIVE"})
        found = _find_object(index)
    if found is None:
        return False
    if found.of_table and not found.valid:
        return True
    expected = index.create()
    if found.definition != expected and not (found.of_table and _is_same(index, found.definition)):
        raise CommandError(
            f"could not build index {index}: another object has this name\n"
            f"  found:    {found.definition or 'an object that is not an index'}\n"
            f"  expected: {expected}\n  fix:      rename it, then run the same command again:\n"
            f"    ALTER {'INDEX' if found.definition else 'TABLE'} {index}"
            f" RENAME TO {quoted('old_' + found.name)};"
        )
    return None


def _find_object(index: Index) -> Any:  # noqa: ANN401 - a row
    connection = op.get_bind()
    names = {"name": str(index), "table": f"{index.schema}.{index.table}"}
    if connection.scalar(text("SELECT to_regclass(:name) IS NULL"), names):
        return None
    query = text(
        "SELECT c.relname AS name, pg_get_indexdef(i.indexrelid) AS definition,"
        " i.indrelid IS NOT DISTINCT FROM to_regclass(:table) AS of_table,"
        " i.indisvalid AND i.indisready AND i.indislive AS valid"
        " FROM pg_class AS c LEFT JOIN pg_index AS i ON i.indexrelid = c.oid"
        " WHERE c.oid = to_regclass(:name)"
    )
    with _pinned_search_path(connection):
        return connection.execute(query, names).one_or_none()


@contextmanager
def _pinned_search_path(connection: Connection) -> Iterator[None]:
    """Let pg_get_indexdef print the schema of each name."""
    path = connection.scalar(text("SELECT current_setting('search_path')"))
    change = text("SELECT set_config('search_path', :path, true)")
    connection.execute(change, {"path": "pg_catalog"})
    yield
    connection.execute(change, {"path": path})


def _is_same(index: Index, found: str) -> bool:
    """Return whether a definition is another spelling: build the index on an empty table."""
    connection = op.get_bind()
    twin = "langfuse_schema_twin"
    savepoint = connection.begin_nested()
    try:
        execute(f"CREATE TEMPORARY TABLE {twin} (LIKE {index.schema}.{index.table})")
        execute(index.create(table=f"pg_temp.{twin}"))
        with _pinned_search_path(connection):
            query = text("SELECT pg_get_indexdef(to_regclass(:name))")
            expected = connection.scalar(query, {"name": f"pg_temp.{index.name}"})
    except DBAPIError:
        # Without the privilege to create temporary tables, only the text can be compared.
        return False
    finally:
        savepoint.rollback()
    return _shape(str(expected)) == _shape(found)


def _shape(definition: str) -> tuple[str, str]:
    """Return a definition without the names of the index and of the table."""
    kind, _, rest = definition.partition(" INDEX ")
    return kind, rest.partition(" USING ")[2]


def _keep_setting(source: str, target: str) -> None:
    """Copy a setting of the session, without a result row in the output of a script."""
    op.execute(
        f"DO $$ BEGIN PERFORM set_config('{target}', current_setting('{source}'), false); END $$"
    )


def _drop_invalid_index(index: Index, lock_timeout: str | None = None) -> None:
    # A script cannot drop CONCURRENTLY under a condition. This drop takes milliseconds. It waits
    # for a running build first, under a lock that blocks no read or write.
    limit = f"PERFORM set_config('lock_timeout', current_setting('{lock_timeout}'), true);"
    table = f"{index.schema}.{index.table}"
    definition, place, in_text = (
        value.replace("'", "''") for value in (index.create(), str(index), table)
    )
    invalid = f"""EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass('{place}')
             AND indrelid = to_regclass('{in_text}') AND NOT (indisvalid AND indisready))"""
    execute(
        f"""
DO $$
BEGIN
  IF {invalid} THEN
    LOCK TABLE {table} IN SHARE UPDATE EXCLUSIVE MODE;
    {limit if lock_timeout else "-- within the lock_timeout of this transaction"}
  END IF;
  IF {invalid} THEN
    DROP INDEX {index};
  ELSIF to_regclass('{place}') IS NOT NULL
    AND pg_get_indexdef(to_regclass('{place}')) IS DISTINCT FROM '{definition}' THEN
    RAISE EXCEPTION '{place.replace("%", "%%")} has another shape; rename it and run this again';
  END IF;
END $$"""
    )
