"""The content of a new embedded database: the roles, schemas and app tables of Supabase."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from langfuse_schema._postgres.findings import finding
from langfuse_schema.embedded.folders import EmbeddedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy import URL, Connection

SUPERUSER = "supabase_admin"

World = Literal["legacy", "restricted"]
"""Supabase's default privileges: all to the API roles, or, in projects since 2026, no access."""

_APP_TABLES_HEADING = "-- The tables of the app ---"
"""The part of supabase_stub.sql that is omitted without app tables begins here."""

_PREPARED = text("SELECT to_regnamespace('auth') IS NOT NULL")

_HAS_APP_TABLES = text(
    "SELECT coalesce(current_setting('langfuse_schema.app_tables', true), '') <> 'off'"
)

_CREATE_SUPERUSER = f"""
DO $$ BEGIN
  IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = '{SUPERUSER}') THEN
    CREATE ROLE {SUPERUSER} SUPERUSER;
  END IF;
END $$"""

_RECORD_WITHOUT_APP_TABLES = """
DO $$ BEGIN
  EXECUTE format('ALTER DATABASE %I SET langfuse_schema.app_tables = off', current_database());
END $$"""


def prepare(
    url: URL,
    *,
    default_privileges: World = "restricted",
    app_tables: bool = True,
    example_rows: bool = True,
    superuser: str | None = SUPERUSER,
) -> None:
    """Create the roles, schemas and app tables of Supabase, unless a schema `auth` exists.

    Arguments:
        url: of the database.
        default_privileges: of new tables in `public`: "restricted" as in Supabase projects
            created since 2026-05-30, or "legacy" as before.
        app_tables: whether to create the three tables of the app. Without them there are no
            example rows.
        example_rows: whether to insert three users of the app with a few messages.
        superuser: the user to connect as, because only a superuser can prepare a database. None is
            the user of the URL.

    Raises:
        EmbeddedError: PostgreSQL refused the connection or a statement, or the database was
            prepared with app tables and must have none.
    """
    settings = {
        "langfuse_schema.default_privileges": default_privileges,
        "langfuse_schema.example_rows": "on" if example_rows else "off",
    }
    engine = create_engine(url.set(username=superuser or url.username), poolclass=NullPool)
    try:
        with without_libpq_variables(), engine.begin() as connection:
            _prepare(connection, settings, app_tables=app_tables)
    except SQLAlchemyError as error:
        cause = str(getattr(error, "orig", None) or error).strip()
        refused = finding("embedded-not-prepared", str(url.database), cause=cause)
        raise EmbeddedError(refused) from error


@contextlib.contextmanager
def without_libpq_variables() -> Iterator[None]:
    """Hide the variables that libpq reads where a URL has no value, such as PGHOSTADDR."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("PG")}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _prepare(connection: Connection, settings: Mapping[str, str], *, app_tables: bool) -> None:
    if not connection.scalar(_PREPARED):
        # An advisory lock belongs to one database, but roles belong to the whole cluster.
        connection.execute(text("LOCK TABLE pg_catalog.pg_authid IN SHARE ROW EXCLUSIVE MODE"))
        if not connection.scalar(_PREPARED):
            _run_stub(connection, settings, app_tables=app_tables)
            return
    if not app_tables and connection.scalar(_HAS_APP_TABLES):
        raise EmbeddedError(finding("embedded-app-tables", str(connection.engine.url.database)))


def _run_stub(connection: Connection, settings: Mapping[str, str], *, app_tables: bool) -> None:
    for name, value in settings.items():
        connection.execute(
            text("SELECT set_config(:name, :value, true)"), {"name": name, "value": value}
        )
    stub = Path(__file__).parents[1].joinpath("supabase_stub.sql").read_text(encoding="utf-8")
    # Without parameters, psycopg2 does not interpret the % in the file.
    connection = connection.execution_options(no_parameters=True)
    connection.exec_driver_sql(_CREATE_SUPERUSER)
    if not app_tables:
        stub, found, _ = stub.partition(_APP_TABLES_HEADING)
        assert found, _APP_TABLES_HEADING
        connection.exec_driver_sql(_RECORD_WITHOUT_APP_TABLES)
    connection.exec_driver_sql(stub)
