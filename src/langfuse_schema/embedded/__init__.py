"""The embedded database: a private PostgreSQL with the roles and the app tables of Supabase.

It needs no setup. All of its state is in one folder, which you can delete while no server runs in
it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from langfuse_schema._postgres.findings import finding
from langfuse_schema.embedded.folders import EmbeddedError, state_directory
from langfuse_schema.embedded.server import Server, start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sqlalchemy import URL, Connection

__all__ = [
    "EmbeddedError",
    "Server",
    "World",
    "dev",
    "open_default",
    "prepare",
    "start",
    "state_directory",
    "without_libpq_variables",
]

World = Literal["legacy", "restricted"]
"""Supabase's default privileges: all to the API roles, or, in projects since 2026, no access."""


def prepare(
    url: URL,
    *,
    default_privileges: World = "restricted",
    example_rows: bool = True,
) -> None:
    """Create the roles, schemas and app tables of Supabase, unless a schema `auth` exists.

    Arguments:
        url: of the database. Its user is ignored, because only `supabase_admin` can prepare it.
        default_privileges: of new tables in `public`: "restricted" as in Supabase projects
            created since 2026-05-30, or "legacy" as before.
        example_rows: whether to insert three users of the app with a few messages.

    Raises:
        EmbeddedError: PostgreSQL refused the connection or a statement.
    """
    settings = {
        "langfuse_schema.default_privileges": default_privileges,
        "langfuse_schema.example_rows": "on" if example_rows else "off",
    }
    engine = create_engine(url.set(username="supabase_admin"), poolclass=NullPool)
    try:
        with without_libpq_variables(), engine.begin() as connection:
            _prepare(connection, settings)
    except SQLAlchemyError as error:
        cause = str(getattr(error, "orig", None) or error).strip()
        refused = finding("embedded-not-prepared", str(url.database), cause=cause)
        raise EmbeddedError(refused) from error


def open_default(base: Path) -> Server:
    """Return the server of a folder, started and prepared.

    Until the server is closed, the PG… variables of libpq are hidden from this process. Otherwise
    they could redirect a connection (PGHOSTADDR, PGSERVICE, PGOPTIONS, PGREQUIREAUTH …).

    Arguments:
        base: the checkout or working directory.

    Raises:
        EmbeddedError: see `state_directory`, `start` and `prepare`.
    """
    server = start(state_directory(base))
    try:
        prepare(server.url())
        server.on_close.enter_context(without_libpq_variables())
    except BaseException:
        server.close()
        raise
    return server


def dev(base: Path, out: Callable[[str], None]) -> None:
    """Run the embedded database of a folder until SIGINT or SIGTERM.

    Arguments:
        base: the checkout or working directory.
        out: prints a line. The first line is the URL.

    Raises:
        EmbeddedError: the server could not start, or was killed.
    """
    stop = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = [signal.signal(number, lambda *_: stop.set()) for number in numbers]
    try:
        server = open_default(base)
        try:
            out(server.connection_string())
            out(server.psql_command())
            out("Press Ctrl-C to stop it.")
            while not stop.wait(1.0):
                if not server.is_running():
                    raise EmbeddedError(finding("embedded-killed", str(server.directory)))
        finally:
            stopped = server.close()
        out("Stopped." if stopped else "Still running, until the last program that uses it ends.")
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)


@contextlib.contextmanager
def without_libpq_variables() -> Iterator[None]:
    """Hide the variables that libpq reads where a URL has no value, such as PGHOSTADDR."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("PG")}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _prepare(connection: Connection, settings: Mapping[str, str]) -> None:
    prepared = text("SELECT to_regnamespace('auth') IS NOT NULL")
    if connection.scalar(prepared):
        return
    # An advisory lock belongs to one database, but roles belong to the whole cluster.
    connection.execute(text("LOCK TABLE pg_catalog.pg_authid IN SHARE ROW EXCLUSIVE MODE"))
    if connection.scalar(prepared):
        return
    for name, value in settings.items():
        connection.execute(
            text("SELECT set_config(:name, :value, true)"), {"name": name, "value": value}
        )
    stub = Path(__file__).parents[1].joinpath("supabase_stub.sql").read_text(encoding="utf-8")
    # Without parameters, psycopg2 does not interpret the % in the file.
    connection.execution_options(no_parameters=True).exec_driver_sql(stub)
