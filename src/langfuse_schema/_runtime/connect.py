"""Open the connections of a run."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError

from langfuse_schema._postgres.findings import SchemaError
from langfuse_schema._postgres.urls import connection_finding
from langfuse_schema._runtime import driver, signals

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import URL

    from langfuse_schema._runtime.options import Options

APPLICATION_NAME = "langfuse-schema"
"""The name in pg_stat_activity, unless the URL has another."""


_KEEPALIVES = {
    # A dead network is noticed after 40 s. A frozen proxy can still answer.
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 40_000,
}


@contextmanager
def connect(url: URL, options: Options) -> Iterator[sa.Connection]:
    """Open a connection, without a transaction."""
    parameters: dict[str, Any] = {
        **_KEEPALIVES,
        "application_name": APPLICATION_NAME,
        # Queries of other sessions are printed, and PGCLIENTENCODING can lack their characters.
        "client_encoding": "utf8",
        # libpq accepts whole seconds, and takes 1 for 2.
        "connect_timeout": max(2, math.ceil(options.connect_timeout)),
    }
    own = {name: value for name, value in parameters.items() if name not in url.query}
    engine = sa.create_engine(
        url,
        poolclass=sa.NullPool,
        connect_args={**own, "connection_factory": driver.Connection},
        use_native_hstore=False,
    )
    driver.skip_handshake(engine)
    event.listen(engine, "do_connect", _connect_interruptibly)
    with _opened(engine) as connection:
        yield connection


def _connect_interruptibly(
    _dialect: object, _record: object, _arguments: list[Any], parameters: dict[str, Any]
) -> Any:  # noqa: ANN401 - a connection of psycopg2, which has no types
    opened = signals.connect(**parameters)
    if "," in str(parameters.get("host", "")) and "hostaddr" not in parameters:
        # The second connection of a run must reach the same server.
        parameters |= {"host": opened.info.host, "port": opened.info.port}
    return opened


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
