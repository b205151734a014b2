"""Run the revisions from a program: upgrade, downgrade, stamp, preflight."""

from __future__ import annotations

import logging
from configparser import InterpolationError
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alembic import command
from alembic.config import Config

from langfuse_schema import tables
from langfuse_schema._checks import autogenerate, plan
from langfuse_schema._checks import preflight as checks
from langfuse_schema._checks.table_locks import holders
from langfuse_schema._history.chain import VERSION_TABLE, History, Position, config_file
from langfuse_schema._postgres.errors import errors_as_findings
from langfuse_schema._postgres.findings import Finding, Report, SchemaError, exit_code, finding
from langfuse_schema._postgres.terminal import print_findings
from langfuse_schema._runtime import environment, pooler_detection, settings
from langfuse_schema._runtime.alembic_internals import (
    has_destination,
    is_current,
    x_arguments,
)
from langfuse_schema._runtime.caller import nested_command
from langfuse_schema._runtime.options import Options, parse_options
from langfuse_schema._runtime.target import Embedded, Target, configured_url
from langfuse_schema.online import run_migrations

if TYPE_CHECKING:
    from collections.abc import Iterator

    import sqlalchemy as sa
    from alembic.runtime.environment import EnvironmentContext
    from sqlalchemy.engine import URL

log = logging.getLogger("langfuse_schema")

__all__ = [
    "Finding",
    "Report",
    "SchemaError",
    "downgrade",
    "preflight",
    "stamp",
    "upgrade",
]


def upgrade(
    target: str | URL | sa.Engine,
    revision: str = "head",
    *,
    lock_timeout: float = Options.lock_timeout,
    lock_deadline: float = Options.lock_deadline,
) -> None:
    """Upgrade a database, as `langfuse-schema upgrade` does.

    Arguments:
        target: the URL of the database, or an engine; one connection of it is used and closed.
        revision: `head`, a revision id, or relative as in `+1`.
        lock_timeout: the longest wait for locks at a time, in seconds.
        lock_deadline: how long to retry, in seconds.

    Raises:
        SchemaError: the upgrade cannot run or was stopped; completed steps are kept.
        CommandError: there is no such revision.
    """
    config = config_for(target, Options(lock_timeout, lock_deadline))
    with nested_command():
        command.upgrade(config, revision)


def downgrade(
    target: str | URL | sa.Engine,
    revision: str,
    *,
    lock_timeout: float = Options.lock_timeout,
    lock_deadline: float = Options.lock_deadline,
) -> None:
    """Downgrade a database, as `langfuse-schema downgrade` does.

    Arguments:
        target: as for `upgrade`.
        revision: `base`, a revision id, or relative as in `-1`.
        lock_timeout: as for `upgrade`.
        lock_deadline: as for `upgrade`.

    Raises:
        SchemaError: the downgrade cannot run or was stopped; completed steps are kept.
        CommandError: there is no such revision.
    """
    config = config_for(target, Options(lock_timeout, lock_deadline))
    with nested_command():
        command.downgrade(config, revision)


def stamp(target: str | URL | sa.Engine, revision: str) -> None:
    """Record a revision without running anything, as `langfuse-schema stamp` does.

    Arguments:
        target: as for `upgrade`.
        revision: `head`, `base` or a revision id.

    Raises:
        SchemaError: the database cannot be reached or written.
        CommandError: there is no such revision.
    """
    config = config_for(target)
    with nested_command():
        command.stamp(config, revision)


def preflight(target: str | URL | sa.Engine | sa.Connection) -> Report:
    """Check whether an upgrade to head would succeed, as `langfuse-schema preflight` does.

    Arguments:
        target: the URL of the database, an engine, or a connection without an open transaction.

    Returns:
        The errors and warnings, facts about the database, and the plan of the upgrade.

    Raises:
        SchemaError: the database cannot be reached or read.
    """
    config = config_for(target)
    with nested_command(only_reading=True):
        return preflight_report(config)


def preflight_report(config: Config) -> Report:
    """Run `preflight` with a configuration of Alembic.

    Raises:
        SchemaError: the database cannot be reached or read.
    """
    history = History.of(config)
    target = target_of(config)
    with target.connect() as connection, errors_as_findings(connection):
        heads = VERSION_TABLE.heads(connection)
        applied = next(iter(heads), None)
        findings = checks.UpgradeChecks(history).heads(heads)
        upgrade = None if findings else Position(history, applied, history.after(applied))
        facts = plan.facts(connection, upgrade)
        if upgrade is not None:
            findings = checks.check(connection, upgrade)
            connection.rollback()
            if upgrade.pending:
                findings += pooler_detection.detect(connection)
                if facts["locks_readable"]:
                    findings += holders(connection, upgrade, target.options.lock_timeout)
        return Report(applied, tuple(findings), facts)


def revisions(config: Config | None = None) -> list[str]:
    """Return the ids of the revisions, oldest first.

    Arguments:
        config: of Alembic; the packaged revisions if None.
    """
    return list(History.of(config or Config(config_file())).revisions)


def config_for(target: object, options: Options | None = None) -> Config:
    """Return the configuration of Alembic for a program's database.

    Raises:
        SchemaError: it is not a database, or not a PostgreSQL one.
    """
    return Config(config_file(), attributes={"target": Target.of(target, options)})


def target_of(config: Config) -> Target:
    """Return the database of a command.

    Raises:
        SchemaError: none is configured, or an option is invalid.
    """
    target = config.attributes.get("target")
    if isinstance(target, Target):
        return target
    arguments = x_arguments(config)
    options = parse_options(arguments)
    connection = config.attributes.get("connection")
    if connection is not None:
        return Target.of(connection, options)
    in_checkout = checkout(config)
    source = configured_url(arguments, _ini_url(config), checkout=in_checkout is not None)
    if source.url is not None:
        return Target(source.url, options, source.origin)
    return Target(Embedded(source.origin, lambda: _embedded(in_checkout or Path.cwd())), options)


def _ini_url(config: Config) -> str | None:
    try:
        return config.get_alembic_option("sqlalchemy.url")
    except InterpolationError:
        found = "a single % in the ini file"
        raise SchemaError(
            finding("url-invalid", "sqlalchemy.url", found=found, expected="%% for each %")
        ) from None


@contextmanager
def _embedded(base: Path) -> Iterator[tuple[str, URL]]:
    from langfuse_schema.embedded.opening import open_default

    with open_default(base) as server:
        yield str(server.directory), server.url()


def checkout(config: Config) -> Path | None:
    """Return the checkout whose alembic.ini a command uses; None for the packaged one."""
    folder = Path(config.config_file_name or config_file()).resolve().parent
    return folder if (folder / "src" / "langfuse_schema").is_dir() else None


def run_environment(context: EnvironmentContext) -> None:
    """Run a command of Alembic over the revisions: the content of this package's env.py.

    Arguments:
        context: Alembic's, in env.py.
    """
    config = context.config
    environment.configure_logging(config)

    def configure(**options: Any) -> None:  # noqa: ANN401 - passed on to Alembic
        context.configure(**_shared_options(context), **options)

    # Snapshots are generated by revisions that have none yet.
    checked = config.attributes.get("checked", True)
    upgrade_checks = checks.UpgradeChecks if checked else checks.NoChecks
    with _exit_with_findings(config):
        if context.is_offline_mode():
            options = parse_options(x_arguments(config))
            environment.run_offline(context, configure, options, VERSION_TABLE)
            return
        target = target_of(config)
        with (
            environment.interrupts(config),
            # Before a command that writes, the runner begins the transaction.
            target.connect(bare=has_destination(context)) as connection,
            errors_as_findings(connection, lambda: VERSION_TABLE.check_privileges(connection)),
        ):
            run_migrations(
                context,
                connection,
                lock_timeout=target.options.lock_timeout,
                lock_deadline=target.options.lock_deadline,
                idle_in_transaction_timeout=settings.IDLE_IN_TRANSACTION_SECONDS,
                idle_session_timeout=settings.IDLE_SECONDS,
                checks=upgrade_checks(History(context.script)),
                **_shared_options(context),
            )
            if is_current(context) and not VERSION_TABLE.heads(connection):
                log.info("No revision is recorded.")
        if has_destination(context) and target.is_default_embedded:
            log.warning("migrated the embedded database, because DATABASE_URL is not set")


@contextmanager
def _exit_with_findings(config: Config) -> Iterator[None]:
    """On the command line, print findings to stderr and exit. Alembic would use stdout."""
    try:
        yield
    except SchemaError as error:
        if config.cmd_opts is None or config.cmd_opts.raiseerr:
            raise
        print_findings(error.findings)
        raise SystemExit(exit_code(error.findings)) from None


def _shared_options(context: EnvironmentContext) -> dict[str, Any]:
    return {
        # A command that writes compares nothing.
        "target_metadata": None if has_destination(context) else tables.declared_metadata(),
        "version_table": VERSION_TABLE.name,
        "version_table_schema": VERSION_TABLE.schema,
        "include_name": autogenerate.is_table_of_check,
        "include_object": autogenerate.is_object_of_check,
        "compare_server_default": True,
    }
