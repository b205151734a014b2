"""Watch the statements with CONCURRENTLY of a run, whichever revision contains them.

Their waits for other transactions block no query, but lock_timeout would cancel them and leave an
INVALID index. So the time limit of such a statement is lock_deadline.
https://www.postgresql.org/docs/current/sql-createindex.html#SQL-CREATEINDEX-CONCURRENTLY
"""

from __future__ import annotations

import re
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from langfuse_schema._postgres.sessions import listening
from langfuse_schema._runtime.settings import milliseconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from sqlalchemy import Connection

    from langfuse_schema._runtime.options import Options

# Only these: writes can queue behind the locks of REFRESH MATERIALIZED VIEW CONCURRENTLY and of
# DETACH PARTITION CONCURRENTLY.
_STATEMENT = re.compile(
    r"(?:\s|--[^\n]*\n|/\*.*?\*/)*"
    r"(?P<verb>CREATE\s+(?:UNIQUE\s+)?INDEX|DROP\s+INDEX|REINDEX\s+(?:\([^)]*\)\s*)?\w+)"
    r"\s+CONCURRENTLY\b(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
_TABLE = re.compile(r"\bON\s+(?:ONLY\s+)?((?:\"[^\"]+\"|[^\s(\"])+)", re.IGNORECASE)
_INDEX = re.compile(r"\s*(?:IF\s+EXISTS\s+)?((?:\"[^\"]+\"|[^\s;\"])+)", re.IGNORECASE)


def target(statement: str) -> str | None:
    """Return the table, or the index, of a statement with CONCURRENTLY; None for any other."""
    matched = _STATEMENT.match(statement)
    if matched is None:
        return None
    found = _TABLE.search(matched["rest"]) or _INDEX.match(matched["rest"])
    return found[1] if found else "the database"


_ACTIONS = {"CREATE": "build an index on", "DROP": "drop the index", "REINDEX": "reindex"}


def _action(statement: str, name: str) -> str:
    """Return a statement with CONCURRENTLY in words, such as "build an index on public.t"."""
    matched = _STATEMENT.match(statement)
    assert matched is not None
    verb, *_ = matched["verb"].split()
    return f"{_ACTIONS[verb.upper()]} {name}"


class Builds:
    """The statements with CONCURRENTLY on a connection.

    Arguments:
        connection: the migrating one.
        watch: returns a context around a statement, from the name of its table. It sets
            lock_timeout to lock_deadline.
        completed: called after a statement that succeeded.

    Attributes:
        running: the table of the statement that runs, or that failed; else None.
        action: the same statement in words, as in "could not build an index on public.t".
        idle: the seconds between the last statement, of any kind, and the one before it.
    """

    def __init__(
        self,
        connection: Connection,
        options: Options,
        watch: Callable[[str], AbstractContextManager[None]],
        completed: Callable[[], None],
    ) -> None:
        """Keep the arguments."""
        self.running: str | None = None
        self.action = ""
        self.idle = 0.0
        self._ended_at = time.monotonic()
        self._connection = connection
        self._timeout = f"SET lock_timeout = '{milliseconds(options.lock_timeout)}'"
        self._watch, self._completed = watch, completed
        self._stack = ExitStack()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch all statements."""
        listeners = {"before_cursor_execute": self._before, "after_cursor_execute": self._after}
        try:
            with listening(self._connection, listeners):
                yield
        finally:
            self.forget()

    def forget(self) -> None:
        """End the statement that runs, or that failed."""
        self._stack.close()
        self.running = None

    def _before(self, _connection: object, _cursor: object, statement: str, *_: object) -> None:
        self.idle = time.monotonic() - self._ended_at
        table = target(statement)
        if table is None:
            return
        self.forget()
        self._stack.enter_context(self._watch(table))
        self.running, self.action = table, _action(statement, table)

    def _after(self, connection: Connection, _cursor: object, statement: str, *_: object) -> None:
        self._ended_at = time.monotonic()
        if self.running is not None and target(statement):
            self.forget()
            self._completed()
            connection.exec_driver_sql(self._timeout)
