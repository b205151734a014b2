"""Sessions that hold locks on the tables of an upgrade: transactions and autovacuums."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import text

from langfuse_schema._checks import platform_locks
from langfuse_schema._postgres import sessions
from langfuse_schema._postgres.findings import finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import Connection

    from langfuse_schema._history.chain import Position
    from langfuse_schema._postgres.findings import Finding

_HOLDERS = text(
    f"""
    SELECT n.nspname || '.' || c.relname AS table_name, l.virtualtransaction,
           coalesce(l.pid, 0), v.phase, 100 * v.heap_blks_scanned / greatest(v.heap_blks_total, 1),
           {sessions.COLUMNS}
    FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
    LEFT JOIN pg_stat_progress_vacuum AS v ON v.pid = l.pid
    WHERE l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND (n.nspname || '.' || c.relname = ANY (:altered)
      -- A foreign key does not wait for readers of the table that it refers to.
      OR n.nspname || '.' || c.relname = ANY (:referenced)
      AND l.mode NOT IN ('AccessShareLock', 'RowShareLock')
      OR :policies AND n.nspname || '.' || c.relname = ANY ({platform_locks.LISTED}))
    ORDER BY 1, 3
    """
)


class _Holder(NamedTuple):
    """A lock on a table, with the session that holds it."""

    table: str
    transaction: str
    pid: int
    phase: str | None
    percent: int | None
    session: Sequence[object]

    @property
    def described(self) -> str:
        return sessions.described((self.pid, *self.session))

    @property
    def is_autovacuum(self) -> bool:
        return sessions.is_autovacuum(self.session)


def holders(connection: Connection, upgrade: Position, lock_timeout: float) -> Iterator[Finding]:
    """Find transactions that have used a table for longer than `lock_timeout`, and autovacuums.

    A role cannot always see when the transactions of other roles began. It can see the holders
    of locks, so the same transaction, seen twice, is old enough.

    Arguments:
        connection: to the database.
        upgrade: its affected tables, and those of the platform, are checked.
        lock_timeout: in seconds.
    """
    seen = _read(connection, upgrade) if upgrade.pending else []
    if not seen:
        return
    for holder in seen:
        if holder.is_autovacuum:
            yield _autovacuum(holder)
    old = {holder[:3] for holder in seen}
    if all(holder.is_autovacuum for holder in seen):
        return
    time.sleep(lock_timeout)
    still = [
        holder
        for holder in _read(connection, upgrade)
        if holder[:3] in old and not holder.is_autovacuum
    ]
    for name in dict.fromkeys(holder.table for holder in still):
        cause = "\n".join(holder.described for holder in still if holder.table == name)
        yield finding("table-in-use", name, seconds=f"{lock_timeout:g}", cause=cause)


def _autovacuum(holder: _Holder) -> Finding:
    progress = f"; {holder.phase}, {holder.percent} % of the table scanned" if holder.phase else ""
    prevents = sessions.prevents_wraparound(holder.session)
    advice = "Upgrade when it has finished." if prevents else "No action is needed."
    cause = holder.described + progress
    return finding("autovacuum-running", holder.table, cause=cause, advice=advice)


def _read(connection: Connection, upgrade: Position) -> list[_Holder]:
    tables = {
        "altered": [table.qualified_name for table in upgrade.changed],
        "referenced": sorted(upgrade.referenced()),
        "policies": upgrade.changes_policies,
    }
    rows = connection.execute(_HOLDERS, tables).all()
    return [_Holder(row[0], row[1], row[2], row[3], row[4], tuple(row[5:])) for row in rows]
