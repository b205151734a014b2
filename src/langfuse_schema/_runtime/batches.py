"""Send the statements of a revision as one message.

Over a distance, each message costs a round trip, during which the transaction holds its locks.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import DDL
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import ExecutableDDLElement
from sqlalchemy.sql.dml import UpdateBase

from langfuse_schema._postgres.errors import sqlstate
from langfuse_schema._postgres.sessions import SCRIPT, listening

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import Connection, CursorResult, Executable

# As in offline mode. With the paramstyle of psycopg2, every % of the SQL would be doubled.
_DIALECT = postgresql.dialect(paramstyle="named")  # type: ignore[no-untyped-call] # SQLAlchemy

_MARKER = "DO $marker$ BEGIN RAISE INFO 'langfuse-schema statement {}'; END $marker$"
_MARKED = "langfuse-schema statement "


class Batch:
    """The statements of a transaction that are not sent yet.

    They are sent before any other statement of the connection, and before its commit. A revision
    whose statements are collected cannot catch the error of one of them.

    Arguments:
        connection: the migrating one, of psycopg2.
    """

    def __init__(self, connection: Connection) -> None:
        """Keep the argument."""
        self._connection = connection
        self._statements: list[str] = []
        self._failed: tuple[str, ...] = ()

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Send the collected statements when they are needed."""
        listeners: dict[str, Callable[..., None]] = {
            "before_cursor_execute": self._send_before,
            "commit": self._send_before_commit,
            "rollback": self._forget,
        }
        with listening(self._connection, listeners):
            yield

    def collect(self, statement: Executable) -> CursorResult[Any] | None:
        """Collect a statement. Only one that returns a number of rows is sent at once."""
        is_ddl = isinstance(statement, ExecutableDDLElement | DDL)
        values = {} if is_ddl else {"compile_kwargs": {"literal_binds": True}}
        text = str(statement.compile(dialect=_DIALECT, **values))  # type: ignore[attr-defined]
        self._statements.append(text.strip().rstrip(";"))
        driver_connection: Any = self._connection.connection.dbapi_connection
        if driver_connection.autocommit or isinstance(statement, UpdateBase):
            return self._send()
        return None

    def failing_statement(self, error: DBAPIError) -> str | None:
        """Return the statement of the last message that failed with an error, if it is known.

        The server does not report it. So the message is sent again, with a mark after each
        statement, and rolled back. The connection has no open transaction, and is left so.
        """
        statements = self._failed
        if error.statement != _script(statements) or self._connection.invalidated:
            return None
        if len(statements) == 1:
            return statements[0]
        driver_connection: Any = self._connection.connection.dbapi_connection
        marked = [
            f"{statement};\n{_MARKER.format(number)}"
            for number, statement in enumerate(statements, start=1)
        ]
        try:
            self._connection.exec_driver_sql(_script(marked), execution_options=SCRIPT)
        except DBAPIError as again:
            if _message(again) == _message(error):
                passed = [n for n in driver_connection.notices if _MARKED in n]
                number = int(passed[-1].rpartition(_MARKED)[2]) if passed else 0
                return statements[number]
        finally:
            self._connection.rollback()
        return None

    def _send_before(self, *_: object) -> None:
        self._send()

    def _send_before_commit(self, _: object) -> None:
        try:
            self._send()
        except DBAPIError:
            # For SQLAlchemy, the transaction has ended: a failed COMMIT rolls back.
            if not self._connection.invalidated:
                driver_connection: Any = self._connection.connection.dbapi_connection
                driver_connection.rollback()
            raise

    def _send(self) -> CursorResult[Any] | None:
        statements, self._statements = self._statements, []
        if not statements:
            return None
        try:
            return self._connection.exec_driver_sql(_script(statements), execution_options=SCRIPT)
        except DBAPIError:
            self._failed = tuple(statements)
            raise

    def _forget(self, *_: object) -> None:
        self._statements = []


def _script(statements: Sequence[str]) -> str:
    return ";\n".join(statements)


def _message(error: DBAPIError) -> tuple[str, str]:
    diagnosis = getattr(error.orig, "diag", None)
    return sqlstate(error), str(getattr(diagnosis, "message_primary", error.orig))
