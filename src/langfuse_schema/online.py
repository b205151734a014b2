"""Run the revisions of any Alembic environment on a PostgreSQL database that is in use."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from langfuse_schema._postgres.findings import Finding, SchemaError, finding
from langfuse_schema._postgres.urls import EXAMPLE
from langfuse_schema._runtime import alembic_internals, environment, settings
from langfuse_schema._runtime.caller import only_command
from langfuse_schema._runtime.checks import Checks
from langfuse_schema._runtime.options import Options, invalid_option
from langfuse_schema._runtime.runner import Runner
from langfuse_schema._runtime.target import check_driver

if TYPE_CHECKING:
    from types import ModuleType

    from alembic.runtime.environment import EnvironmentContext

__all__ = ["Checks", "Finding", "SchemaError", "run_migrations"]


def run_migrations(  # noqa: PLR0913 - the options of a run
    context: ModuleType | EnvironmentContext,
    connection: sa.Connection,
    *,
    lock_timeout: float = Options.lock_timeout,
    lock_deadline: float = Options.lock_deadline,
    idle_in_transaction_timeout: float | None = None,
    idle_session_timeout: float | None = None,
    checks: Checks | None = None,
    **configure: Any,  # noqa: ANN401 - passed on to Alembic
) -> None:
    """Run a command of Alembic in env.py, with one runner at a time and bounded lock waits.

    It replaces `context.configure` and `context.run_migrations` in the online part of env.py. A
    revision whose lock is not available is rolled back and run again, with its Python code.
    Commands that write no revision, such as `current` and `check`, take no lock.

    `alembic.context` and `alembic.op` exist once in a process, so it can run one command at a time.
    If another thread runs one, this one raises an error before it touches a database.

    Arguments:
        context: `alembic.context`.
        connection: of psycopg2 or psycopg, without an open transaction. It is left without one.
        lock_timeout: the longest wait for locks at a time, in seconds.
        lock_deadline: how long to retry, and to wait for another runner, in seconds.
        idle_in_transaction_timeout: the longest pause between two statements of a revision, in
            seconds. 0 is no limit, and None keeps the limit of the role.
        idle_session_timeout: the longest pause between two transactions, like the former.
        checks: called before the first revision; None to run without.
        configure: the other options of `context.configure`, such as `target_metadata`.

    Raises:
        SchemaError: the run was refused or stopped; completed revisions are kept.
    """
    times = (lock_timeout, lock_deadline, idle_in_transaction_timeout, idle_session_timeout)
    options = Options(*times)
    with only_command(context) as environment_context:
        _check_options(environment_context, configure)
        _check_connection(connection)
        _run(environment_context, connection, options, checks, configure)


def _run(
    environment_context: EnvironmentContext,
    connection: sa.Connection,
    options: Options,
    checks: Checks | None,
    configure: dict[str, Any],
) -> None:

    def configure_context(**changes: Any) -> None:  # noqa: ANN401 - as above
        environment_context.configure(connection=connection, **{**configure, **changes})

    with environment.logging_enabled(environment_context.config):
        # A command that reads must write nothing, not even the version table.
        configure_context(dont_mutate=True)
        with (
            alembic_internals.options_restored(environment_context),
            environment.interruptible_run(environment_context, connection),
        ):
            revisions = alembic_internals.destinations(environment_context)
            if revisions is None:
                _read(environment_context, checks)
                return
            findings = checks.destinations(revisions) if checks else []
            findings = findings or _transaction(connection)
            if findings:
                raise SchemaError(*findings)
            configure["transaction_per_migration"] = True
            Runner(environment_context, configure_context, connection, options, checks).run()


def _read(context: EnvironmentContext, checks: Checks | None) -> None:
    """Run a command that only reads, as Alembic does."""
    findings = checks.heads(alembic_internals.recorded_heads(context)) if checks else []
    if findings:
        raise SchemaError(*findings)
    with context.begin_transaction():
        context.run_migrations()


_TIMES = (
    *("lock_timeout", "lock_deadline"),
    *("idle_in_transaction_timeout", "idle_session_timeout"),
)
"""The options of `run_migrations` that Alembic would accept under a misspelt name."""


def _check_options(context: EnvironmentContext, configure: dict[str, Any]) -> None:
    if context.is_offline_mode():
        expected = "a command without --sql"
        advice = (
            "Call it in run_migrations_online() only. The offline part of env.py stays as it is."
        )
        raise invalid_option("run_migrations", "offline mode", expected, advice)
    for name in configure:
        for nearest in get_close_matches(name, _TIMES, 1, 0.8):
            raise invalid_option(name, name, nearest, f"Write it as {nearest}.")
    if configure.get("as_sql"):
        advice = "Remove as_sql from the call. To print SQL, use the command with --sql."
        raise invalid_option("as_sql", "True", "a run with a connection", advice)
    for name in ("transaction_per_migration", "transactional_ddl"):
        if configure.get(name) is False:
            expected = "True: a revision is retried and resumed in its own transaction"
            advice = f"Remove {name} from the call of run_migrations."
            raise invalid_option(name, "False", expected, advice)


def _check_connection(connection: object) -> None:
    if not isinstance(connection, sa.Connection):
        expected = "a connection of SQLAlchemy, as of engine.connect()"
        advice = "Pass the connection that env.py passes to context.configure()."
        raise invalid_option("connection", type(connection).__name__, expected, advice)
    dialect = connection.dialect
    if dialect.name != "postgresql":
        values = {"dialect": dialect.name, "example": EXAMPLE}
        raise SchemaError(finding("url-not-postgresql", "the engine", **values))
    check_driver(connection.engine)


def _transaction(connection: sa.Connection) -> list[Finding]:
    """Check that Alembic can begin and end transactions on a connection."""
    driver_connection: Any = connection.connection.dbapi_connection
    autocommit = driver_connection.autocommit
    in_transaction = connection.in_transaction() and not settings.applied_locally(connection)
    if not (autocommit or in_transaction):
        return []
    found = f"a connection {'in AUTOCOMMIT mode' if autocommit else 'in a transaction'}"
    return [finding("connection-in-transaction", "the connection", found=found)]
