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
from dataclasses import dataclass
from hashlib import sha256
from struct import unpack
from typing import TYPE_CHECKING

from sqlalchemy import text

from langfuse_schema._postgres.findings import SchemaError, finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

log = logging.getLogger("langfuse_schema")

_POLL_SECONDS = 0.2
_REMINDER_SECONDS = 30.0

_SCHEMA = text(
    "SELECT coalesce((SELECT n.nspname::text FROM pg_class AS c"
    "   JOIN pg_namespace AS n ON n.oid = c.relnamespace"
    "   WHERE c.oid = to_regclass(quote_ident(:name))), current_schema()::text, '')"
)


@dataclass(frozen=True)
class RunnerLock:
    """The lock of one version table. PostgreSQL keeps those of other databases apart.

    Attributes:
        key: two numbers: locks with one number never collide with these.
    """

    key: tuple[int, int]

    @classmethod
    def of(cls, schema: str, name: str) -> RunnerLock:
        """Return the lock of the version table `schema.name`."""
        digest = sha256(f"langfuse-schema\0{schema}\0{name}".encode()).digest()
        first, second = unpack(">II", digest[:8])
        # The functions take signed numbers, and pg_locks shows unsigned ones.
        return cls((first >> 1, second >> 1))

    @classmethod
    def located(cls, connection: Connection, schema: str | None, name: str) -> RunnerLock:
        """Return the lock of a version table, which is in search_path if `schema` is None."""
        if schema is None:
            schema = str(connection.scalar(_SCHEMA, {"name": name}))
        return cls.of(schema, name)

    @property
    def acquire(self) -> str:
        """The expression that acquires the lock if it is free."""
        return "pg_try_advisory_lock({}, {})".format(*self.key)

    @property
    def release(self) -> str:
        """The expression that releases the lock once."""
        return "pg_advisory_unlock({}, {})".format(*self.key)

    @property
    def holder_query(self) -> str:
        """The query that reads the session that holds the lock of this database."""
        class_id, object_id = self.key
        return (
            "SELECT a.pid, a.usename, a.application_name, a.backend_start, a.state, a.query"
            " FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid"
            f" WHERE l.locktype = 'advisory' AND l.classid = {class_id} AND l.objid = {object_id}"
            " AND l.objsubid = 2 AND l.granted"
            " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )

    @contextmanager
    def held(self, connection: Connection, deadline: float) -> Iterator[None]:
        """Hold the lock. Wait for another runner for at most `deadline` seconds.

        The migrating connection has no open transaction, and is left without one.
        """
        self._wait(connection, deadline)
        try:
            yield
        finally:
            if not (connection.closed or connection.invalidated):
                connection.rollback()
                connection.exec_driver_sql(f"SELECT {self.release}, {self.release}")
                connection.commit()

    def ensure_held(self, connection: Connection, lock_timeout: str | None = None) -> None:
        """Check that the current backend holds the lock: a pooler can choose another one.

        With `lock_timeout`, set it for the session, in the same round trip.
        """
        prove = f"SELECT CASE WHEN {self.release} THEN {self.acquire} ELSE false END"
        if lock_timeout is not None:
            prove += f", set_config('lock_timeout', '{lock_timeout}', false)"
        if not connection.exec_driver_sql(prove).scalar():
            backend = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
            row = connection.exec_driver_sql(self.holder_query).first()
            values = {"backend": backend, "holder": f"pid {row.pid}" if row else "no session"}
            raise SchemaError(finding("runner-lock-lost", "the runner lock", **values))

    def try_twice(self, connection: Connection) -> bool:
        """Acquire the lock if it is free, and return whether it was.

        It is acquired twice, so that a holder can release it once, as a proof, without losing it.
        Reading pg_locks before every step would read each lock of the whole server.
        """
        query = f"SELECT CASE WHEN {self.acquire} THEN {self.acquire} ELSE false END"
        taken = connection.exec_driver_sql(query).scalar()
        connection.commit()
        return bool(taken)

    def _wait(self, connection: Connection, deadline: float) -> None:
        started, logged_at = time.monotonic(), float("-inf")
        while not self.try_twice(connection):
            now = time.monotonic()
            if now - started >= deadline:
                holder = self._holder(connection) or "a session that has ended"
                values = {"waited": f"{now - started:.0f}", "holder": f"it is held by {holder}"}
                query = self.holder_query
                raise SchemaError(
                    finding("another-runner", "the runner lock", query=query, **values)
                )
            if now - logged_at >= _REMINDER_SECONDS and (current := self._holder(connection)):
                log.warning("waiting for another runner: %s", current)
                logged_at = now
            time.sleep(min(_POLL_SECONDS, deadline))

    def _holder(self, connection: Connection) -> str | None:
        row = connection.exec_driver_sql(self.holder_query).first()
        connection.rollback()
        if row is None:
            return None
        start = row.backend_start
        since = f"{start:%Y-%m-%d %H:%M:%S %Z}" if start else "an unknown time"
        return f"pid {row.pid} ({row.application_name or 'no application name'}) since {since}"
