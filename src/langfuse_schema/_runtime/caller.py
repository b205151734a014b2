"""The transaction of another Alembic environment in which a program calls a command.

The command uses a second connection. If it waits for a lock of the calling transaction, neither
of the two can continue, and PostgreSQL sees no deadlock.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from langfuse_schema._postgres.findings import SchemaError, finding
from langfuse_schema._runtime import alembic_internals

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from types import ModuleType

    from alembic.runtime.environment import EnvironmentContext
    from sqlalchemy import Connection

    from langfuse_schema._postgres.findings import Finding

_SESSION = "SELECT pg_backend_pid(), pg_postmaster_start_time()"

_CHANGED_TABLES = """
SELECT n.nspname || '.' || c.relname FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE l.pid = pg_backend_pid() AND l.mode = 'AccessExclusiveLock' AND c.relkind IN ('r', 'p')
ORDER BY 1
"""


@dataclass(frozen=True)
class Caller:
    """A session with an open transaction, in which a command was called.

    Attributes:
        connection: the connection of the calling environment.
        pid: its backend.
        server_started: when its server started. Another server can have the same pid.
    """

    connection: Connection
    pid: int
    server_started: datetime

    def holds(self, place: str, **state: str) -> Finding:
        """Return the finding that this transaction holds a table or a lock."""
        return finding("caller-transaction-open", place, pid=self.pid, **state)

    def explained(self, error: SchemaError) -> SchemaError:
        """Return an error that names this transaction, if it hides or locks the affected tables.

        A table that it has created is missing to every other session.
        """
        changed = list(self.connection.exec_driver_sql(_CHANGED_TABLES).scalars())
        busy = any(one.code == "database-busy" for one in error.findings)
        missing = [one.object for one in error.findings if one.code.endswith("-missing")]
        affected = changed if busy else missing
        held = [self.holds(name) for name in affected if name in changed]
        return SchemaError(*held) if held else error


_one_command = threading.RLock()

_current: ContextVar[Caller | None] = ContextVar("langfuse_schema_caller", default=None)


def current() -> Caller | None:
    """Return the transaction in which the running command was called; None if there is none."""
    return _current.get()


@contextmanager
def nested_command(*, only_reading: bool = False) -> Iterator[None]:
    """Run a command, possibly inside another one, and restore Alembic's globals.

    Commands that write run one after the other in a process, because these globals exist once.

    Raises:
        SchemaError: the outer command is in offline mode, or its transaction blocks this one.
    """
    environment = alembic_internals.running_environment()
    if environment is not None and environment.is_offline_mode() and not only_reading:
        raise SchemaError(finding("caller-offline", "the calling environment"))
    calling = _caller(alembic_internals.connection_of(environment)) if environment else None
    token = _current.set(calling)
    try:
        # A command that only reads does not use the globals.
        with nullcontext() if only_reading else _own_globals():
            yield
    except SchemaError as error:
        explained = calling.explained(error) if calling else error
        if explained is error:
            raise
        raise explained from error
    finally:
        _current.reset(token)


@contextmanager
def only_command(context: ModuleType | EnvironmentContext) -> Iterator[EnvironmentContext]:
    """Run the online part of env.py, unless another thread runs a command.

    Yields:
        The environment of the command in this thread.

    Raises:
        SchemaError: Alembic's globals are those of another thread, or another thread uses them.
    """
    environment = alembic_internals.own_environment(context)
    if environment is None or not _one_command.acquire(blocking=False):
        raise SchemaError(finding("command-in-thread", "this process"))
    try:
        with alembic_internals.kept_installed(environment):
            yield environment
    finally:
        _one_command.release()


@contextmanager
def _own_globals() -> Iterator[None]:
    with _one_command, alembic_internals.preserved_proxies():
        yield


def _caller(connection: Connection | None) -> Caller | None:
    # A query would begin a transaction, which Alembic would then take for the caller's.
    if connection is None or not connection.in_transaction():
        return None
    try:
        pid, server_started = connection.exec_driver_sql(_SESSION).one()
    except DBAPIError:
        # A statement failed in the transaction, and the caller handles that error.
        return None
    return Caller(connection, pid, server_started)
