"""Our revisions from a running program: upgrade, downgrade, stamp, and two ways to look."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError

from langfuse_schema import (
    database,
    environment,
    pooling,
    sessions,
    version_table,
)
from langfuse_schema._checks import drift, preflight
from langfuse_schema._checks.pending import PendingUpgrade
from langfuse_schema._checks.transactions import long_transactions
from langfuse_schema._history.chain import History
from langfuse_schema._postgres.findings import Finding, Report, SchemaError
from langfuse_schema.database import Options

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

    from langfuse_schema._history.snapshots import Tables


def revisions(config: Config | None = None) -> list[str]:
    """List the ids of our revisions, oldest first.

    Arguments:
        config: Alembic's configuration; our own if None.
    """
    return list(History.of(config or Config(environment.config_file())).revisions)


def schema_at(revision: str) -> Tables:
    """Return the tables after a revision, by `schema.table`.

    Arguments:
        revision: `head`, or a revision id.

    Raises:
        CommandError: there is no such revision.
    """
    history = History.of(Config(environment.config_file()))
    return history.schema(history.resolve(revision))


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
        return Config(environment.config_file(), attributes={"connection": target})
    return _config(target, Options())


def _config(target: str | URL | sa.Engine, options: Options) -> Config:
    if not isinstance(target, str | sa.URL | sa.Engine):
        finding = Finding(
            "url-missing",
            "the database to work on",
            repr(target) if target is None else f"a {type(target).__name__}",
            "a URL, or an engine of SQLAlchemy (not an asynchronous one, whose URL will do)",
            "if it came from an environment variable, set that",
        )
        raise SchemaError([finding])
    if isinstance(target, sa.Engine):
        database.parse_url(target.url, "the engine")
    attributes = {"target": target, "options": options}
    return Config(environment.config_file(), attributes=attributes)


def preflight_report(config: Config) -> Report:
    """Look at a database as an upgrade to head would, without changing anything.

    Arguments:
        config: Alembic's configuration; it says which database.

    Raises:
        SchemaError: the database cannot be reached, or not read.
    """
    history = History.of(config)
    with environment.connection_of(config) as connection, sessions.errors_for_users("the database"):
        heads = version_table.heads(connection)
        applied = next(iter(heads), None)
        facts = preflight.facts(connection, history.schema(history.head))
        findings = preflight.check_heads(heads, history)
        if not findings:
            upgrade = PendingUpgrade(history, applied, history.after(applied))
            findings = preflight.check(connection, upgrade)
            connection.rollback()
            if upgrade.revisions:
                findings += pooling.find(connection)
                timeout = environment.options_of(config).lock_timeout
                findings += long_transactions(connection, upgrade, timeout)
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
    history = History.of(config)
    target = history.resolve(revision)
    if target is None:
        raise CommandError(f"verify compares with a revision, not with {revision}")
    with (
        environment.connection_of(config, only_reading=True) as connection,
        sessions.errors_for_users("the database"),
    ):
        return drift.report(connection, history, target, environment.options_of(config))
