"""The embedded database: a PostgreSQL of our own that looks like Supabase, with nothing to set up.

All of its state is in one directory, which may be deleted whenever no server runs in it.
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
    """Make a database look like Supabase's, once: a database with a schema `auth` is left as it is.

    Args:
        url: the database; its user is ignored, since only `supabase_admin` may do this.
        default_privileges: what new tables in public are born with, "restricted" as in Supabase
            projects made since 2026-05-30, or "legacy" as before.
        example_rows: whether to add three users of the app and a few messages of theirs.

    Raises:
        EmbeddedError: PostgreSQL's own reason.
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
        raise EmbeddedError(
            f"the embedded database could not be prepared: {error}; expected an empty one: "
            "delete its folder and try again"
        ) from error


def open_default(base: Path) -> Server:
    """Return the server of `base`, started and prepared: the database of last resort.

    Until it is closed, the PG… variables of libpq are hidden from this process, so that they
    cannot lead a connection elsewhere (PGHOSTADDR, PGSERVICE, PGOPTIONS, PGREQUIREAUTH …).

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
    """Keep the embedded database of `base` running until SIGINT or SIGTERM.

    Args:
        base: the checkout or working directory.
        out: takes the lines to show, the first of which is the URL.

    Raises:
        EmbeddedError: it could not start, or has been killed.
    """
    stop = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    former = [signal.signal(number, lambda *_: stop.set()) for number in numbers]
    try:
        server = open_default(base)
        try:
            out(server.connection_string())
            out(server.psql_command())
            out("Ctrl-C stops it.")
            while not stop.wait(1.0):
                if not server.is_running():
                    raise EmbeddedError(
                        f"the server in {server.directory} was killed; start it again"
                    )
        finally:
            stopped = server.close()
        out("Stopped." if stopped else "Still running: others use it; the last one stops it.")
    finally:
        for number, handler in zip(numbers, former, strict=True):
            signal.signal(number, handler)


@contextlib.contextmanager
def without_libpq_variables() -> Iterator[None]:
    """Hide the variables from which libpq takes what a URL leaves open, such as PGHOSTADDR."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("PG")}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _prepare(connection: Connection, settings: Mapping[str, str]) -> None:
    prepared = text("SELECT to_regnamespace('auth') IS NOT NULL")
    if connection.scalar(prepared):
        return
    # Roles belong to the cluster, so an advisory lock, which belongs to a database, is not enough.
    connection.execute(text("LOCK TABLE pg_catalog.pg_authid IN SHARE ROW EXCLUSIVE MODE"))
    if connection.scalar(prepared):
        return
    for name, value in settings.items():
        connection.execute(
            text("SELECT set_config(:name, :value, true)"), {"name": name, "value": value}
        )
    double = Path(__file__).parents[1].joinpath("supabase_double.sql").read_text(encoding="utf-8")
    # Without parameters psycopg2 leaves every % alone.
    connection.execution_options(no_parameters=True).exec_driver_sql(double)
