"""Which database, and how to talk to it: URLs, options of a run, connecting, errors."""

from __future__ import annotations

import logging
import os
import re
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import psycopg2
import sqlalchemy as sa
from psycopg2.extensions import parse_dsn
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, PendingRollbackError

from langfuse_schema.findings import Finding, SchemaError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

log = logging.getLogger("langfuse_schema")

APPLICATION_NAME = "langfuse-schema"
"""What pg_stat_activity shows of our sessions, unless the URL says otherwise."""

DRIVER = "postgresql+psycopg2"

SCRIPT = {"no_parameters": True}
"""Execution options for several statements at once, which go to the server as they are."""

_DIALECTS = ("postgres", "postgresql")

URL_EXAMPLE = "postgresql://user:password@host:5432/database"


@dataclass(frozen=True)
class Options:
    """Options of a run; both in seconds.

    `lock_timeout` is the longest wait for locks at a time: everybody else queues behind it that
    long. `lock_deadline` is how long to go on retrying, and to wait for another runner.
    """

    lock_timeout: float = 0.5
    lock_deadline: float = 600.0


@dataclass(frozen=True)
class Source:
    """Where the database of a command comes from; no URL means the embedded one."""

    url: URL | None
    origin: str


_KNOWN = ("url", "embedded", "lock_timeout", "lock_deadline")
_SECONDS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0}


def parse_options(arguments: Mapping[str, str]) -> Options:
    """Read the options of a run.

    Arguments:
        arguments: what `-x name=value` gave.

    Raises:
        SchemaError: an unknown name, or a value that is no time.
    """
    for name in arguments:
        if name not in _KNOWN:
            raise SchemaError(
                [
                    Finding(
                        "option-unknown",
                        f"-x {name}",
                        name,
                        "one of " + ", ".join(_KNOWN),
                        "correct the name, as in: -x lock_timeout=500ms",
                    )
                ]
            )
    given = {
        name: _seconds(name, arguments[name])
        for name in ("lock_timeout", "lock_deadline")
        if name in arguments
    }
    return Options(**given)


def _seconds(name: str, value: str) -> float:
    matched = re.fullmatch(r"(\d+(?:\.\d+)?) ?(ms|s|min|h)", value.strip())
    if not matched or float(matched[1]) * _SECONDS[matched[2]] < _SECONDS["ms"]:
        raise SchemaError(
            [
                Finding(
                    "option-invalid",
                    f"-x {name}",
                    repr(value),
                    "a time above zero with its unit: ms, s, min or h",
                    f"write it like this: -x {name}=500ms",
                )
            ]
        )
    return float(matched[1]) * _SECONDS[matched[2]]


def find_source(
    arguments: Mapping[str, str],
    configured_url: str | None,
    environment: Mapping[str, str] = os.environ,
    *,
    checkout: bool = False,
) -> Source:
    """Decide which database a command works on; the first that is set.

    Arguments:
        arguments: what `-x name=value` gave; `url`, and `embedded=true`, which also passes
            over the ini and the environment.
        configured_url: `sqlalchemy.url` of the ini or the configuration.
        environment: where DATABASE_URL is looked up.
        checkout: whether the embedded database may be used unasked.

    Raises:
        SchemaError: there is none, or what there is is no URL of a PostgreSQL database.
    """
    embedded = arguments.get("embedded", "false").lower()
    if embedded not in ("true", "false"):
        found = Finding(
            "option-invalid", "-x embedded", embedded, "true or false", "type: -x embedded=true"
        )
        raise SchemaError([found])
    if embedded == "true" and "url" in arguments:
        found = Finding(
            "option-invalid",
            "-x url, -x embedded",
            "both a URL and the embedded database",
            "one of them",
            "leave one out",
        )
        raise SchemaError([found])
    if "url" in arguments:
        return Source(parse_url(arguments["url"], "-x url"), "-x url")
    if embedded == "true":
        return Source(None, "-x embedded=true")
    if configured_url:
        return Source(parse_url(configured_url, "sqlalchemy.url"), "sqlalchemy.url")
    if "DATABASE_URL" in environment:
        return Source(parse_url(environment["DATABASE_URL"], "DATABASE_URL"), "DATABASE_URL")
    if checkout:
        return Source(None, "nothing configured")
    raise SchemaError(
        [
            Finding(
                "url-missing",
                "DATABASE_URL",
                "not set, and neither -x url nor sqlalchemy.url",
                f"the URL of a database, like {URL_EXAMPLE}",
                f"type: export DATABASE_URL={URL_EXAMPLE}\n"
                "or, for a throw-away database on this machine: -x embedded=true",
            )
        ]
    )


def parse_url(url: str | URL, origin: str) -> URL:
    """Make a URL of any common spelling usable with psycopg2.

    Supabase, Heroku and Prisma hand out `postgres://`, `postgresql://` and parameters of their
    own clients (`pgbouncer`, `connection_limit`, `schema`, …), which libpq rejects.

    Arguments:
        url: as somebody configured it.
        origin: where it was configured, for the message.

    Returns:
        A URL of the psycopg2 driver without foreign parameters.

    Raises:
        SchemaError: it is no URL, or one of another kind of database.
    """
    try:
        parsed = make_url(url.strip() if isinstance(url, str) else url)
        dialect = parsed.drivername.partition("+")[0]
    except (ArgumentError, ValueError):
        # The text may hold a password, and nobody knows where: show none of it.
        found = "an empty text" if not url else "a text that is no URL"
        raise SchemaError([_url_finding("url-invalid", origin, found)]) from None
    if dialect not in _DIALECTS:
        raise SchemaError([_url_finding("url-not-postgresql", origin, f"a {dialect} URL")])
    host = unquote(parsed.host) if parsed.host else parsed.host
    query = {_parameter(name): value for name, value in parsed.query.items()}
    known = {name: value for name, value in query.items() if _known_to_libpq(name)}
    ignored = [name for name in query if name not in known]
    if ignored:
        log.info("parameters that libpq does not know are ignored: %s", ", ".join(ignored))
    return parsed.set(drivername=DRIVER, host=host, query=known)


def _parameter(name: str) -> str:
    # asyncpg's name; dropping it would turn encryption off.
    return "sslmode" if name == "ssl" else name


def _known_to_libpq(name: str) -> bool:
    try:
        parse_dsn(f"{name}=1")
    except psycopg2.ProgrammingError:
        return False
    return True


def _url_finding(code: str, origin: str, found: str) -> Finding:
    return Finding(
        code,
        origin,
        found,
        f"a URL like {URL_EXAMPLE}",
        "correct it; characters like @ : / in a password are written %40 %3A %2F",
    )


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
    # The interval is refused where the operating system does not tell that a client is gone.
    with suppress(DBAPIError):
        return _set(connection, wanted)
    connection.rollback()
    del wanted[_CHECK_INTERVAL]
    return _set(connection, wanted)


_CHECK_INTERVAL = "client_connection_check_interval"

# In this order: what a setting was is asked before it is set.
_SET = sa.text(
    "WITH wanted AS MATERIALIZED (SELECT name, value, current_setting(name, true) AS before"
    " FROM unnest(CAST(:names AS text[]), CAST(:values AS text[])) AS setting (name, value))"
    " SELECT name, before, set_config(name, value, false) FROM wanted WHERE before IS NOT NULL"
)


def _set(connection: sa.Connection, settings: Mapping[str, str]) -> dict[str, str]:
    """Set those settings that the server has, and return what they were."""
    rows = connection.execute(_SET, {"names": list(settings), "values": list(settings.values())})
    return {name: before for name, before, _ in rows}


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


def _connection_finding(url: URL, error: DBAPIError) -> Finding:
    reason = str(error.orig).strip()
    shown = url.render_as_string(hide_password=True)
    database = url.database or ""
    if "password authentication failed" in reason or "no password supplied" in reason:
        return Finding(
            "login-refused",
            shown,
            reason,
            "a role and its password that the server accepts",
            "correct user and password in the URL; characters like @ : / in a password are"
            " written %40 %3A %2F",
        )
    if f'database "{database}" does not exist' in reason:
        return Finding(
            "database-missing",
            shown,
            reason,
            "a database of that name",
            f'correct the name in the URL, or type: createdb "{database}"',
        )
    return Finding(
        "server-unreachable",
        shown,
        reason,
        "a PostgreSQL server that answers there",
        "check host and port in the URL, and that the server runs and admits this machine",
    )


_REMEDIES = {
    "55P03": "somebody else holds a lock on the table; run the same command again",
    "40P01": "somebody else took the same locks in another order; run the same command again",
    "42501": "grant the missing privilege, or connect as the role that owns the tables",
    "25006": "connect to the primary server, in a session that may write",
    "2BP01": "drop or change what depends on it first, then run the same command again",
}


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
        finding = Finding(
            f"server-refused {code}".strip(),
            what,
            str(cause).strip(),
            "that the statement succeeds; the step it belongs to was rolled back",
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
