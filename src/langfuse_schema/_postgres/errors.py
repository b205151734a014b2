"""Turn errors of the driver into findings."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError, PendingRollbackError

from langfuse_schema._postgres import sessions
from langfuse_schema._postgres.findings import SchemaError, finding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection

    from langfuse_schema._postgres.findings import Finding

LOCK_NOT_AVAILABLE, DEADLOCK_DETECTED, QUERY_CANCELED = "55P03", "40P01", "57014"
INSUFFICIENT_PRIVILEGE = "42501"

_MISSING = "Create it again with the SQL that `langfuse-schema verify` prints."

_ADVICE = {
    DEADLOCK_DETECTED: "Another session took the same locks in another order."
    " Run the same command again.",
    INSUFFICIENT_PRIVILEGE: "Grant the missing privilege, or connect as the owner of the tables.",
    "25006": "Connect to the primary server, in a session that can write.",
    "42703": f"A column is missing. {_MISSING} Then run the same command again.",
    "42P01": f"A table is missing. {_MISSING} Then run the same command again.",
    "2BP01": "Drop or change the dependent objects first. Then run the same command again.",
}
_SHOWN_CHARACTERS = 200

_OTHER_ADVICE = "Fix the cause, then run the same command again."


# A command that only reads waits for no other mode. A temporary table belongs to its session.
_LOCKED = f"""
SELECT l.tables, {sessions.CAN_BE_ENDED}, coalesce(l.pid, 0), {sessions.COLUMNS}
FROM (SELECT k.pid, string_agg(n.nspname || '.' || c.relname, ', ' ORDER BY c.relname) AS tables
      FROM pg_locks AS k JOIN pg_class AS c ON c.oid = k.relation
      JOIN pg_namespace AS n ON n.oid = c.relnamespace
      WHERE k.granted AND k.mode = 'AccessExclusiveLock' AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
      AND c.relpersistence <> 't' AND k.pid IS DISTINCT FROM pg_backend_pid()
      AND k.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      GROUP BY k.virtualtransaction, k.pid) AS l
LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid ORDER BY l.pid LIMIT 10
"""

_BUSY_ADVICE = (
    "Wait until these sessions have ended their transactions, then run the same command again."
    " To wait longer, use `-x lock_timeout=10s`."
)


@contextmanager
def errors_as_findings(
    connection: Connection, check_privileges: Callable[[], None] | None = None
) -> Iterator[None]:
    """Raise SchemaError instead of an error of the driver.

    Arguments:
        connection: the connection of the statements. After an error, its transaction is rolled
            back, and it can read the cause.
        check_privileges: called if a privilege is missing. It can raise a more exact error.
    """
    try:
        yield
    except (DBAPIError, PendingRollbackError) as error:
        code = sqlstate(error)
        if code == LOCK_NOT_AVAILABLE:
            raise SchemaError(busy(connection)) from error
        if code == INSUFFICIENT_PRIVILEGE and check_privileges:
            check_privileges()
        cause, advice = _cause(error), _ADVICE.get(code, _OTHER_ADVICE)
        values = {"sqlstate": code or None, "cause": cause, "advice": advice}
        raise SchemaError(finding("server-refused", "the database", **values)) from error


def busy(connection: Connection) -> Finding:
    """Return the finding that a command that only reads waited for a lock in vain.

    The transaction of the connection is rolled back.
    """
    connection.rollback()
    try:
        rows = connection.exec_driver_sql(_LOCKED).all()
        unknown = "a session that has released its lock since"
    except DBAPIError:
        rows, unknown = [], "an unknown session, because the role cannot read pg_locks"
    connection.rollback()
    lines = [
        f"{row[0]} is locked by another session:\n{sessions.described(row[2:])}" for row in rows
    ]
    place = ", ".join(row[0] for row in rows) or "the database"
    fix = sessions.ending(_BUSY_ADVICE, [row[2] for row in rows if row[1]])
    return finding("database-busy", place, cause="\n".join(lines) or unknown, **fix)


def _cause(error: BaseException) -> str:
    """Return the error of the server, and the statement that failed."""
    cause = str(root_cause(error)).strip()
    statement = error.statement if isinstance(error, DBAPIError) else None
    # A statement inside of a block is in the CONTEXT of the error.
    if not statement or 'SQL statement "' in cause:
        return cause
    return f"{cause}\nStatement: {' '.join(statement.split())[:_SHOWN_CHARACTERS]}"


def sqlstate(error: BaseException) -> str:
    """Return the SQLSTATE of an error or of an error in its context; empty if there is none."""
    cause = root_cause(error)
    # The attribute of psycopg2, then that of psycopg.
    return getattr(cause, "pgcode", None) or getattr(cause, "sqlstate", None) or ""


def root_cause(error: BaseException) -> BaseException:
    """Return the error of the driver, from which SQLAlchemy's error can follow."""
    if isinstance(error, DBAPIError) and error.orig is not None:
        return error.orig
    return root_cause(error.__context__) if error.__context__ is not None else error
