"""Sessions of ours: connecting, settings, and what the server refuses, told to users."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, PendingRollbackError

from langfuse_schema import database
from langfuse_schema._postgres.findings import Finding, SchemaError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from sqlalchemy.engine import URL

    from langfuse_schema.database import Options

APPLICATION_NAME = "langfuse-schema"
"""What pg_stat_activity shows of our sessions, unless the URL says otherwise."""

SCRIPT = {"no_parameters": True}
"""Execution options for several statements at once, which go to the server as they are."""


@contextmanager
def connect(url: URL, options: Options) -> Iterator[sa.Connection]:
    """Open the connection of a command, in a transaction with the settings of our sessions.

    They hold for that transaction: behind a pooler in transaction mode the session is
    somebody else's. Who means to write ends it, and calls `session`.

    Arguments:
        url: from `parse_url`.
        options: of the run.

    Raises:
        SchemaError: the server, the database or the login is not there.
    """
    connect_args: dict[str, Any] = {}
    if "application_name" not in url.query:
        connect_args["application_name"] = APPLICATION_NAME
    engine = sa.create_engine(url, poolclass=sa.NullPool, connect_args=connect_args)
    try:
        connection = engine.connect()
    except DBAPIError as error:
        raise SchemaError([_connection_finding(url, error)]) from error
    with connection:
        # Where Alembic looks for tables that name no schema, whatever the role's search_path.
        connection.dialect.default_schema_name = "public"
        begin_reading(connection, options)
        yield connection


@contextmanager
def connect_engine(engine: sa.Engine, options: Options) -> Iterator[sa.Connection]:
    """Open a connection of a program's own engine, and close it afterwards for good.

    Arguments:
        engine: any engine for PostgreSQL with psycopg2 or psycopg.
        options: of the run.

    Raises:
        SchemaError: the server, the database or the login is not there.
    """
    try:
        connection = engine.connect()
    except DBAPIError as error:
        raise SchemaError([_connection_finding(engine.url, error)]) from error
    with connection:
        # The program may use AUTOCOMMIT; a revision is a transaction.
        connection.execution_options(isolation_level="READ COMMITTED")
        begin_reading(connection, options)
        try:
            yield connection
        finally:
            # What a run leaves behind must not go back into the program's pool.
            connection.invalidate()


@contextmanager
def second_connection(connection: sa.Connection, *, autocommit: bool = True) -> Iterator[Any]:
    """Open another connection to where a connection leads, as the driver's own object.

    Made as the engine makes its connections, but never taken from its pool, which may be empty
    or hold one connection only.

    Arguments:
        connection: of any engine.
        autocommit: whether each statement is a transaction by itself.
    """
    pool = connection.engine.pool.recreate()
    try:
        borrowed = pool.connect()
        try:
            driver_connection: Any = borrowed.dbapi_connection
            driver_connection.rollback()
            driver_connection.autocommit = autocommit
            yield driver_connection
        finally:
            borrowed.invalidate()
    finally:
        pool.dispose()


@contextmanager
def session(connection: sa.Connection, options: Options) -> Iterator[None]:
    """Give a session the settings that a run relies on, and take them back afterwards.

    SET, not start-up options, which PgBouncer refuses.

    Arguments:
        connection: without an open transaction.
        options: of the run.
    """
    before = apply_settings(connection, options)
    connection.commit()
    try:
        yield
    finally:
        if not (connection.closed or connection.invalidated):
            connection.rollback()
            _set(connection, before)
            connection.commit()


def begin_reading(connection: sa.Connection, options: Options) -> None:
    """Begin a transaction with the settings of our sessions, for that transaction alone.

    Not by a query: whoever reads may still choose how isolated the transaction is.

    Arguments:
        connection: without an open transaction.
        options: of the run.
    """
    settings = session_settings(options).items()
    connection.exec_driver_sql(
        "; ".join(f"SET LOCAL {name} TO '{value}'" for name, value in settings),
        execution_options=SCRIPT,
    )


def apply_settings(connection: sa.Connection, options: Options) -> dict[str, str]:
    """Set what our statements rely on, in a transaction that the caller commits.

    Arguments:
        connection: without an open transaction.
        options: of the run.

    Returns:
        What the settings were before.
    """
    wanted = session_settings(options) | OPTIONAL_SETTINGS
    before = _current(connection, wanted)
    known = {name: value for name, value in wanted.items() if name in before}
    # The interval is refused where the operating system does not tell that a client is gone.
    try:
        _set(connection, known)
    except DBAPIError:
        connection.rollback()
        known.pop(_CHECK_INTERVAL, None)
        _set(connection, known)
    return before


_CHECK_INTERVAL = "client_connection_check_interval"


def _current(connection: sa.Connection, names: Iterable[str]) -> dict[str, str]:
    """Those settings that the server has."""
    calls = ", ".join(f"current_setting('{name}', true) AS {name}" for name in names)
    row = connection.execute(sa.text(f"SELECT {calls}")).one()
    return {name: value for name, value in row._asdict().items() if value is not None}


def _set(connection: sa.Connection, settings: Mapping[str, str]) -> None:
    calls = ", ".join(f"set_config('{name}', :{name}, false)" for name in settings)
    connection.execute(sa.text(f"SELECT {calls}"), dict(settings))


OPTIONAL_SETTINGS = {
    # Since PostgreSQL 17.
    "transaction_timeout": "0",
    # Since 14: without it the backend of a killed runner goes on, and holds the runner lock.
    _CHECK_INTERVAL: "2s",
}
"""Settings of our sessions that not every server has."""


def session_settings(options: Options) -> dict[str, str]:
    """The settings of our sessions that every server has.

    Statements and transactions may take as long as they need: what a role is set to is meant
    for queries, not for building an index.
    """
    return {
        "lock_timeout": f"{round(options.lock_timeout * 1000)}ms",
        "statement_timeout": "0",
        "idle_in_transaction_session_timeout": "0",
        "search_path": "public",
    }


_LOGIN_REFUSED = (
    "authentication failed",
    "no password supplied",
    "Tenant or user not found",  # Supabase's pooler
)


def _connection_finding(url: URL, error: DBAPIError) -> Finding:
    reason = str(error.orig).strip()
    shown = database.shown(url)
    name = url.database or ""
    if any(text in reason for text in _LOGIN_REFUSED) or re.search(
        r'role ".*" does not exist', reason
    ):
        return Finding(
            "login-refused",
            shown,
            reason,
            "a role and its password that the server accepts",
            "correct user and password in the URL; characters like @ : / in a password are"
            " written %40 %3A %2F",
        )
    if f'database "{name}" does not exist' in reason:
        return Finding(
            "database-missing",
            shown,
            reason,
            "a database of that name",
            f'correct the name in the URL, or type: createdb "{name}"',
        )
    if re.search(r"invalid \w+ value", reason):
        return Finding(
            "url-invalid",
            shown,
            reason,
            "parameters as libpq has them",
            "correct the parameter that the message names",
        )
    return Finding(
        "server-unreachable",
        shown,
        reason,
        "a PostgreSQL server that answers there",
        "check host and port in the URL, and that the server runs and admits this machine",
    )


_REMEDIES = {
    "40P01": "somebody else took the same locks in another order; run the same command again",
    "42501": "grant the missing privilege, or connect as the role that owns the tables",
    "25006": "connect to the primary server, in a session that may write",
    "2BP01": "drop or change what depends on it first, then run the same command again",
}


def _busy() -> Finding:
    return Finding(
        "database-busy",
        "lock_timeout",
        "a lock that a migration, or another session, holds on one of the tables",
        "tables that can be read within lock_timeout",
        "run the same command again when that is over, or wait for longer: -x lock_timeout=10s\n"
        "who it is: SELECT * FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted",
    )


@contextmanager
def errors_for_users(what: str) -> Iterator[None]:
    """Turn what the server refused into one message.

    Arguments:
        what: what was being done, for the message.

    Raises:
        SchemaError: instead of any error of the driver.
    """
    try:
        yield
    except (DBAPIError, PendingRollbackError) as error:
        cause = _root_cause(error)
        code = sqlstate(error)
        if code == "55P03":
            raise SchemaError([_busy()]) from error
        finding = Finding(
            f"server-refused {code}".strip(),
            what,
            str(cause).strip(),
            "that the statement succeeds; its transaction was rolled back",
            _REMEDIES.get(code, "mend what the message names, then run the same command again"),
        )
        raise SchemaError([finding]) from error


def sqlstate(error: BaseException) -> str:
    """The code that the server gave an error, wherever in its context; empty if it gave none."""
    cause = _root_cause(error)
    # psycopg2's name, then psycopg's.
    return getattr(cause, "pgcode", None) or getattr(cause, "sqlstate", None) or ""


def _root_cause(error: BaseException) -> BaseException:
    """The driver's own error: SQLAlchemy may report that it could not go on after it."""
    if isinstance(error, DBAPIError) and error.orig is not None:
        return error.orig
    return _root_cause(error.__context__) if error.__context__ is not None else error
