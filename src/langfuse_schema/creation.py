"""Today's schema in one call, without Alembic: for the test suites of apps."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy import inspect, text
from sqlalchemy.schema import AddConstraint, CreateIndex

from langfuse_schema import access, tables

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Table


def create_all(connection: Connection, revision: str = tables.NEWEST) -> None:
    """Make what `upgrade` makes: tables, links, row level security, policies and grants.

    For throw-away databases, such as those of tests: there is no version table, and no care for
    those who use the tables meanwhile. `auth.users` and `auth.uid()` must be there; of the
    app's tables, those that are there get the link column, unless they have it. What exists
    already is kept, so that calling it twice does nothing.

    Arguments:
        connection: of a role that may create in schema public; with asyncpg, by
            `await connection.run_sync(create_all)`. The caller commits.
        revision: as of which of our revisions; the newest if not said.
    """
    declared = tables.declared_metadata(revision)
    with _in_public(connection):
        declared.create_all(connection, [declared.tables[name] for name in access.TABLES])
        existing = inspect(connection).get_table_names("public")
        for name in tables.APP_TABLES:
            if name in existing and name in declared.tables:
                _add_link(connection, declared.tables[name])
        _protect(connection, revision)


@contextmanager
def _in_public(connection: Connection) -> Iterator[None]:
    """Make things in public, whatever the caller's search_path, which comes back."""
    before = connection.scalar(text("SELECT current_setting('search_path')"))
    change = text("SELECT set_config('search_path', :path, false)")
    connection.execute(change, {"path": "public"})
    yield
    connection.execute(change, {"path": before})


def _add_link(connection: Connection, table: Table) -> None:
    columns = inspect(connection).get_columns(table.name, "public")
    if any(column["name"] == tables.LINK_COLUMN for column in columns):
        return
    connection.execute(text(f"ALTER TABLE public.{table.name} ADD {tables.LINK_COLUMN} uuid"))
    for constraint in table.foreign_key_constraints:
        connection.execute(AddConstraint(constraint))
    for index in table.indexes:
        connection.execute(CreateIndex(index))


def _protect(connection: Connection, revision: str) -> None:
    roles = connection.scalars(text("SELECT rolname FROM pg_roles")).all()
    there = connection.execute(
        text("SELECT tablename, policyname FROM pg_policies WHERE schemaname = 'public'")
    )
    existing = {tuple(row) for row in there}
    kept = {
        access.create_policy(policy)
        for policy in access.at(revision, access.POLICIES)
        if (policy.table, policy.name) in existing
    }
    for statement in access.statements(roles, revision):
        if statement not in kept:
            connection.execute(text(statement))
