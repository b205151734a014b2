"""The database of a command, and the options for it."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import URL

from langfuse_schema._postgres.findings import SchemaError, finding
from langfuse_schema._postgres.urls import EXAMPLE, parse_url, shown
from langfuse_schema._runtime import settings
from langfuse_schema._runtime.connect import connect, connect_engine
from langfuse_schema._runtime.options import Options, invalid_option

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

log = logging.getLogger("langfuse_schema")

_NOT_CONFIGURED = "nothing configured"


@dataclass(frozen=True)
class Embedded:
    """The embedded database. `start` runs its server and yields the folder and the URL."""

    origin: str
    start: Callable[[], AbstractContextManager[tuple[str, URL]]]


@dataclass(frozen=True)
class Target:
    """A database with the options of a run.

    Attributes:
        origin: where the database is configured, for messages.
    """

    database: URL | sa.Engine | sa.Connection | Embedded
    options: Options
    origin: str = "the calling program"

    @classmethod
    def of(cls, database: object, options: Options | None = None) -> Target:
        """Return the target of a program: a URL, an engine or a connection of SQLAlchemy.

        Raises:
            SchemaError: it is none of these, or not for PostgreSQL.
        """
        if hasattr(database, "sync_engine") or _is_async(database):
            kind = type(database).__name__
            raise SchemaError(finding("engine-async", f"the {kind}", found=kind))
        if isinstance(database, sa.Engine | sa.Connection):
            parse_url(database.engine.url, "the engine")
            check_driver(database.engine)
        elif isinstance(database, str | URL):
            database = parse_url(database, "the URL")
        if isinstance(database, URL | sa.Engine | sa.Connection):
            return cls(database, options or Options())
        cause = f"expected a URL or an engine, found {type(database).__name__}"
        raise SchemaError(finding("url-missing", "the database", cause=cause, example=EXAMPLE))

    @property
    def is_default_embedded(self) -> bool:
        """Whether it is the embedded database because nothing is configured."""
        return isinstance(self.database, Embedded) and self.database.origin == _NOT_CONFIGURED

    @contextmanager
    def connect(self, *, only_reading: bool = False, bare: bool = False) -> Iterator[sa.Connection]:
        """Open a connection, in a transaction with the settings of a run.

        With `only_reading`, a connection of the caller can be in AUTOCOMMIT mode. With `bare`, no
        transaction is begun.
        """
        with ExitStack() as stack:
            database = self.database
            if isinstance(database, sa.Connection):
                borrowed = self._borrowed(database, only_reading=only_reading)
                yield self._begun(stack.enter_context(borrowed), bare)
                return
            if isinstance(database, sa.Engine):
                yield self._begun(stack.enter_context(connect_engine(database)), bare)
                return
            if isinstance(database, Embedded):
                folder, url = stack.enter_context(database.start())
                log.info("the embedded database in %s (%s)", folder, database.origin)
            else:
                url = database
                log.info("database %s (%s)", shown(url), self.origin)
            yield self._begun(stack.enter_context(connect(url, self.options)), bare)

    def _begun(self, connection: sa.Connection, bare: bool) -> sa.Connection:
        """Begin a transaction with the settings of a run.

        The settings hold for this transaction only. Behind a pooler in transaction mode, other
        clients use the same session.
        """
        if not bare:
            settings.set_locally(connection, self.options.lock_timeout)
        return connection

    @contextmanager
    def _borrowed(
        self, connection: sa.Connection, *, only_reading: bool
    ) -> Iterator[sa.Connection]:
        """Use a caller's connection, and leave it without a transaction."""
        driver_connection: Any = connection.connection.dbapi_connection
        autocommit = driver_connection.autocommit
        if connection.in_transaction() or (autocommit and not only_reading):
            found = f"a connection {'in AUTOCOMMIT mode' if autocommit else 'in a transaction'}"
            place = 'config.attributes["connection"]'
            raise SchemaError(finding("connection-in-transaction", place, found=found))
        threshold = getattr(driver_connection, "prepare_threshold", None)
        if threshold is not None:
            # psycopg cannot prepare a message with several statements.
            driver_connection.prepare_threshold = None
        try:
            yield connection
        finally:
            if not (connection.closed or connection.invalidated):
                connection.rollback()
                if threshold is not None:
                    driver_connection.prepare_threshold = threshold


_DRIVERS = ("psycopg2", "psycopg")
"""The drivers whose features a run uses: a second connection, cancel, several statements."""


def check_driver(engine: sa.Engine) -> None:
    """Check that the driver of an engine is supported, and not asynchronous.

    Raises:
        SchemaError: the message names the URL as the value to pass instead.
    """
    if engine.dialect.is_async or engine.driver not in _DRIVERS:
        raise SchemaError(finding("driver-unsupported", "the engine", driver=engine.driver))


@dataclass(frozen=True)
class Configured:
    """A configured URL and its origin. Without a URL it is the embedded database."""

    url: URL | None
    origin: str


def configured_url(
    arguments: Mapping[str, str],
    configured: str | None,
    environment: Mapping[str, str] = os.environ,
    *,
    checkout: bool = False,
) -> Configured:
    """Return the database of a command: the first that is configured.

    `arguments` are the values of `-x name=value`, and `configured` is the URL of the ini file. In a
    checkout, the embedded database is the default.
    """
    if _embedded(arguments):
        return Configured(None, "-x embedded=true")
    sources = {
        "-x url": arguments.get("url"),
        "sqlalchemy.url": configured or None,
        "DATABASE_URL": environment.get("DATABASE_URL"),
    }
    for origin, url in sources.items():
        if url is not None:
            return Configured(parse_url(url, origin), origin)
    if checkout:
        return Configured(None, _NOT_CONFIGURED)
    cause = "DATABASE_URL, -x url and sqlalchemy.url are not set"
    raise SchemaError(finding("url-missing", "DATABASE_URL", cause=cause, example=EXAMPLE))


def _is_async(database: object) -> bool:
    return isinstance(database, sa.Engine | sa.Connection) and database.dialect.is_async


def _embedded(arguments: Mapping[str, str]) -> bool:
    value = arguments.get("embedded", "false").lower()
    if value not in ("true", "false"):
        advice = "Write it as -x embedded=true."
        raise invalid_option("-x embedded", value, "true or false", advice)
    embedded = value == "true"
    if embedded and "url" in arguments:
        found = "both a URL and the embedded database"
        raise invalid_option("-x url, -x embedded", found, "one of them", "Remove one of them.")
    return embedded
