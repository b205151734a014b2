"""Explain that the session of a run has ended before the run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from langfuse_schema._postgres.errors import root_cause
from langfuse_schema._postgres.findings import Finding, finding
from langfuse_schema._postgres.urls import shown
from langfuse_schema._runtime.watchdog import SILENT_SECONDS

if TYPE_CHECKING:
    from sqlalchemy import Connection

_ARGUMENTS = {
    "idle_in_transaction_session_timeout": "idle_in_transaction_timeout",
    "idle_session_timeout": "idle_session_timeout",
}
"""The argument of `run_migrations` by the setting of PostgreSQL."""

_SESSION = (
    "SELECT pg_backend_pid(), json_object_agg(name, setting::float / 1000)::text FROM pg_settings"
    " WHERE name IN ('idle_in_transaction_session_timeout', 'idle_session_timeout')"
)


@dataclass(frozen=True)
class Session:
    """The session of a run: its backend, and its limits in seconds by the setting."""

    pid: int
    limits: dict[str, float]

    @classmethod
    def of(cls, connection: Connection) -> Session:
        """Read the session. The connection has no open transaction, and is left without one."""
        pid, limits = connection.exec_driver_sql(_SESSION).one()
        connection.rollback()
        return cls(pid, json.loads(limits))

    @property
    def longest_pause(self) -> float:
        """The longest pause that does not end the session; 0 for any."""
        return self.limits["idle_session_timeout"] / 2

    def timed_out(self, idle: float) -> Finding | None:
        """Return the finding that the server ended the session after these idle seconds.

        Not every driver passes on the reason of the server.
        """
        for setting, limit in self.limits.items():
            if 0 < limit <= idle:
                return finding("session-timed-out", setting, argument=_ARGUMENTS[setting])
        return None


def is_lost(error: BaseException | None) -> bool:
    """Return whether an error, or one in its context, is the end of the connection.

    During an index build, Alembic's own attempt to end the block fails after it.
    """
    if error is None:
        return False
    ended = isinstance(error, DBAPIError) and error.connection_invalidated
    return ended or is_lost(error.__context__)


def lost(connection: Connection, error: BaseException, *, silent: bool) -> Finding:
    """Return the finding that the connection was lost, or that its server was `silent`."""
    cause = str(root_cause(error)).strip()
    if silent:
        cause = f"the server did not answer for {SILENT_SECONDS} s"
    return finding("connection-lost", shown(connection.engine.url), cause=cause)
