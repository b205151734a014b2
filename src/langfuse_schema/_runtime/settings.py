"""The settings of a run's session."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from langfuse_schema._postgres.sessions import SCRIPT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from sqlalchemy import Connection

_CHECK_INTERVAL = "client_connection_check_interval"

_OPTIONAL = {
    # PostgreSQL 17 and later.
    "transaction_timeout": "0",
    # PostgreSQL 14 and later. Without it the backend of a killed runner keeps the runner lock.
    _CHECK_INTERVAL: "2s",
}


def session_settings(lock_timeout: float) -> dict[str, str]:
    """Return the settings that every server has.

    The timeouts of a role are meant for queries, not for index builds, so they are off.
    """
    return {
        "lock_timeout": f"{round(lock_timeout * 1000)}ms",
        "statement_timeout": "0",
        "idle_in_transaction_session_timeout": "0",
        "search_path": "public",
        # Definitions are compared as text.
        "quote_all_identifiers": "off",
    }


def set_locally(connection: Connection, lock_timeout: float) -> None:
    """Change the settings for the current transaction, at its beginning.

    SET LOCAL is no query: the caller can still choose the isolation level of the transaction.
    """
    settings = session_settings(lock_timeout).items()
    script = "; ".join(f"SET LOCAL {name} TO '{value}'" for name, value in settings)
    connection.exec_driver_sql(script, execution_options=SCRIPT)


@contextmanager
def changed(connection: Connection, lock_timeout: float) -> Iterator[None]:
    """Change the settings of the session, and restore them at the end.

    The connection has no open transaction, and is left without one. The settings are no start-up
    options, because PgBouncer rejects those.
    """
    before = apply(connection, lock_timeout)
    try:
        yield
    finally:
        if not (connection.closed or connection.invalidated):
            connection.rollback()
            _set(connection, before)
            connection.commit()


def apply(connection: Connection, lock_timeout: float) -> dict[str, str]:
    """Change the settings of the session, and return the former ones.

    The connection has no open transaction, and is left without one.
    """
    expected = session_settings(lock_timeout) | _OPTIONAL
    before = _current(connection, expected)
    known = {name: value for name, value in expected.items() if name in before}
    try:
        _set(connection, known)
    except DBAPIError:
        # Not every operating system reports that a client has disconnected.
        connection.rollback()
        known.pop(_CHECK_INTERVAL, None)
        _set(connection, known)
    connection.commit()
    return before


def _current(connection: Connection, names: Iterable[str]) -> dict[str, str]:
    calls = ", ".join(f"current_setting('{name}', true) AS {name}" for name in names)
    row = connection.execute(text(f"SELECT {calls}")).one()
    return {name: value for name, value in row._asdict().items() if value is not None}


def _set(connection: Connection, settings: Mapping[str, str]) -> None:
    calls = ", ".join(f"set_config('{name}', :{name}, false)" for name in settings)
    connection.execute(text(f"SELECT {calls}"), dict(settings))
