"""Run a command of Alembic in its env.py: offline as a script, online with the runner."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from contextlib import contextmanager, nullcontext
from logging.config import fileConfig
from typing import TYPE_CHECKING, Any, TextIO

from langfuse_schema._postgres.errors import errors_as_findings
from langfuse_schema._postgres.findings import SchemaError
from langfuse_schema._runtime import alembic_internals, settings, signals
from langfuse_schema._runtime.options import invalid_option
from langfuse_schema._runtime.runner import Checks, Runner, position

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    import sqlalchemy as sa
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext

    from langfuse_schema._postgres.version_table import VersionTable
    from langfuse_schema._runtime.options import Options
    from langfuse_schema._runtime.target import Target

log = logging.getLogger("langfuse_schema")


def configure_logging(config: Config) -> None:
    """Set up logging on the command line. A program that calls a command does that itself."""
    if config.cmd_opts is not None and config.file_config.has_section("loggers"):
        fileConfig(config.file_config, disable_existing_loggers=False)
        if getattr(config.cmd_opts, "quiet", False):
            for name in ("alembic", "langfuse_schema"):
                logging.getLogger(name).setLevel(logging.WARNING)
        # Alembic announces each try of a step.
        logging.getLogger("alembic.runtime.migration").filters = [_first_time()]


def _first_time() -> Callable[[logging.LogRecord], bool]:
    logged = set()

    def is_new(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        new = message not in logged
        logged.add(message)
        return new

    return is_new


def run_offline(
    context: EnvironmentContext,
    configure: Callable[..., None],
    options: Options,
    version_table: VersionTable,
) -> None:
    """Print the SQL of a command (`--sql`). No database is contacted.

    `configure` passes options to `context.configure`.
    """
    offline: dict[str, Any] = {
        "dialect_name": "postgresql",
        "literal_binds": True,
        # Otherwise every % of the SQL is doubled.
        "dialect_opts": {"paramstyle": "named"},
        "output_buffer": _ScriptOutput(context.config.output_buffer or sys.stdout, version_table),
    }
    configure(**offline)
    configure(**offline, fn=alembic_internals.offline_steps(context))
    from_base = context.get_starting_revision_argument() is None
    context.static_output('-- Run with: psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -f FILE')
    context.static_output("-- Not in one transaction: some indexes are built CONCURRENTLY.\n")
    for setting, value in settings.session_settings(options.lock_timeout).items():
        context.execute(f"SET {setting} = '{value}'")
    context.execute(
        "DO $$ BEGIN PERFORM set_config(name, '0', false) FROM pg_settings"
        " WHERE name = 'transaction_timeout'; END $$"
    )
    if from_base:
        context.execute(version_table.create_schema())
    with context.begin_transaction():
        context.run_migrations()
    if from_base:
        context.execute(version_table.close_table())


class _ScriptOutput:
    """The output of a script. A downgrade to base keeps the version table, so it can exist."""

    def __init__(self, output: TextIO, version_table: VersionTable) -> None:
        self._output = output
        self._table = f"CREATE TABLE {version_table} ("

    def write(self, text: str) -> None:
        created = self._table.replace("TABLE", "TABLE IF NOT EXISTS", 1)
        self._output.write(text.replace(self._table, created))

    def flush(self) -> None:
        self._output.flush()


def run_online(
    context: EnvironmentContext,
    configure: Callable[..., None],
    target: Target,
    version_table: VersionTable,
    checks: Checks | None,
) -> None:
    """Run a command on a database.

    `configure` passes options to `context.configure`. Without `checks`, nothing is checked.
    """
    with (
        interrupts(context.config),
        target.connect() as connection,
        _reporting_position(context.config, connection, version_table),
        errors_as_findings(),
    ):
        # The version table is created by the runner: a command that reads must write nothing.
        configure(connection=connection, dont_mutate=True)
        revisions = alembic_internals.destinations(context)
        if revisions is not None:
            _check_destinations(revisions)
            Runner(context, configure, connection, version_table, target.options, checks).run()
            return
        findings = checks.heads(version_table.heads(connection)) if checks else []
        if findings:
            raise SchemaError(*findings)
        with context.begin_transaction():
            context.run_migrations()


def _check_destinations(revisions: tuple[str, ...]) -> None:
    if len(revisions) > 1:
        expected = "one revision, because each one follows another"
        advice = "Name the newest one only."
        raise invalid_option("the revision to stamp", ", ".join(revisions), expected, advice)


def interrupts(config: Config) -> AbstractContextManager[None]:
    """On the command line, let Ctrl-C and SIGTERM interrupt a statement."""
    # Python allows signal handlers in the main thread only.
    in_main_thread = threading.current_thread() is threading.main_thread()
    on_command_line = config.cmd_opts is not None
    return signals.interruptible() if on_command_line and in_main_thread else nullcontext()


@contextmanager
def _reporting_position(
    config: Config, connection: sa.Connection, version_table: VersionTable
) -> Iterator[None]:
    """After an interrupt on the command line, log the state of the database and exit."""
    try:
        yield
    except BaseException as error:
        interrupt = signals.find_interrupt(error)
        if interrupt is None or config.cmd_opts is None:
            raise
        connection.invalidate()
        log.warning("interrupted; %s", position(connection, version_table))
        number = next(iter(interrupt.args), signal.SIGINT)
        raise SystemExit(128 + number) from None
