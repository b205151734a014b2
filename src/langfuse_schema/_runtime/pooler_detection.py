"""Detect a pooler in transaction mode by its behaviour.

Behind such a pooler, a lock of the session is left on the backend of another client, and SET
changes the settings of another client. While a probe connection holds a transaction open, each
transaction of the run gets another free backend. Two idle connections mostly get the same one.

A server sends the pid of the backend at the login, and a client cancels a statement with it. A
pooler in transaction mode must send another number, because clients that share a backend need
different ones. So a connection that is served by the backend of its login needs no probe.
https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-CANCELING-REQUESTS
"""

from __future__ import annotations

import logging
import re
import threading
import time
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from langfuse_schema._postgres.findings import Finding, finding
from langfuse_schema._postgres.sessions import second_connection
from langfuse_schema._postgres.urls import shown

if TYPE_CHECKING:
    from sqlalchemy import Connection

log = logging.getLogger("langfuse_schema")

_ROUNDS = 3
_QUERIES = 3
_HOLD_SECONDS = 5.0  # the run can be waiting for the backend of the probe

# The longest time until the probe is connected and served: for a busy server, and round trips.
_WAIT_SECONDS = 2.0
_WAIT_ROUND_TRIPS = 50


def detect(connection: Connection) -> list[Finding]:
    """Return a finding if a pooler in transaction mode is between the run and the server.

    The connection has no open transaction, and is left without one.
    """
    if _is_served_by_its_login(connection):
        return []
    # It connects during the first queries.
    probe = _ProbeConnection(connection)
    place = shown(connection.engine.url)
    if _is_shared(connection, probe):
        return [finding("connection-pooled", place)]
    # Without a probe, a pooler in transaction mode looks like one in session mode.
    full = probe.error and re.search(_POOLER_FULL, probe.error)
    return [finding("pooler-full", place, cause=probe.error)] if full else []


_POOLER_FULL = "(?i)max_client_conn|max client connections"
"""In the errors of PgBouncer and of Supavisor. PostgreSQL's own error has other words."""


def _is_shared(connection: Connection, probe: _ProbeConnection) -> bool:
    try:
        started = time.monotonic()
        backends = _backends(connection)
        round_trip = (time.monotonic() - started) / _QUERIES
        longest = _WAIT_SECONDS + _WAIT_ROUND_TRIPS * round_trip
        for _ in range(_ROUNDS):
            backend_of_probe = probe.begin(longest)
            if backend_of_probe in backends:
                return True
            backends |= _backends(connection)
            if len(backends) > 1:
                return True
            # The run is served while the probe waits, so the run has a separate backend.
            if backend_of_probe is None:
                return False
            probe.order("end")
    finally:
        probe.order("end")
        probe.order("stop")
    return False


def _is_served_by_its_login(connection: Connection) -> bool:
    driver_connection: Any = connection.connection.dbapi_connection
    return _backends(connection, queries=1) == {driver_connection.info.backend_pid}


def _backends(connection: Connection, queries: int = _QUERIES) -> set[int]:
    """Return the backends that serve a few transactions of the run."""
    driver_connection: Any = connection.connection.dbapi_connection
    before = driver_connection.autocommit
    driver_connection.autocommit = True
    try:
        with driver_connection.cursor() as cursor:
            return {_backend(cursor) for _ in range(queries)}
    finally:
        driver_connection.autocommit = before


def _backend(cursor: Any) -> int:  # noqa: ANN401 - of psycopg2, which has no types, or psycopg
    cursor.execute("SELECT pg_backend_pid()")
    return int(cursor.fetchone()[0])


class _ProbeConnection:
    """A second connection, in a thread: behind a full pooler it can wait indefinitely.

    Attributes:
        error: of the driver, if it could not connect.
    """

    error: str | None = None

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._orders: SimpleQueue[str] = SimpleQueue()
        self._answers: SimpleQueue[int | None] = SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def begin(self, seconds: float) -> int | None:
        """Begin a transaction. Return its backend, or None if it has none in this time."""
        self._orders.put("begin")
        try:
            return self._answers.get(timeout=seconds)
        except Empty:
            return None

    def order(self, order: str) -> None:
        """`end` the transaction, or `stop`: close the connection as soon as it exists."""
        self._orders.put(order)

    def _run(self) -> None:
        try:
            with second_connection(self._connection, autocommit=False) as driver_connection:
                while (order := self._orders.get()) != "stop":
                    if order == "begin":
                        self._hold(driver_connection)
        except Exception as error:  # noqa: BLE001 - after any error of the driver, the run has no probe
            log.debug("no second connection: %s", error)
            self.error = " ".join(str(error).split())
            self._answers.put(None)

    def _hold(self, driver_connection: Any) -> None:  # noqa: ANN401 - as above
        with driver_connection.cursor() as cursor:
            self._answers.put(_backend(cursor))
        with suppress(Empty):
            self._orders.get(timeout=_HOLD_SECONDS)
        driver_connection.rollback()
