"""The settings of a run's session."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import WeakSet

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from langfuse_schema._postgres.sessions import READING, SCRIPT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy import Connection, Transaction

_CHECK_INTERVAL = "client_connection_check_interval"

IDLE_IN_TRANSACTION_SECONDS, IDLE_SECONDS = 10.0, 15.0
"""The limits for a client that is frozen, such as a sleeping laptop.

Between two statements, the code of this package's revisions takes milliseconds. A runner pauses for
at most two seconds between two tries. After these limits, the server releases the locks.
"""

_NEW = "new_"

_OPTIONAL = {
    # PostgreSQL 17 and later.
    "transaction_timeout": "0",
    # PostgreSQL 14 and later. Without it the backend of a killed runner keeps the runner lock.
    _CHECK_INTERVAL: "2s",
}

_transactions: WeakSet[Transaction | None] = WeakSet()
"""The transactions that began with the settings of a run."""


def timeouts(
    lock: float, *, idle_in_transaction: float | None = None, idle: float | None = None
) -> dict[str, str]:
    """Return the timeouts of a run, from seconds; None keeps the one of the role.

    The statement_timeout of a role is meant for queries, not for index builds, so it is off.
    """
    times = {
        "lock_timeout": lock,
        "statement_timeout": 0.0,
        "idle_in_transaction_session_timeout": idle_in_transaction,
        "idle_session_timeout": idle,
    }
    return {name: milliseconds(time) for name, time in times.items() if time is not None}


def session_settings(lock_timeout: float) -> dict[str, str]:
    """Return the settings for this package's revisions, which every server has."""
    return {**timeouts(lock_timeout, idle_in_transaction=IDLE_IN_TRANSACTION_SECONDS), **READING}


def milliseconds(seconds: float) -> str:
    """Return the value of a timeout."""
    return f"{round(seconds * 1000)}ms" if seconds else "0"


def set_locally(connection: Connection, lock_timeout: float) -> None:
    """Change the settings for the current transaction, at its beginning."""
    apply_locally(connection, session_settings(lock_timeout))


def apply_locally(connection: Connection, settings: Mapping[str, str]) -> None:
    """Change these settings for the current transaction, at its beginning.

    SET LOCAL is no query: the caller can still choose the isolation level of the transaction.
    """
    connection.exec_driver_sql(local_script(settings), execution_options=SCRIPT)
    _transactions.add(connection.get_transaction())


def local_script(settings: Mapping[str, str]) -> str:
    """Return the statements that change settings for a transaction."""
    return "; ".join(f"SET LOCAL {name} TO '{value}'" for name, value in settings.items())


def applied_locally(connection: Connection) -> bool:
    """Return whether the open transaction is one that began with the settings of a run."""
    return connection.get_transaction() in _transactions


@contextmanager
def changed(connection: Connection, settings: Mapping[str, str]) -> Iterator[None]:
    """Change the settings of the session, and restore them at the end.

    The connection has no open transaction, and is left without one. The settings are no start-up
    options, because PgBouncer rejects those.
    """
    before = apply(connection, settings)
    try:
        yield
    finally:
        if not (connection.closed or connection.invalidated):
            connection.rollback()
            _set(connection, before)
            connection.commit()


def apply(connection: Connection, settings: Mapping[str, str]) -> dict[str, str]:
    """Change the settings of the session, and return the former ones.

    The connection has no open transaction, and is left without one.
    """
    expected = {**settings, **_OPTIONAL}
    try:
        before = _exchange(connection, expected)
    except DBAPIError:
        # Not every operating system reports that a client has disconnected.
        connection.rollback()
        del expected[_CHECK_INTERVAL]
        before = _exchange(connection, expected)
    connection.commit()
    return before


def _exchange(connection: Connection, settings: Mapping[str, str]) -> dict[str, str]:
    """Set those settings that the server has, and return their former values."""
    # PostgreSQL evaluates the columns one after the other, and each costs no round trip.
    calls = ", ".join(
        f"current_setting('{name}', true) AS {name}, CASE WHEN current_setting('{name}', true)"
        f" IS NOT NULL THEN set_config('{name}', :{name}, false) END AS {_NEW}{name}"
        for name in settings
    )
    row = connection.execute(text(f"SELECT {calls}"), dict(settings)).one()._asdict()
    return {name: row[name] for name in settings if row[name] is not None}


def _set(connection: Connection, settings: Mapping[str, str]) -> None:
    calls = ", ".join(f"set_config('{name}', :{name}, false)" for name in settings)
    connection.execute(text(f"SELECT {calls}"), dict(settings))
