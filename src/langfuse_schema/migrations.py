"""Alembic's configuration, and a run of its commands over our revisions."""

from __future__ import annotations

import logging
from configparser import InterpolationError
from contextlib import contextmanager
from logging.config import fileConfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import RevisionStep
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import text

from langfuse_schema import database, preflight, tables, verify
from langfuse_schema.database import Options
from langfuse_schema.findings import Finding, Report, SchemaError
from langfuse_schema.preflight import VERSION_SCHEMA, VERSION_TABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from alembic.runtime.environment import EnvironmentContext
    from alembic.runtime.migration import MigrationContext
    from sqlalchemy.engine import URL

log = logging.getLogger("langfuse_schema")

_CREATE_VERSION_SCHEMA = f"""
DO $$
DECLARE
  stranger text;
BEGIN
  IF NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = '{VERSION_SCHEMA}') THEN
    CREATE SCHEMA {VERSION_SCHEMA};
    FOR stranger IN SELECT rolname FROM pg_roles
      WHERE rolname IN ('anon', 'authenticated', 'service_role')
    LOOP
      EXECUTE format('REVOKE ALL ON SCHEMA {VERSION_SCHEMA} FROM %I', stranger);
    END LOOP;
    REVOKE ALL ON SCHEMA {VERSION_SCHEMA} FROM PUBLIC;
  END IF;
END $$"""

_CLOSE_VERSION_TABLE = f"""
DO $$
DECLARE
  stranger text;
BEGIN
  FOR stranger IN SELECT rolname FROM pg_roles
    WHERE rolname IN ('anon', 'authenticated', 'service_role')
  LOOP
    EXECUTE format('REVOKE ALL ON {VERSION_SCHEMA}.{VERSION_TABLE} FROM %I', stranger);
  END LOOP;
  REVOKE ALL ON {VERSION_SCHEMA}.{VERSION_TABLE} FROM PUBLIC;
END $$"""


def config_file() -> Path:
    """Find alembic.ini, with the revisions beside it, in a checkout and in a wheel."""
    packaged = Path(__file__).parent / "_scripts" / "alembic.ini"
    return packaged if packaged.exists() else Path(__file__).parents[2] / "alembic.ini"


def revisions(config: Config | None = None) -> list[str]:
    """List the ids of our revisions, oldest first.

    Arguments:
        config: Alembic's configuration; our own if None.
    """
    script = ScriptDirectory.from_config(config or Config(config_file()))
    return [revision.revision for revision in script.walk_revisions()][::-1]


def upgrade(
    target: str | URL | sa.Engine,
    revision: str = "head",
    *,
    lock_timeout: float = Options.lock_timeout,
    lock_deadline: float = Options.lock_deadline,
) -> None:
    """Upgrade a database from a running program, as `alembic upgrade` does.

    Arguments:
        target: the URL of the database, or an engine; one connection of it is used and closed.
        revision: where to go; `head`, a revision id, or relative as in `+1`.
        lock_timeout: the longest wait for locks at a time, in seconds.
        lock_deadline: how long to go on retrying, in seconds.

    Raises:
        SchemaError: the database cannot take it; nothing was changed.
        CommandError: Alembic does not know the revision.
    """
    command.upgrade(_config(target, Options(lock_timeout, lock_deadline)), revision)


def downgrade(
    target: str | URL | sa.Engine,
    revision: str,
    *,
    lock_timeout: float = Options.lock_timeout,
    lock_deadline: float = Options.lock_deadline,
) -> None:
    """Downgrade a database from a running program, as `alembic downgrade` does.

    Arguments and errors are those of `upgrade`; `revision` is `base`, an id, or as in `-1`.
    """
    command.downgrade(_config(target, Options(lock_timeout, lock_deadline)), revision)


def stamp(target: str | URL | sa.Engine, revision: str) -> None:
    """Write a revision into the version table without running anything, as `alembic stamp` does.

    Arguments:
        target: the URL of the database, or an engine; one connection of it is used and closed.
        revision: `head`, `base` or an id.

    Raises:
        SchemaError: the database cannot be reached, or not written to.
    """
    command.stamp(_config(target, Options()), revision)


def config_for(target: str | URL | sa.Engine | sa.Connection) -> Config:
    """Make the configuration for a running program's database.

    Arguments:
        target: the URL of the database, an engine, or a connection without an open transaction.
    """
    if isinstance(target, sa.Connection):
        return Config(config_file(), attributes={"connection": target})
    return _config(target, Options())


def _config(target: str | URL | sa.Engine, options: Options) -> Config:
    attributes = {"target": target, "options": options}
    return Config(config_file(), attributes=attributes)


def configure_logging(config: Config) -> None:
    """Set up logging on the command line; a program that calls us has its own."""
    if config.cmd_opts is not None and config.file_config.has_section("loggers"):
        fileConfig(config.file_config, disable_existing_loggers=False)


def shared_options() -> dict[str, Any]:
    """What `context.configure` is given online and offline."""
    return {
        "target_metadata": tables.declared_metadata(),
        "version_table": VERSION_TABLE,
        "version_table_schema": VERSION_SCHEMA,
        "transaction_per_migration": True,
        "include_name": _include_name,
        "include_object": _include_object,
        "compare_server_default": True,
    }


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
    configure(
        dialect_name="postgresql",
        literal_binds=True,
        # Otherwise every % of the SQL is doubled.
        dialect_opts={"paramstyle": "named"},
    )
    from_base = context.get_starting_revision_argument() is None
    context.static_output('-- Run with: psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -f FILE')
    context.static_output("-- Not in one transaction: some indexes are built CONCURRENTLY.\n")
    for setting, value in database.session_settings(options).items():
        context.execute(f"SET {setting} = {value}")
    if from_base:
        context.execute(_CREATE_VERSION_SCHEMA)
    with context.begin_transaction():
        context.run_migrations()
    if from_base:
        context.execute(_CLOSE_VERSION_TABLE)


def run_online(context: EnvironmentContext, configure: Callable[..., None]) -> None:
    """Run a command on a database.

    Arguments:
        context: Alembic's, as env.py has it.
        configure: passes options to `context.configure`.

    Raises:
        SchemaError: the database cannot be reached, or cannot take it.
    """
    with _connection(context.config) as connection, database.errors_for_users("the database"):
        # We make the version table ourselves: a command that only reads must write nothing.
        configure(connection=connection, dont_mutate=True)
        migration_context = context.get_context()
        heads = _known_heads(context, migration_context)
        writing = "destination_rev" in migration_context.opts
        if writing and not _prepare(migration_context, heads, connection):
            return
        with context.begin_transaction():
            context.run_migrations()


def _known_heads(
    context: EnvironmentContext, migration_context: MigrationContext
) -> tuple[str, ...]:
    """The revision of the database; none if the command is about to erase it anyway."""
    if migration_context.opts.get("purge"):
        return ()
    heads = migration_context.get_current_heads()
    known = revisions(context.config)
    for head in heads:
        if head not in known:
            raise SchemaError([preflight.unknown_revision(head, known)])
    return heads


def _prepare(
    migration_context: MigrationContext, heads: tuple[str, ...], connection: sa.Connection
) -> bool:
    """Check before anything is written; False if there is nothing to do."""
    purging = bool(migration_context.opts.get("purge"))
    steps = list(migration_context.opts["fn"](heads, migration_context))
    upgrades = [step for step in steps if isinstance(step, RevisionStep) and step.is_upgrade]
    if len(upgrades) == len(steps):
        pending = [step.revision.revision for step in upgrades]
        findings = preflight.check(connection, heads, pending)
    else:
        findings = preflight.check_writable(connection)
    connection.rollback()
    if findings:
        raise SchemaError(findings)
    if steps or purging:
        _create_version_table(connection)
    return bool(steps or purging)


def preflight_report(config: Config) -> Report:
    """Look at a database as an upgrade to head would, without changing anything.

    Arguments:
        config: Alembic's configuration; it says which database.

    Raises:
        SchemaError: the database cannot be reached, or not read.
    """
    known = revisions(config)
    with _connection(config) as connection, database.errors_for_users("the database"):
        applied = preflight.applied_revision(connection)
        facts = preflight.facts(connection)
        if applied is not None and applied not in known:
            findings = [preflight.unknown_revision(applied, known)]
        else:
            pending = known[known.index(applied) + 1 :] if applied else known
            findings = preflight.check(connection, [applied] if applied else [], pending)
        return Report(applied, tuple(findings), facts)


def verify_report(config: Config, revision: str = "head") -> Report:
    """Compare a database with what the revisions make, without changing anything.

    Arguments:
        config: Alembic's configuration; it says which database.
        revision: where the database should be: `head`, or a revision id.

    Raises:
        SchemaError: the database cannot be reached or not read, or a migration is running.
        CommandError: there is no such revision.
    """
    script = ScriptDirectory.from_config(config)
    known = [found.revision for found in script.walk_revisions()][::-1]
    target = script.get_revision(revision)
    if target is None:
        raise CommandError(f"verify compares with a revision, not with {revision}")
    with _connection(config) as connection, database.errors_for_users("the database"):
        return verify.report(connection, known, target.revision)


def _create_version_table(connection: sa.Connection) -> None:
    connection.execute(text(_CREATE_VERSION_SCHEMA))
    connection.execute(
        text(
            f"CREATE TABLE IF NOT EXISTS {VERSION_SCHEMA}.{VERSION_TABLE} ("
            "version_num VARCHAR(32) NOT NULL,"
            f" CONSTRAINT {VERSION_TABLE}_pkc PRIMARY KEY (version_num))"
        )
    )
    connection.execute(text(_CLOSE_VERSION_TABLE))
    connection.commit()


@contextmanager
def _connection(config: Config) -> Iterator[sa.Connection]:
    """The connection of a command, with the settings of our sessions."""
    arguments = _arguments(config)
    options = config.attributes.get("options") or database.parse_options(arguments)
    given = config.attributes.get("connection")
    target = config.attributes.get("target")
    if given is not None:
        with _borrowed(given, options):
            yield given
    elif isinstance(target, sa.Engine):
        with database.connect_engine(target, options) as connection:
            yield connection
    else:
        with _url(_source(config, arguments)) as url, database.connect(url, options) as connection:
            yield connection


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
        shown = source.url.render_as_string(hide_password=True)
        log.info("database %s (%s)", shown, source.origin)
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
def _borrowed(connection: sa.Connection, options: Options) -> Iterator[None]:
    """Use a caller's connection, and give it back with the settings it came with."""
    if connection.in_transaction():
        finding = Finding(
            "connection-in-transaction",
            'config.attributes["connection"]',
            "a connection with an open transaction",
            "one without: each revision has its own, and some indexes cannot be built in one",
            "use engine.connect() instead of engine.begin(), and commit before the call",
        )
        raise SchemaError([finding])
    before = database.set_session(connection, options)
    try:
        yield
    finally:
        connection.rollback()
        database.restore_session(connection, before)
