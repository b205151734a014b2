"""One runner at a time, by a lock that lives as long as the backend that works.

An advisory lock of the session, taken on the migrating connection itself: when the client of a
run is killed, its backend may go on for a while, and nobody acts before it has ended. It is
asked for again and again, with a commit after each try: a session that waited inside
pg_advisory_lock would be in a transaction, which an index build of the holder waits for in turn.
https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy import text

from langfuse_schema._postgres.findings import Finding, SchemaError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

log = logging.getLogger("langfuse_schema")

# "lang" and "fuse" in ASCII. Two numbers, since others mostly use one: those never meet.
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
"""Who holds the runner lock of this database; for people too."""

# Taken twice, so that a holder can let go of it once, as a proof, and never be without it.
# Reading pg_locks before every step would look at each lock of the whole server.
_TAKE = f"pg_try_advisory_lock({_CLASS}, {_OBJECT})"
_LET_GO = f"pg_advisory_unlock({_CLASS}, {_OBJECT})"
_TAKE_TWICE = f"SELECT CASE WHEN {_TAKE} THEN {_TAKE} ELSE false END"
_PROVE = f"SELECT CASE WHEN {_LET_GO} THEN {_TAKE} ELSE false END"
_LET_GO_TWICE = f"SELECT {_LET_GO}, {_LET_GO}"


@contextmanager
def runner_lock(connection: Connection, deadline: float) -> Iterator[None]:
    """Be the only runner of a database.

    Arguments:
        connection: the migrating one, without an open transaction; it is left without one.
        deadline: how long to wait for another runner, in seconds.

    Raises:
        SchemaError: another runner held the lock for that long.
    """
    _acquire(connection, deadline)
    try:
        yield
    finally:
        if not (connection.closed or connection.invalidated):
            connection.rollback()
            connection.exec_driver_sql(_LET_GO_TWICE)
            connection.commit()


def ensure_held(connection: Connection) -> None:
    """Make sure that the backend that would act now is the one that holds the runner lock.

    Arguments:
        connection: the migrating one.

    Raises:
        SchemaError: it is another, which a pooler chose.
    """
    if not connection.exec_driver_sql(_PROVE).scalar():
        backend = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
        raise SchemaError(
            [
                Finding(
                    "runner-lock-lost",
                    "the runner lock",
                    f"backend {backend} is to act, but the lock is held by"
                    f" {_holder(connection) or 'nobody'}",
                    "one backend for the whole run",
                    "connect directly, or through a pooler in session mode",
                )
            ]
        )


def _acquire(connection: Connection, deadline: float) -> None:
    started = time.monotonic()
    told = None
    while not _try(connection):
        waited = time.monotonic() - started
        if waited >= deadline:
            raise SchemaError([_busy(_holder(connection) or "nobody any more", waited)])
        if told is None or time.monotonic() - told >= _REMINDER_SECONDS:
            holder = _holder(connection)
            if holder:
                log.warning("waiting for another runner: %s", holder)
                told = time.monotonic()
        time.sleep(min(_POLL_SECONDS, deadline))


def _try(connection: Connection) -> bool:
    taken = connection.exec_driver_sql(_TAKE_TWICE).scalar()
    connection.commit()
    return bool(taken)


def _holder(connection: Connection) -> str | None:
    row = connection.execute(text(HOLDER_QUERY)).first()
    connection.rollback()
    if row is None:
        return None
    since = f"{row.backend_start:%Y-%m-%d %H:%M:%S %Z}" if row.backend_start else "an unknown time"
    return f"pid {row.pid} ({row.application_name or 'no application name'}) since {since}"


def _busy(holder: str, waited: float) -> Finding:
    return Finding(
        "another-runner",
        "the runner lock",
        f"held by {holder}, for the {waited:.0f} s that we waited",
        "one runner at a time",
        "if it works, wait for it: run the same command again, or with a longer"
        " -x lock_deadline=1h\nto look at it:\n"
        f'psql "$DATABASE_URL" -c {_quoted(HOLDER_QUERY)}\n'
        "to end it, which is safe: SELECT pg_terminate_backend(pid)",
    )


def _quoted(sql: str) -> str:
    return f'"{sql}"'
