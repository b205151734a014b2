"""Which database, and how to talk to it: URLs, options of a run, connecting, errors."""

from __future__ import annotations

import logging
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import psycopg2
import sqlalchemy as sa
from psycopg2.extensions import parse_dsn
from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, PendingRollbackError

from langfuse_schema.findings import Finding, SchemaError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

log = logging.getLogger("langfuse_schema")

APPLICATION_NAME = "langfuse-schema"
"""What pg_stat_activity shows of our sessions, unless the URL says otherwise."""

DRIVER = "postgresql+psycopg2"

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
    """Open the one connection of a command, with the settings of our sessions.

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
    # Before SQLAlchemy asks for the default schema, hence `insert`.
    event.listen(engine, "connect", _pin_search_path, insert=True)
    try:
        connection = engine.connect()
    except DBAPIError as error:
        raise SchemaError([_connection_finding(url, error)]) from error
    with connection:
        set_session(connection, options)
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
        set_session(connection, options)
        try:
            yield connection
        finally:
            # Our settings must not go back into the program's pool.
            connection.invalidate()


def _pin_search_path(driver_connection: Any, _record: Any) -> None:  # noqa: ANN401 - psycopg2 has no types
    with driver_connection.cursor() as cursor:
        cursor.execute("SET search_path TO public")
    driver_connection.commit()


def set_session(connection: sa.Connection, options: Options) -> dict[str, str]:
    """Give a session the settings that a run relies on, and leave no transaction open.

    SET, not start-up options, which PgBouncer refuses.

    Arguments:
        connection: without an open transaction.
        options: of the run.

    Returns:
        What the settings were before, for `restore_session`.
    """
    before = {}
    for setting, value in session_settings(options).items():
        # NULL where the server is too old to know the setting.
        known = connection.execute(
            sa.text("SELECT current_setting(:name, true)"), {"name": setting}
        ).scalar()
        if known is not None:
            before[setting] = known
            connection.execute(sa.text(f"SET {setting} = {value}"))
    connection.commit()
    return before


def restore_session(connection: sa.Connection, settings: Mapping[str, str]) -> None:
    """Give a session back the settings that `set_session` found.

    Arguments:
        connection: without an open transaction.
        settings: what `set_session` returned.
    """
    for setting, value in settings.items():
        connection.execute(
            sa.text("SELECT set_config(:name, :value, false)"), {"name": setting, "value": value}
        )
    connection.commit()


def session_settings(options: Options) -> dict[str, str]:
    """The settings of our sessions as SQL literals, for a connection or a script.

    Statements and transactions may take as long as they need: what a role is set to is meant
    for queries, not for building an index.
    """
    return {
        "lock_timeout": f"'{round(options.lock_timeout * 1000)}ms'",
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


_LOCKED = ("55P03", "40P01")
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
        code = getattr(cause, "pgcode", None) or ""
        finding = Finding(
            f"server-refused {code}".strip(),
            what,
            str(cause).strip(),
            "that the statement succeeds; the step it belongs to was rolled back",
            _REMEDIES.get(code, "mend what the message names, then run the same command again"),
        )
        raise SchemaError([finding]) from error


def _root_cause(error: BaseException) -> BaseException:
    """The driver's own error: SQLAlchemy may report that it could not go on after it."""
    if isinstance(error, DBAPIError) and error.orig is not None:
        return error.orig
    return _root_cause(error.__context__) if error.__context__ is not None else error
