"""Turn errors of the driver into findings."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError, PendingRollbackError

from langfuse_schema._postgres.findings import SchemaError, finding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LOCK_NOT_AVAILABLE, DEADLOCK_DETECTED, QUERY_CANCELED = "55P03", "40P01", "57014"
INSUFFICIENT_PRIVILEGE = "42501"

_ADVICE = {
    DEADLOCK_DETECTED: "Another session took the same locks in another order."
    " Run the same command again.",
    INSUFFICIENT_PRIVILEGE: "Grant the missing privilege, or connect as the owner of the tables.",
    "25006": "Connect to the primary server, in a session that can write.",
    "2BP01": "Drop or change the dependent objects first. Then run the same command again.",
}
_SHOWN_CHARACTERS = 200

_OTHER_ADVICE = "Fix the cause, then run the same command again."


@contextmanager
def errors_as_findings(check_privileges: Callable[[], None] | None = None) -> Iterator[None]:
    """Raise SchemaError instead of an error of the driver.

    `check_privileges` is called if a privilege is missing. It can raise a more exact error.
    """
    try:
        yield
    except (DBAPIError, PendingRollbackError) as error:
        code = sqlstate(error)
        if code == LOCK_NOT_AVAILABLE:
            raise SchemaError(finding("database-busy", "lock_timeout")) from error
        if code == INSUFFICIENT_PRIVILEGE and check_privileges:
            check_privileges()
        cause, advice = _cause(error), _ADVICE.get(code, _OTHER_ADVICE)
        values = {"sqlstate": code or None, "cause": cause, "advice": advice}
        raise SchemaError(finding("server-refused", "the database", **values)) from error


def _cause(error: BaseException) -> str:
    """Return the error of the server, and the statement that failed."""
    cause = str(_root_cause(error)).strip()
    statement = error.statement if isinstance(error, DBAPIError) else None
    # A statement inside of a block is in the CONTEXT of the error.
    if not statement or 'SQL statement "' in cause:
        return cause
    return f"{cause}\nStatement: {' '.join(statement.split())[:_SHOWN_CHARACTERS]}"


def sqlstate(error: BaseException) -> str:
    """Return the SQLSTATE of an error or of an error in its context; empty if there is none."""
    cause = _root_cause(error)
    # The attribute of psycopg2, then that of psycopg.
    return getattr(cause, "pgcode", None) or getattr(cause, "sqlstate", None) or ""


def _root_cause(error: BaseException) -> BaseException:
    """Return the error of the driver, from which SQLAlchemy's error can follow."""
    if isinstance(error, DBAPIError) and error.orig is not None:
        return error.orig
    return _root_cause(error.__context__) if error.__context__ is not None else error
