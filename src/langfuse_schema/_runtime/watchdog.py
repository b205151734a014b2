"""Detect that the connection of a run is dead while the run waits for an answer.

A proxy can stop forwarding, or a network address translation can forget the connection. TCP
keepalives can then still be answered, and the client would wait for its index build indefinitely.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from langfuse_schema._postgres.sessions import second_connection
from langfuse_schema._runtime.signals import call_briefly

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

SILENT_SECONDS = 20
_CHECK_SECONDS = 1.0
_CONNECT_SECONDS = 8.0  # below connect_timeout, which raises an error as an answer would

IS_DONE = f"""(a.state IS NOT NULL AND a.state <> 'active'
       AND clock_timestamp() - a.state_change > interval '{SILENT_SECONDS} s')"""
"""Whether a backend of pg_stat_activity AS a has sent its last answer long ago."""

_IS_DONE = f"SELECT coalesce((SELECT {IS_DONE} FROM pg_stat_activity AS a WHERE a.pid = %s), true)"


class Watchdog:
    """A thread that ends the connection of a run whose server does not answer.

    Arguments:
        connection: the migrating one.
        pid: its backend.
        is_building: returns whether the run waits for an index build.

    Attributes:
        lost: whether it has ended the connection.
    """

    def __init__(self, connection: Connection, pid: int, is_building: Callable[[], bool]) -> None:
        """Prepare the thread."""
        self.lost = False
        self._connection, self._pid, self._is_building = connection, pid, is_building
        driver_connection: Any = connection.connection.dbapi_connection
        self._driver_connection = driver_connection
        # A full pooler lets a new connection wait. A server refuses it at once.
        self._connects = bool(self._driver_connection.info.backend_pid == pid)
        self._answered_at = time.monotonic()
        self._ended = threading.Event()

    def start(self) -> None:
        """Start the thread."""
        self._answered_at = time.monotonic()
        threading.Thread(target=self._run, daemon=True).start()

    def answered(self) -> None:
        """Record that the server has answered on another connection."""
        self._connects = True
        self._answered_at = time.monotonic()

    def close(self) -> None:
        """End the thread."""
        self._ended.set()

    def end_run(self) -> None:
        """End the connection of the run, so that the statement that waits fails at once."""
        self.lost = True
        with suppress(OSError), socket.socket(fileno=os.dup(self._driver_connection.fileno())) as s:
            s.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        while not self._ended.wait(_CHECK_SECONDS):
            if not self._connects or time.monotonic() - self._answered_at < SILENT_SECONDS:
                continue
            if self._is_lost() and not self._ended.is_set():
                self.end_run()
                return
            self._answered_at = time.monotonic()

    def _is_lost(self) -> bool:
        """Check with a new connection, because only the one of the monitor can be dead."""
        answer = call_briefly(self._ask, _CONNECT_SECONDS)
        return answer is None or (answer is True and self._is_building())

    def _ask(self) -> bool:
        """Return whether the backend of the run waits for its client. An error is an answer too."""
        try:
            with (
                second_connection(self._connection) as driver_connection,
                driver_connection.cursor() as cursor,
            ):
                cursor.execute(_IS_DONE, (self._pid,))
                return bool(cursor.fetchone()[0])
        except Exception:  # noqa: BLE001 - of the driver, such as a server without a free slot
            return False
