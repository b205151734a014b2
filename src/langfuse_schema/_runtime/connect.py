"""Open the connections of a run."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from langfuse_schema._postgres.findings import SchemaError
from langfuse_schema._postgres.urls import connection_finding
from langfuse_schema._runtime import driver

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import URL

APPLICATION_NAME = "langfuse-schema"
"""The name in pg_stat_activity, unless the URL has another."""


@contextmanager
def connect(url: URL) -> Iterator[sa.Connection]:
    """Open a connection, without a transaction."""
    named = "application_name" in url.query
    connect_args: dict[str, Any] = {} if named else {"application_name": APPLICATION_NAME}
    # Queries of other sessions are printed, and PGCLIENTENCODING can lack their characters.
    connect_args["client_encoding"] = "utf8"
    engine = sa.create_engine(
        url,
        poolclass=sa.NullPool,
        connect_args={**connect_args, "connection_factory": driver.Connection},
        use_native_hstore=False,
    )
    driver.skip_handshake(engine)
    with _opened(engine) as connection:
        yield connection


@contextmanager
def connect_engine(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Open a connection of a program's engine like `connect`, and discard it at the end."""
    with _opened(engine) as connection:
        # The engine can be in AUTOCOMMIT mode, and a revision is a transaction.
        connection.execution_options(isolation_level="READ COMMITTED")
        driver_connection: Any = connection.connection.dbapi_connection
        if hasattr(driver_connection, "prepare_threshold"):
            # psycopg cannot prepare a message with several statements. No setting of the program
            # is changed, because the connection is discarded.
            driver_connection.prepare_threshold = None
        try:
            yield connection
        finally:
            # The settings of the run must not return to the program's pool.
            connection.invalidate()


def _opened(engine: sa.Engine) -> sa.Connection:
    try:
        return engine.connect()
    except DBAPIError as error:
        raise SchemaError(connection_finding(engine.url, error)) from error
