"""One runner at a time, by an advisory lock of the session on the migrating connection.

The lock lives as long as the backend: if the client of a run is killed, the next runner waits until
its backend has ended. A runner polls and commits after each attempt. A wait inside pg_advisory_lock
would be an open transaction, for which an index build of the holder waits.
https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from langfuse_schema._postgres.findings import SchemaError, finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

log = logging.getLogger("langfuse_schema")

# Two numbers: locks with one number never collide with these.
_CLASS, _OBJECT = 0x6C616E67, 0x66757365

_POLL_SECONDS = 0.2
_REMINDER_SECONDS = 30.0

HOLDER_QUERY = (
    "SELECT a.pid, a.usename, a.application_name, a.backend_start, a.state, a.query"
    " FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid"
    f" WHERE l.locktype = 'advisory' AND l.classid = {_CLASS} AND l.objid = {_OBJECT}"
    " AND l.objsubid = 2 AND l.granted"
    " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)
"""Reads the session that holds the runner lock of this database."""

# Acquired twice, so that a holder can release it once, as a proof, without losing it. Reading
# pg_locks before every step would read each lock of the whole server.
_ACQUIRE = f"pg_try_advisory_lock({_CLASS}, {_OBJECT})"
_RELEASE = f"pg_advisory_unlock({_CLASS}, {_OBJECT})"
_ACQUIRE_TWICE = f"SELECT CASE WHEN {_ACQUIRE} THEN {_ACQUIRE} ELSE false END"
_PROVE = f"SELECT CASE WHEN {_RELEASE} THEN {_ACQUIRE} ELSE false END"
_RELEASE_TWICE = f"SELECT {_RELEASE}, {_RELEASE}"


@contextmanager
def runner_lock(connection: Connection, deadline: float) -> Iterator[None]:
    """Hold the runner lock. Wait for another runner for at most `deadline` seconds.

    The migrating connection has no open transaction, and is left without one.
    """
    _acquire(connection, deadline)
    try:
        yield
    finally:
        if not (connection.closed or connection.invalidated):
            connection.rollback()
            connection.exec_driver_sql(_RELEASE_TWICE)
            connection.commit()


def ensure_held(connection: Connection) -> None:
    """Check that the current backend holds the runner lock: a pooler can choose another one."""
    if not connection.exec_driver_sql(_PROVE).scalar():
        backend = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
        row = connection.exec_driver_sql(HOLDER_QUERY).first()
        values = {"backend": backend, "holder": f"pid {row.pid}" if row else "no session"}
        raise SchemaError(finding("runner-lock-lost", "the runner lock", **values))


def _acquire(connection: Connection, deadline: float) -> None:
    started, logged_at = time.monotonic(), float("-inf")
    while not _try(connection):
        now = time.monotonic()
        if now - started >= deadline:
            holder = f"it is held by {_holder(connection) or 'a session that has ended'}"
            values = {"waited": f"{now - started:.0f}", "holder": holder, "query": HOLDER_QUERY}
            raise SchemaError(finding("another-runner", "the runner lock", **values))
        if now - logged_at >= _REMINDER_SECONDS and (current := _holder(connection)):
            log.warning("waiting for another runner: %s", current)
            logged_at = now
        time.sleep(min(_POLL_SECONDS, deadline))


def _try(connection: Connection) -> bool:
    taken = connection.exec_driver_sql(_ACQUIRE_TWICE).scalar()
    connection.commit()
    return bool(taken)


def _holder(connection: Connection) -> str | None:
    row = connection.exec_driver_sql(HOLDER_QUERY).first()
    connection.rollback()
    if row is None:
        return None
    since = f"{row.backend_start:%Y-%m-%d %H:%M:%S %Z}" if row.backend_start else "an unknown time"
    return f"pid {row.pid} ({row.application_name or 'no application name'}) since {since}"
