"""Create the schema of the head without Alembic: for the test suites of apps."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import event, text

from langfuse_schema import tables

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy import Connection

    from langfuse_schema._history.snapshots import Tables
    from langfuse_schema._postgres.objects import Table


def create_all(connection: Connection, revision: str = "head") -> None:
    """Create the schema that `upgrade` creates: tables, links, policies and grants.

    For temporary databases, such as those of tests. There is no version table, and sessions
    that use the tables are not considered. `auth.users` and `auth.uid()` must exist. Existing
    tables of the app get the link column. Existing objects are kept, so a second call changes
    nothing.

    Arguments:
        connection: of a role that can create tables in schema public; with asyncpg,
            `await connection.run_sync(create_all)`. The caller commits.
        revision: `head`, or the id of the revision whose schema to create.
    """
    from langfuse_schema._postgres import catalog, ddl

    expected = _schema(revision)
    found = catalog.read(connection, list(expected)).tables
    with _in_public(connection):
        for name, table in expected.items():
            actual = found.get(name)
            if table.partial and actual is not None:
                _run(connection, _added_parts(table, actual))
            elif not table.partial:
                if actual is None:
                    _run(connection, ddl.create_table(table))
                _run(connection, _access(connection, table))


def _added_parts(expected: Table, found: Table) -> Iterator[str]:
    """Yield the statements that add columns to a table of the app, unless it has them."""
    from langfuse_schema._postgres import ddl

    if all(found.column(column.name) for column in expected.columns):
        return
    yield ddl.alter(
        expected,
        *(f"ADD COLUMN {ddl.column(column)}" for column in expected.columns),
        *(f"ADD {ddl.constraint(constraint)}" for constraint in expected.constraints),
    )
    yield from (index.definition for index in expected.indexes)


def _access(connection: Connection, table: Table) -> Iterator[str]:
    """Yield the statements that close a table and then state its access."""
    from langfuse_schema._postgres import ddl

    query = text("SELECT rolname::text FROM pg_roles WHERE rolname = ANY (:roles)")
    present = {"PUBLIC", *connection.scalars(query, {"roles": list(tables.API_ROLES)})}
    yield from ddl.close_table(table, present)
    query = text("SELECT polname::text FROM pg_policy WHERE polrelid = CAST(:name AS regclass)")
    existing = set(connection.scalars(query, {"name": ddl.table_name(table)}))
    for policy in table.policies:
        if policy.name not in existing:
            yield ddl.create_policy(table, policy)
    yield from ddl.grants(table, [grant for grant in table.grants if grant.role in present])


def _run(connection: Connection, statements: Iterable[str]) -> None:
    for statement in statements:
        connection.execute(text(statement.replace(":", r"\:")))


@cache
def _schema(revision: str) -> Tables:
    from langfuse_schema import migrations

    return migrations.schema_at(revision)


@contextmanager
def _in_public(connection: Connection) -> Iterator[None]:
    """Create objects in public, whatever search_path the caller has set."""
    before = connection.scalar(text("SELECT current_setting('search_path')"))
    change = text("SELECT set_config('search_path', :path, false)")
    connection.execute(change, {"path": "public"})
    yield
    connection.execute(change, {"path": before})


def _protect_created_table(table: Any, connection: Connection, **_: Any) -> None:  # noqa: ANN401 - the signature is SQLAlchemy's
    """Close a table that `MetaData.create_all` has created, and state its access."""
    _run(connection, _access(connection, _schema("head")[f"public.{table.name}"]))


for _table in tables.metadata.tables.values():
    if _table.info != tables.NOT_OURS:
        # Copies of the table get the listener too.
        event.listen(_table, "after_create", _protect_created_table, propagate=True)
