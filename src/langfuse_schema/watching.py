"""A second pair of eyes on a run: who it waits for, and how far an index build is.

Only while a backend waits can PostgreSQL say for whom, and a backend that builds an index
answers nothing. So a thread with a connection of its own looks, ten times a second.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langfuse_schema import sessions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import Connection

    from langfuse_schema.database import Options

log = logging.getLogger("langfuse_schema")

_LOOK_SECONDS = 0.1
_FIRST_REPORT_SECONDS = 1.0
_LINE_SECONDS = 10.0
_END_SECONDS = 0.1  # for the thread, when the run is over

_STATE = """
SELECT a.wait_event_type IS NOT DISTINCT FROM 'Lock', p.phase,
       CASE WHEN p.blocks_total > 0 THEN p.blocks_total ELSE p.tuples_total END,
       CASE WHEN p.blocks_total > 0 THEN p.blocks_done ELSE p.tuples_done END
FROM pg_stat_activity AS a LEFT JOIN pg_stat_progress_create_index AS p ON p.pid = a.pid
WHERE a.pid = %s
"""

_WAITING_FOR = """
SELECT (SELECT n.nspname || '.' || c.relname FROM pg_locks AS l
        JOIN pg_class AS c ON c.oid = l.relation JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE l.pid = %s AND NOT l.granted LIMIT 1),
       b.pid, a.usename, a.application_name,
       extract(epoch FROM clock_timestamp() - a.xact_start)::int, a.state, a.query
FROM unnest(pg_blocking_pids(%s)) AS b (pid) LEFT JOIN pg_stat_activity AS a ON a.pid = b.pid
ORDER BY b.pid
"""


@dataclass(frozen=True)
class Wait:
    """What a backend waits for: a table, or None for old transactions; and whose sessions."""

    table: str | None
    sessions: tuple[str, ...]

    def __str__(self) -> str:
        """The wait as one line for each session."""
        return "\n".join(self.sessions)


class Watcher:
    """Looks at a backend until it is closed.

    Attributes:
        last_wait: the newest wait for others that was seen.
        gave_up: whether it cancelled a build that waited for others for too long.
    """

    def __init__(self, connection: Connection, options: Options, *, terminal: bool) -> None:
        """Begin to watch the backend of a connection, which is left without a transaction."""
        self.last_wait: Wait | None = None
        self.gave_up = False
        self._connection = connection
        self._deadline = options.lock_deadline
        self._line = _Line(terminal=terminal)
        self._pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
        connection.rollback()
        self._interval = min(_LOOK_SECONDS, options.lock_timeout / 4)
        self._waiting_since: float | None = None
        self._build: tuple[str, float] | None = None
        self._ended = threading.Event()
        self._connected = False
        self._failed = False
        # A daemon: behind a full pooler it may wait for its connection for ever.
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def unseen(self) -> str:
        """What to say of those who were in the way, if none of them was seen."""
        if self._failed:
            return "somebody; to see who, we would have needed a second connection"
        return "a session that was gone before anybody could look"

    def close(self) -> None:
        """Stop looking."""
        self._ended.set()
        if self._connected:
            self._thread.join(_END_SECONDS)

    @contextmanager
    def build(self, table: str) -> Iterator[None]:
        """Report the progress of an index build, and bound its waits for others.

        Arguments:
            table: whose index, as `schema.table`.
        """
        self._waiting_since = None
        self._build = (table, time.monotonic())
        try:
            yield
        finally:
            self._build = None
            self._line.end()

    def _run(self) -> None:
        # Most runs are over before there is anything to see, and need no second connection.
        if self._ended.wait(self._interval):
            return
        try:
            with (
                sessions.second_connection(self._connection) as driver_connection,
                driver_connection.cursor() as cursor,
            ):
                self._connected = True
                self._look(cursor)
                while not self._ended.wait(self._interval):
                    self._look(cursor)
        except Exception as error:  # noqa: BLE001 - a run goes on without eyes, whatever the driver raises
            self._failed = True
            log.debug("stopped watching: %s", error)

    def _look(self, cursor: Any) -> None:  # noqa: ANN401 - of psycopg2, which has no types, or psycopg
        build = self._build
        cursor.execute(_STATE, (self._pid,))
        waiting, phase, total, done = cursor.fetchone() or (False, None, 0, 0)
        if waiting:
            self._see_wait(cursor)
        else:
            self._waiting_since = None
        if build is None or build is not self._build:
            return
        table, started = build
        if self._waiting_since and time.monotonic() - self._waiting_since > self._deadline:
            self.gave_up = True
            cursor.execute("SELECT pg_cancel_backend(%s)", (self._pid,))
        elapsed = time.monotonic() - started
        if elapsed >= _FIRST_REPORT_SECONDS:
            percent = f", {100 * done // total} %" if total and not waiting else ""
            wait = f" ({'; '.join(self.last_wait.sessions)})" if waiting and self.last_wait else ""
            self._line.show(f"{table}: {phase or 'waiting'}{percent}, {elapsed:.0f} s{wait}")

    def _see_wait(self, cursor: Any) -> None:  # noqa: ANN401 - as above
        cursor.execute(_WAITING_FOR, (self._pid, self._pid))
        rows = cursor.fetchall()
        if rows:
            self._waiting_since = self._waiting_since or time.monotonic()
            self.last_wait = Wait(rows[0][0], tuple(session_text(row[1:]) for row in rows))


def session_text(row: Sequence[Any]) -> str:
    """Describe a session, as far as the role may see it: of others neither age nor query.

    Arguments:
        row: pid, user, application, seconds in its transaction, state, query.
    """
    pid, user, application, age, state, query = row
    if not pid:
        return "a prepared transaction: see pg_prepared_xacts"
    described = f"pid {pid}, {user or 'unknown user'}, {application or 'no application name'}"
    if age is not None:
        described += f", in a transaction for {age} s, {state}"
    return f"{described}: {' '.join((query or '').split()).rstrip(';')[:100]}"


class _Line:
    """The line of a build: written over on a terminal, else one line now and then."""

    def __init__(self, *, terminal: bool) -> None:
        self._terminal = terminal
        self._last = float("-inf")

    def show(self, line: str) -> None:
        if self._terminal:
            sys.stderr.write(f"\r\x1b[K{line}")
            sys.stderr.flush()
        elif time.monotonic() - self._last >= _LINE_SECONDS:
            log.info(line)
        else:
            return
        self._last = time.monotonic()

    def end(self) -> None:
        if self._terminal and self._last > 0:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
        self._last = float("-inf")
