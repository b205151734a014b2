"""Create the schema without Alembic, for the test suites of apps."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import event, text
from sqlalchemy.exc import InvalidRequestError

from langfuse_schema import tables
from langfuse_schema._postgres import catalog, ddl

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy import Connection

    from langfuse_schema._history.snapshots import Tables
    from langfuse_schema._postgres.objects import Table


def create_all(connection: Connection, revision: str = "head") -> None:
    """Create the tables, links, policies and grants that `upgrade` creates.

    Use it on temporary databases only, because it does not limit its waits for locks and creates
    no version table. It keeps existing objects and adds the link column to the app's tables. A
    second call changes nothing.

    Arguments:
        connection: of a role that can create tables in schema public. `auth.users` and
            `auth.uid()` must exist. With asyncpg, use `await connection.run_sync(create_all)`.
            The caller commits.
        revision: `head`, or the id of the revision with the schema.

    Raises:
        CommandError: there is no such revision.
    """
    expected = _schema(revision)
    found = catalog.read(connection, list(expected))
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
    """Yield the statements that add the missing link column to a table of the app."""
    for column in expected.columns:
        if found.part(column) is None:
            yield ddl.alter(expected, f"ADD COLUMN {ddl.column(column)}")
    for constraint in expected.constraints:
        if found.part(constraint) is None:
            yield ddl.alter(expected, f"ADD {ddl.constraint(constraint)}")
    yield from (index.definition for index in expected.indexes if found.part(index) is None)


def _access(connection: Connection, table: Table) -> Iterator[str]:
    """Yield the statements that revoke all access to a table, then grant the declared access."""
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
    from langfuse_schema._history.chain import History

    history = History.packaged()
    return history.schema(history.resolve(revision))


@contextmanager
def _in_public(connection: Connection) -> Iterator[None]:
    """Set search_path to public, and restore it at the end."""
    before = connection.scalar(text("SELECT current_setting('search_path')"))
    change = text("SELECT set_config('search_path', :path, false)")
    connection.execute(change, {"path": "public"})
    yield
    connection.execute(change, {"path": before})


def _check_schema(table: Any, connection: Connection, **_: Any) -> None:  # noqa: ANN401 - the signature is SQLAlchemy's
    """Refuse a table outside of schema public, because its policies name that schema."""
    schema = connection.schema_for_object(table)
    if (schema or connection.scalar(text("SELECT current_schema()"))) != "public":
        raise InvalidRequestError(f"{table} must be in schema public; copy it without a schema")


def _protect_created_table(table: Any, connection: Connection, **_: Any) -> None:  # noqa: ANN401 - the signature is SQLAlchemy's
    """Set policies and grants of a table that `MetaData.create_all` has created."""
    _run(connection, _access(connection, _schema("head")[f"public.{table.name}"]))


for _table in tables.metadata.tables.values():
    if _table.info != tables.EXTERNAL:
        # With propagate, the copies of `copy_tables` have the listener too.
        event.listen(_table, "before_create", _check_schema, propagate=True)
        event.listen(_table, "after_create", _protect_created_table, propagate=True)
