"""Monitor a run: the sessions that block it, and the progress of its index builds.

PostgreSQL reports blocking sessions only while a backend waits, and a backend that builds an
index answers no query. So a thread reads both over a second connection, ten times a second.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import unicodedata
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langfuse_schema._postgres import sessions
from langfuse_schema._postgres.findings import finding
from langfuse_schema._runtime import caller, watchdog

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from langfuse_schema._postgres.findings import Finding
    from langfuse_schema._runtime.options import Options

log = logging.getLogger("langfuse_schema")

_INTERVAL_SECONDS = 0.1
_FIRST_REPORT_SECONDS = 1.0
_LINE_SECONDS = 10.0
_DEFAULT_COLUMNS = 80
_WAITS_FOR_END = "the statement waits until these transactions have ended:"
_ADVICE = (
    "Wait until these sessions have ended their transactions, then run the same command again."
    " To wait longer, increase `lock_deadline`."
)
_END_SECONDS = 0.1  # for the thread, when the run is over

# The monitor of a client that is frozen must not stay connected.
_SETTINGS = "SET idle_session_timeout = '60s'"

_STATE = f"""
SELECT a.wait_event_type IS NOT DISTINCT FROM 'Lock', {watchdog.IS_DONE}, p.phase,
       CASE WHEN p.blocks_total > 0 THEN p.blocks_total ELSE p.tuples_total END,
       CASE WHEN p.blocks_total > 0 THEN p.blocks_done ELSE p.tuples_done END
FROM pg_stat_activity AS a LEFT JOIN pg_stat_progress_create_index AS p ON p.pid = a.pid
WHERE a.pid = %s
"""

_WAITING_FOR = f"""
SELECT (SELECT n.nspname || '.' || c.relname FROM pg_locks AS l
        JOIN pg_class AS c ON c.oid = l.relation JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE l.pid = %s AND NOT l.granted LIMIT 1),
       {sessions.CAN_BE_ENDED}, b.pid, {sessions.COLUMNS}
FROM unnest(pg_blocking_pids(%s)) AS b (pid) LEFT JOIN pg_stat_activity AS a ON a.pid = b.pid
ORDER BY b.pid
"""


@dataclass(frozen=True)
class Wait:
    """A wait of a backend.

    Attributes:
        table: the locked table; None if an index build waits for transactions to end.
        sessions: one line for each session that blocks the backend.
        can_be_ended: the pids of those that the connected role has the privilege to end.
    """

    table: str | None
    sessions: tuple[str, ...]
    can_be_ended: tuple[int, ...]


class LockMonitor:
    """The monitor of a backend.

    Attributes:
        last_wait: the newest wait for other sessions.
        gave_up: whether it cancelled a build that waited for longer than lock_deadline.
        blocked_by: the transaction in which the run was called, if it cancelled a wait for it.
    """

    def __init__(
        self, connection: Connection, pid: int, options: Options, *, terminal: bool
    ) -> None:
        """Start to monitor the backend with this pid."""
        self.last_wait: Wait | None = None
        self.gave_up = False
        self.blocked_by: caller.Caller | None = None
        self._caller = caller.current()
        self._connection = connection
        self._deadline = options.lock_deadline
        self._terminal = terminal
        self._written_at = float("-inf")
        self._pid = pid
        self._interval = min(_INTERVAL_SECONDS, options.lock_timeout / 4)
        self._waiting_since: float | None = None
        self._build: tuple[str, float] | None = None
        self._ended = threading.Event()
        self._connected = False
        self._failed = False
        # A daemon: behind a full pooler it can wait for its connection indefinitely.
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._watchdog = watchdog.Watchdog(connection, pid, lambda: self._build is not None)
        self._thread.start()

    def blocking(self) -> str:
        """Return one line for each session that blocks the run."""
        if self.last_wait:
            return "\n".join(self.last_wait.sessions)
        if self._failed:
            return "an unknown session, because a second connection was not available"
        return "a session that ended before it could be read"

    def locked(self, place: str, action: str, state: str) -> Finding:
        """Return the finding that the sessions blocked the run until its deadline.

        Arguments:
            place: the table in question.
            action: the part of the run that did not succeed, such as "lock public.t".
            state: of the database.
        """
        cause = self.blocking()
        if self.last_wait and self.last_wait.table is None:
            cause = f"{_WAITS_FOR_END}\n{cause}"
        deadline = f"{self._deadline:g} s"
        fix = sessions.ending(_ADVICE, self.last_wait.can_be_ended if self.last_wait else ())
        values = {"action": action, "deadline": deadline, "cause": cause, "state": state}
        return finding("table-locked", place, **values, **fix)

    @property
    def lost(self) -> bool:
        """Whether the connection of the run was ended, because the server did not answer."""
        return self._watchdog.lost

    def close(self) -> None:
        """End the thread."""
        self._ended.set()
        self._watchdog.close()
        if self._connected:
            self._thread.join(_END_SECONDS)

    @contextmanager
    def build(self, table: str) -> Iterator[None]:
        """Report the progress of an index build, and bound its waits."""
        self._waiting_since = self.last_wait = None
        self._written_at = float("-inf")
        self._build = (table, time.monotonic())
        try:
            yield
        finally:
            self._build = None
            if self._terminal:
                _overwrite("")

    def _run(self) -> None:
        # Most runs end before the first interval, and need no second connection.
        if self._ended.wait(self._interval):
            return
        self._watchdog.start()
        try:
            with (
                sessions.second_connection(self._connection) as driver_connection,
                driver_connection.cursor() as cursor,
            ):
                self._connected = True
                cursor.execute(_SETTINGS)
                while True:
                    self._read(cursor)
                    self._watchdog.answered()
                    if self._ended.wait(self._interval):
                        break
        except Exception as error:  # noqa: BLE001 - a run continues without a monitor
            self._failed = True
            if self._connected:
                self._watchdog.close()
            log.debug("the lock monitor stopped: %s", error)

    def _read(self, cursor: Any) -> None:  # noqa: ANN401 - of psycopg2, which has no types, or psycopg
        build = self._build
        cursor.execute(_STATE, (self._pid,))
        waiting, is_done, phase, total, done = cursor.fetchone() or (False, True, None, 0, 0)
        if waiting:
            self._read_wait(cursor)
        else:
            self._waiting_since = None
        if build is None or build is not self._build:
            return
        if is_done:
            self._watchdog.end_run()
        table, started = build
        if self._waiting_since and time.monotonic() - self._waiting_since > self._deadline:
            self.gave_up = True
            cursor.execute("SELECT pg_cancel_backend(%s)", (self._pid,))
        elapsed = time.monotonic() - started
        if elapsed >= _FIRST_REPORT_SECONDS:
            percent = f", {100 * done // total} %" if total and not waiting else ""
            wait = f" ({'; '.join(self.last_wait.sessions)})" if waiting and self.last_wait else ""
            self._report(f"{table}: {phase or 'waiting'}{percent}, {elapsed:.0f} s{wait}")

    def _read_wait(self, cursor: Any) -> None:  # noqa: ANN401 - as above
        cursor.execute(_WAITING_FOR, (self._pid, self._pid))
        rows = cursor.fetchall()
        if rows:
            self._waiting_since = self._waiting_since or time.monotonic()
            blocking = tuple(sessions.described(row[2:]) for row in rows)
            can_be_ended = tuple(row[2] for row in rows if row[1])
            self.last_wait = Wait(rows[0][0], blocking, can_be_ended)
            if self._caller and self._caller.pid in [row[2] for row in rows]:
                self._end_wait_for(cursor, self._caller)

    def _end_wait_for(self, cursor: Any, calling: caller.Caller) -> None:  # noqa: ANN401 - as above
        cursor.execute("SELECT pg_postmaster_start_time()")
        if cursor.fetchone()[0] == calling.server_started:
            self.blocked_by = calling
            cursor.execute("SELECT pg_cancel_backend(%s)", (self._pid,))

    def _report(self, progress: str) -> None:
        """Overwrite the line on a terminal, else log one every 10 s."""
        now = time.monotonic()
        if now - self._written_at < (_INTERVAL_SECONDS if self._terminal else _LINE_SECONDS):
            return
        self._written_at = now
        if self._terminal:
            _overwrite(progress)
        else:
            log.info(progress)


def _overwrite(line: str) -> None:
    """Replace the last line of the terminal. A line that wraps could not be replaced."""
    sys.stderr.write(f"\r\x1b[K{cut(line, _columns() - 1)}")
    sys.stderr.flush()


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or _DEFAULT_COLUMNS
    except OSError:
        return _DEFAULT_COLUMNS


def cut(line: str, columns: int) -> str:
    """Return the start of a line that fits into these columns. Some characters take two."""
    width = 0
    for position, character in enumerate(line):
        width += _width(character)
        if width > columns:
            return line[:position]
    return line


def _width(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
