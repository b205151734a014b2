"""What an env.py needs beside the runner: logging, interrupts, and scripts (`--sql`)."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from contextlib import contextmanager, nullcontext
from io import StringIO
from logging.config import fileConfig
from typing import TYPE_CHECKING, Any, TextIO

from langfuse_schema._runtime import alembic_internals, settings, signals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    import sqlalchemy as sa
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext

    from langfuse_schema._postgres.version_table import VersionTable
    from langfuse_schema._runtime.options import Options

log = logging.getLogger("langfuse_schema")


OFFLINE: dict[str, Any] = {
    "dialect_name": "postgresql",
    "literal_binds": True,
    # Otherwise every % of the SQL is doubled.
    "dialect_opts": {"paramstyle": "named"},
}
"""Options of `context.configure` that render SQL."""


def configure_logging(config: Config) -> None:
    """Set up logging on the command line. A program that calls a command does that itself."""
    if config.cmd_opts is not None and config.file_config.has_section("loggers"):
        fileConfig(config.file_config, disable_existing_loggers=False)
        if getattr(config.cmd_opts, "quiet", False):
            for name in ("alembic", "langfuse_schema"):
                logging.getLogger(name).setLevel(logging.WARNING)


def run_offline(
    context: EnvironmentContext,
    configure: Callable[..., None],
    options: Options,
    version_table: VersionTable,
) -> None:
    """Print the SQL of a command (`--sql`). No database is contacted.

    `configure` passes options to `context.configure`.
    """
    script = _Script(version_table)
    offline = {**OFFLINE, "output_buffer": script}
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
    output: TextIO = context.config.output_buffer or sys.stdout
    output.write(script.getvalue())
    output.flush()


class _Script(StringIO):
    """A script, which is printed once it is complete.

    A downgrade to base keeps the version table, so it can exist.
    """

    def __init__(self, version_table: VersionTable) -> None:
        super().__init__()
        self._table = f"CREATE TABLE {version_table} ("

    def write(self, text: str) -> int:
        created = self._table.replace("TABLE", "TABLE IF NOT EXISTS", 1)
        return super().write(text.replace(self._table, created))


@contextmanager
def interruptible_run(context: EnvironmentContext, connection: sa.Connection) -> Iterator[None]:
    """On the command line, end a run at once on Ctrl-C or SIGTERM, with the state it reached."""
    with interrupts(context.config):
        try:
            yield
        except BaseException as error:
            interrupt = signals.find_interrupt(error)
            if interrupt is None or context.config.cmd_opts is None:
                raise
            read_heads = alembic_internals.heads_reader(context)
            connection.invalidate()
            log.warning("interrupted; %s", _position(connection.engine, read_heads))
            number = next(iter(interrupt.args), signal.SIGINT)
            raise SystemExit(128 + number) from None


def _position(engine: sa.Engine, read_heads: Callable[[sa.Connection], tuple[str, ...]]) -> str:
    """Return the state of the database, read with another connection."""

    def read() -> str:
        with engine.connect() as second:
            return ", ".join(read_heads(second)) or "base"

    reached = signals.call_briefly(read)
    known = f"the database is at {reached}; " if reached else ""
    return f"{known}run the same command again to resume"


def interrupts(config: Config) -> AbstractContextManager[None]:
    """On the command line, let Ctrl-C and SIGTERM interrupt a statement."""
    # Python allows signal handlers in the main thread only.
    in_main_thread = threading.current_thread() is threading.main_thread()
    on_command_line = config.cmd_opts is not None
    return signals.interruptible() if on_command_line and in_main_thread else nullcontext()


@contextmanager
def logging_enabled(config: Config) -> Iterator[None]:
    """Let the messages of a run appear. `fileConfig` in env.py disables existing loggers."""
    former = (log.disabled, log.level)
    alembic_log = logging.getLogger("alembic.runtime.migration")
    # Alembic announces each try of a step.
    repeated = _first_time()
    log.disabled = False
    if config.cmd_opts is not None:
        alembic_log.addFilter(repeated)
        if log.level == logging.NOTSET and not getattr(config.cmd_opts, "quiet", False):
            log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.disabled, level = former
        log.setLevel(level)
        alembic_log.removeFilter(repeated)


def _first_time() -> Callable[[logging.LogRecord], bool]:
    logged = set()

    def is_new(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        new = message not in logged
        logged.add(message)
        return new

    return is_new
