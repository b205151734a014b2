"""Is every transaction of ours on one and the same backend of the server?

Behind a pooler in transaction mode it is not: a lock of the session would be left on somebody
else's backend, and SET would change somebody else's settings. It is found out by behaviour:
while a rival holds a transaction open, each of our transactions runs on whatever backend is
free. Asking two idle connections is not enough, since both mostly get the same answer twice.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from langfuse_schema import database, sessions
from langfuse_schema._postgres.findings import Finding

if TYPE_CHECKING:
    from sqlalchemy import Connection

log = logging.getLogger("langfuse_schema")

_ROUNDS = 3
_QUESTIONS = 3
_HOLD_SECONDS = 5.0  # we may be waiting for the very backend that the rival has

# How long a rival may take to connect and be served: what a busy server needs, and round trips.
_PATIENCE_SECONDS = 2.0
_PATIENCE_ROUND_TRIPS = 50


def find(connection: Connection) -> list[Finding]:
    """Say if a pooler in transaction mode stands between us and the server.

    Arguments:
        connection: without an open transaction; it is left without one.
    """
    if not _is_shared(connection):
        return []
    return [
        Finding(
            "connection-pooled",
            database.shown(connection.engine.url),
            "a pooler in transaction mode, which hands each transaction to another backend",
            "one backend for the whole run, to hold the lock that keeps other runners out",
            "connect directly, or through the pooler in session mode; at Supabase that is"
            " port 5432 of the same host instead of 6543",
        )
    ]


def _is_shared(connection: Connection) -> bool:
    # It connects while we ask.
    rival = _Rival(connection)
    try:
        asked = time.monotonic()
        backends = _backends(connection)
        round_trip = (time.monotonic() - asked) / _QUESTIONS
        patience = _PATIENCE_SECONDS + _PATIENCE_ROUND_TRIPS * round_trip
        for _ in range(_ROUNDS):
            theirs = rival.enter(patience)
            if theirs in backends:
                return True
            backends |= _backends(connection)
            if len(backends) > 1:
                return True
            # If we are served while the rival waits in line, we have a backend to ourselves.
            if theirs is None:
                return False
            rival.leave()
    finally:
        rival.leave()
        rival.stop()
    return False


def _backends(connection: Connection) -> set[int]:
    """The backends that serve a few transactions of ours."""
    driver_connection: Any = connection.connection.dbapi_connection
    before = driver_connection.autocommit
    driver_connection.autocommit = True
    try:
        with driver_connection.cursor() as cursor:
            return {_backend(cursor) for _ in range(_QUESTIONS)}
    finally:
        driver_connection.autocommit = before


def _backend(cursor: Any) -> int:  # noqa: ANN401 - of psycopg2, which has no types, or psycopg
    cursor.execute("SELECT pg_backend_pid()")
    return int(cursor.fetchone()[0])


class _Rival:
    """A second connection, in a thread: behind a full pooler it may wait for ever."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._orders: SimpleQueue[str] = SimpleQueue()
        self._answers: SimpleQueue[int | None] = SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def enter(self, patience: float) -> int | None:
        """Open a transaction; the backend it runs on, or None if there is none to be had."""
        self._orders.put("enter")
        try:
            return self._answers.get(timeout=patience)
        except Empty:
            return None

    def leave(self) -> None:
        """End the transaction."""
        self._orders.put("leave")

    def stop(self) -> None:
        """Let the connection go, whenever it comes."""
        self._orders.put("stop")

    def _run(self) -> None:
        try:
            with sessions.second_connection(
                self._connection, autocommit=False
            ) as driver_connection:
                while (order := self._orders.get()) != "stop":
                    if order == "enter":
                        self._hold(driver_connection)
        except Exception as error:  # noqa: BLE001 - whatever the driver raises, nobody else would see it
            log.debug("no second connection: %s", error)
            self._answers.put(None)

    def _hold(self, driver_connection: Any) -> None:  # noqa: ANN401 - as above
        with driver_connection.cursor() as cursor:
            self._answers.put(_backend(cursor))
        with suppress(Empty):
            self._orders.get(timeout=_HOLD_SECONDS)
        driver_connection.rollback()
