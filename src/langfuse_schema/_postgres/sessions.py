"""Open and describe sessions of a server."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sqlalchemy import Connection

SCRIPT = {"no_parameters": True}
"""Execution options of several statements in one message, without parameters."""

_IN_ASCII = (
    "CASE current_setting('client_encoding') WHEN 'UTF8' THEN {0}::text"
    " ELSE regexp_replace({0}, '[^\\x01-\\x7f]', '?', 'g') END"
)
"""A text that each client encoding has. A program's engine can have another one than UTF8."""

READING = {"search_path": "public", "quote_all_identifiers": "off", "jit": "off"}
"""Settings of a session that reads the catalog. Printed names depend on the first two."""

COLUMNS = (
    f"{_IN_ASCII.format('a.usename')}, a.application_name,"
    " extract(epoch FROM clock_timestamp() - a.xact_start)::int, a.state,"
    f" {_IN_ASCII.format('a.query')}"
)
"""Columns of pg_stat_activity. Some are NULL in the sessions of other roles."""


CAN_BE_ENDED = """
    coalesce((pg_has_role(a.usesysid, 'USAGE') OR pg_has_role('pg_signal_backend', 'USAGE'))
    AND (current_setting('is_superuser') = 'on'
         OR NOT (SELECT r.rolsuper FROM pg_roles AS r WHERE r.oid = a.usesysid)), false)"""
"""Whether the connected role has the privilege to end a session of pg_stat_activity AS a.

https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-ADMIN-SIGNAL
"""

_END_ADVICE = (
    " To end a session now, run its statement on the database. The transaction of the session is"
    " rolled back:"
)


def ending(advice: str, pids: Sequence[int]) -> dict[str, Any]:
    """Return the advice and the fix of a finding whose cause is other sessions.

    Arguments:
        advice: the advice if no session can be ended.
        pids: the sessions that the connected role can end.
    """
    fix = tuple(f"SELECT pg_terminate_backend({pid});" for pid in pids)
    return {"advice": advice + _END_ADVICE if fix else advice, "fix": fix}


def is_autovacuum(columns: Sequence[Any]) -> bool:
    """Return whether `COLUMNS` are those of an autovacuum."""
    return (columns[-1] or "").startswith("autovacuum:")


def prevents_wraparound(columns: Sequence[Any]) -> bool:
    """Return whether an autovacuum prevents wraparound. PostgreSQL does not cancel it then.

    https://www.postgresql.org/docs/current/routine-vacuuming.html#AUTOVACUUM
    """
    return is_autovacuum(columns) and "wraparound" in columns[-1]


def described(row: Sequence[Any]) -> str:
    """Return one line about a session, from its pid and `COLUMNS`."""
    pid, user, application, age, state, query = row
    if not pid:
        return "a prepared transaction (see pg_prepared_xacts)"
    user, application, query = (_printable(value) for value in (user, application, query))
    query = query.rstrip(";")
    if is_autovacuum(row):
        must_finish = ". PostgreSQL does not cancel it, so it must finish"
        return f"pid {pid} ({query[:100]}){must_finish if prevents_wraparound(row) else ''}"
    text = f"pid {pid} ({user or 'unknown user'}, {application or 'no application name'})"
    if age is not None:
        text += f" has had a transaction open for {age} s, {state}"
    return f"{text}: {query[:100]}"


def _printable(text: str | None) -> str:
    """Return a text on one line, without control characters, which a terminal would obey."""
    return " ".join("".join(c if c.isprintable() else " " for c in text or "").split())


@contextmanager
def listening(
    connection: Connection, listeners: Mapping[str, Callable[..., None]]
) -> Iterator[None]:
    """Listen to events of SQLAlchemy on a connection, by their names."""
    for name, listener in listeners.items():
        event.listen(connection, name, listener)
    try:
        yield
    finally:
        for name, listener in listeners.items():
            event.remove(connection, name, listener)


@contextmanager
def second_connection(connection: Connection, *, autocommit: bool = True) -> Iterator[Any]:
    """Open another connection to the same database, and yield the connection of the driver.

    It does not come from the engine's pool, which can be empty or hold one connection only.
    """
    borrowed = connection.engine.pool.recreate().connect()
    try:
        driver_connection: Any = borrowed.dbapi_connection
        driver_connection.rollback()
        driver_connection.autocommit = autocommit
        yield driver_connection
    finally:
        borrowed.invalidate()
