"""Open transactions that an upgrade would wait for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from langfuse_schema._postgres.findings import Finding
from langfuse_schema.watching import session_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from langfuse_schema._checks.pending import PendingUpgrade

_HOLDERS = text(
    """
    SELECT n.nspname || '.' || c.relname AS table_name, l.virtualtransaction,
           coalesce(l.pid, 0), a.usename, a.application_name,
           extract(epoch FROM clock_timestamp() - a.xact_start)::int, a.state, a.query
    FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
    WHERE l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND (n.nspname || '.' || c.relname = ANY (:altered)
      -- A foreign key does not wait for readers of the table that it refers to.
      OR n.nspname || '.' || c.relname = ANY (:referenced)
      AND l.mode NOT IN ('AccessShareLock', 'RowShareLock'))
    ORDER BY 1, 3
    """
)


def long_transactions(
    connection: Connection, upgrade: PendingUpgrade, lock_timeout: float
) -> Iterator[Finding]:
    """Find transactions that have used an affected table for longer than `lock_timeout`.

    A role cannot see when the transactions of other roles began. It can see who holds a lock,
    so the same transaction, seen twice, is old enough.

    Arguments:
        connection: to the database; only read. Its transaction is ended.
        upgrade: the pending upgrade.
        lock_timeout: in seconds.
    """
    tables = {
        "altered": [table.qualified_name for table in upgrade.changed],
        "referenced": sorted(upgrade.referenced()),
    }
    seen = _holders(connection, tables) if upgrade.revisions else {}
    if not seen:
        return
    time.sleep(lock_timeout)
    still = {key: row for key, row in _holders(connection, tables).items() if key in seen}
    for name in dict.fromkeys(name for name, *_ in still):
        sessions = [session_text(row) for (table, *_), row in still.items() if table == name]
        yield Finding(
            "table-in-use",
            name,
            "\n".join(sessions),
            f"no transaction that uses the table for longer than {lock_timeout:g} s",
            "an upgrade waits for it, trying again until lock_deadline; upgrade when it is over",
            severity="warning",
        )


def _holders(
    connection: Connection, tables: dict[str, list[str]]
) -> dict[tuple[str, str, int], tuple[Any, ...]]:
    rows = connection.execute(_HOLDERS, tables).all()
    connection.rollback()
    return {(row[0], row[1], row[2]): tuple(row[2:]) for row in rows}
