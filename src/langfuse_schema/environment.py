"""Alembic's environment: what env.py wires, from the options of a command to its connection."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from configparser import InterpolationError
from contextlib import ExitStack, contextmanager
from logging.config import fileConfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from alembic.util import CommandError

from langfuse_schema import (
    database,
    interruption,
    runner,
    sessions,
    tables,
    version_table,
)
from langfuse_schema._history.discards import with_discards
from langfuse_schema._postgres.findings import Finding, SchemaError
from langfuse_schema.version_table import VERSION_SCHEMA, VERSION_TABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from sqlalchemy.engine import URL

    from langfuse_schema.database import Options

log = logging.getLogger("langfuse_schema")


def config_file() -> Path:
    """Find alembic.ini, with the revisions beside it, in a checkout and in a wheel."""
    packaged = Path(__file__).parent / "_scripts" / "alembic.ini"
    return packaged if packaged.exists() else Path(__file__).parents[2] / "alembic.ini"


def configure_logging(config: Config) -> None:
    """Set up logging on the command line; a program that calls us has its own."""
    if config.cmd_opts is not None and config.file_config.has_section("loggers"):
        fileConfig(config.file_config, disable_existing_loggers=False)
        if getattr(config.cmd_opts, "quiet", False):
            for name in ("alembic", "langfuse_schema"):
                logging.getLogger(name).setLevel(logging.WARNING)
        # A step that is tried again is announced by Alembic each time.
        logging.getLogger("alembic.runtime.migration").filters = [_said_once()]


def _said_once() -> Callable[[logging.LogRecord], bool]:
    said = set()

    def is_new(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if message in said:
            return False
        said.add(message)
        return True

    return is_new


def shared_options(context: EnvironmentContext) -> dict[str, Any]:
    """What `context.configure` is given online and offline.

    Arguments:
        context: Alembic's, as env.py has it; a command that goes somewhere compares nothing.
    """
    return {
        "target_metadata": None if _has_destination(context) else tables.declared_metadata(),
        "version_table": VERSION_TABLE,
        "version_table_schema": VERSION_SCHEMA,
        "transaction_per_migration": True,
        "include_name": _include_name,
        "include_object": _include_object,
        "compare_server_default": True,
    }


def _has_destination(context: EnvironmentContext) -> bool:
    try:
        context.get_revision_argument()
    except KeyError:
        return False
    return True


def _include_name(name: str | None, kind: str, _parents: Mapping[str, str | None]) -> bool:
    """Whether autogenerate may look at something of the database: only at what is ours."""
    if kind == "table":
        return name in tables.APP_TABLES or name in tables.metadata.tables
    return True


def _include_object(
    item: Any,  # noqa: ANN401 - whatever Alembic compares
    _name: str | None,
    kind: str,
    reflected: bool,
    compare_to: Any,  # noqa: ANN401 - the same
) -> bool:
    """Whether autogenerate compares something: not what the app has in its own tables."""
    if kind == "table":
        return bool(item.schema != "auth")
    of_app = item.table.name in tables.APP_TABLES
    return not (of_app and reflected and compare_to is None)


def run_offline(context: EnvironmentContext, configure: Callable[..., None]) -> None:
    """Print the SQL of a command instead of running it (`--sql`); no database is touched.

    Arguments:
        context: Alembic's, as env.py has it.
        configure: passes options to `context.configure`.
    """
    options = database.parse_options(_arguments(context.config))
    offline: dict[str, Any] = {
        "dialect_name": "postgresql",
        "literal_binds": True,
        # Otherwise every % of the SQL is doubled.
        "dialect_opts": {"paramstyle": "named"},
    }
    configure(**offline)
    steps = context.get_context().opts["fn"]
    configure(**offline, fn=lambda *state: with_discards(steps(*state), context.script))
    from_base = context.get_starting_revision_argument() is None
    context.static_output('-- Run with: psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -f FILE')
    context.static_output("-- Not in one transaction: some indexes are built CONCURRENTLY.\n")
    for setting, value in sessions.session_settings(options).items():
        context.execute(f"SET {setting} = '{value}'")
    context.execute(
        "DO $$ BEGIN PERFORM set_config(name, '0', false) FROM pg_settings"
        " WHERE name = 'transaction_timeout'; END $$"
    )
    if from_base:
        context.execute(version_table.CREATE_SCHEMA)
    with context.begin_transaction():
        context.run_migrations()
    if from_base:
        context.execute(version_table.CLOSE_TABLE)


def run_online(context: EnvironmentContext, configure: Callable[..., None]) -> None:
    """Run a command on a database.

    Arguments:
        context: Alembic's, as env.py has it.
        configure: passes options to `context.configure`.

    Raises:
        SchemaError: the database cannot be reached, or cannot take it.
        SystemExit: Ctrl-C or SIGTERM on the command line.
    """
    config = context.config
    commanded = config.cmd_opts is not None
    with (
        connection_of(config) as connection,
        _telling_where_it_stands(connection, commanded=commanded),
        sessions.errors_for_users("the database"),
    ):
        # We make the version table ourselves: a command that only reads must write nothing.
        configure(connection=connection, dont_mutate=True)
        if "destination_rev" in context.get_context().opts:
            terminal = commanded and sys.stderr.isatty()
            runner.run(
                context,
                configure,
                connection,
                options_of(config),
                terminal=terminal,
                # Snapshots are generated by revisions that have none yet.
                checked=config.attributes.get("checked", True),
            )
        else:
            runner.known_heads(context, connection)
            with context.begin_transaction():
                context.run_migrations()


@contextmanager
def _answering_interrupts(config: Config) -> Iterator[None]:
    """On the command line, Ctrl-C and SIGTERM stop a statement; a program has its own ways."""
    if config.cmd_opts is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    with interruption.interruptible():
        yield


@contextmanager
def _telling_where_it_stands(connection: sa.Connection, *, commanded: bool) -> Iterator[None]:
    """After an interrupt of a command, end with where the database stands, no traceback."""
    try:
        yield
    except BaseException as error:
        interrupt = interruption.find(error) if commanded else None
        if interrupt is None:
            raise
        connection.invalidate()
        log.warning("interrupted; %s", runner.position(connection))
        number = next(iter(interrupt.args), signal.SIGINT)
        raise SystemExit(128 + number) from None


@contextmanager
def connection_of(config: Config, *, only_reading: bool = False) -> Iterator[sa.Connection]:
    """Open the connection of a command, in a transaction with the settings of our sessions.

    Arguments:
        config: Alembic's configuration; it says which database.
        only_reading: whether a program may lend a connection in AUTOCOMMIT mode.

    Raises:
        SchemaError: there is no such database, or it cannot be reached.
    """
    arguments = _arguments(config)
    options = options_of(config)
    given = config.attributes.get("connection")
    target = config.attributes.get("target")
    with ExitStack() as stack:
        stack.enter_context(_answering_interrupts(config))
        if given is not None:
            stack.enter_context(_borrowed(given, options, only_reading=only_reading))
            yield given
        elif isinstance(target, sa.Engine):
            yield stack.enter_context(sessions.connect_engine(target, options))
        else:
            url = stack.enter_context(_url(_source(config, arguments)))
            yield stack.enter_context(sessions.connect(url, options))


def options_of(config: Config) -> Options:
    """Read the options of a run: what a program handed over, or what `-x` says."""
    return config.attributes.get("options") or database.parse_options(_arguments(config))


def _arguments(config: Config) -> dict[str, str]:
    """What `-x name=value` gave; Alembic reads it in env.py only, and our commands need it too."""
    given = getattr(config.cmd_opts, "x", None) or []
    return {name: value for name, _, value in (item.partition("=") for item in given)}


def _source(config: Config, arguments: Mapping[str, str]) -> database.Source:
    target = config.attributes.get("target")
    if target is not None:
        return database.Source(database.parse_url(target, "the URL"), "the calling program")
    try:
        configured = config.get_alembic_option("sqlalchemy.url")
    except InterpolationError:
        finding = Finding(
            "url-invalid",
            "sqlalchemy.url",
            "a single % in the ini file",
            "%% for each %",
            "double it, or leave the ini alone and set DATABASE_URL",
        )
        raise SchemaError([finding]) from None
    return database.find_source(arguments, configured, checkout=checkout() is not None)


def checkout() -> Path | None:
    """The checkout that this package runs from; None if it was installed from a wheel."""
    folder = config_file().parent
    return folder if folder.name != "_scripts" else None


@contextmanager
def _url(source: database.Source) -> Iterator[URL]:
    """The URL of a source, for as long as it is needed: an embedded server stops afterwards."""
    if source.url is not None:
        log.info("database %s (%s)", database.shown(source.url), source.origin)
        yield source.url
        return
    from langfuse_schema import embedded

    try:
        server = embedded.open_default(checkout() or Path.cwd())
    except embedded.EmbeddedError as error:
        raise CommandError(str(error)) from error
    with server:
        log.info("the embedded database in %s (%s)", server.directory, source.origin)
        yield server.url()


@contextmanager
def _borrowed(connection: sa.Connection, options: Options, *, only_reading: bool) -> Iterator[None]:
    """Use a caller's connection, and give it back without a transaction."""
    driver_connection: Any = connection.connection.dbapi_connection
    if connection.in_transaction() or (driver_connection.autocommit and not only_reading):
        finding = Finding(
            "connection-in-transaction",
            'config.attributes["connection"]',
            "a connection in AUTOCOMMIT mode"
            if driver_connection.autocommit
            else "a connection with an open transaction",
            "one on which transactions are ours to begin: each revision has its own, and some"
            " indexes cannot be built in one",
            "use engine.connect() instead of engine.begin(), without AUTOCOMMIT, and commit"
            " before the call",
        )
        raise SchemaError([finding])
    sessions.begin_reading(connection, options)
    try:
        yield
    finally:
        if not (connection.closed or connection.invalidated):
            connection.rollback()
