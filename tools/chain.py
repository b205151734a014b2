"""Run all revisions on the embedded PostgreSQL, and read their tables and their locks."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa
from alembic import command
from sqlalchemy import event

from langfuse_schema import migrations
from langfuse_schema._history.chain import VERSION_TABLE
from langfuse_schema._history.snapshots import Tables, added
from langfuse_schema._postgres import catalog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.engine import URL

# From the weakest to the strongest, in the order of PostgreSQL's table of conflicting lock modes.
_MODES = (
    "AccessShareLock",
    "RowShareLock",
    "RowExclusiveLock",
    "ShareUpdateExclusiveLock",
    "ShareLock",
    "ShareRowExclusiveLock",
    "ExclusiveLock",
    "AccessExclusiveLock",
)
_BLOCKING_MODES = _MODES[3:]
"""The modes that can block a read, a write or another index build."""

_HELD = """
SELECT n.nspname || '.' || c.relname, l.mode FROM pg_locks AS l
JOIN pg_class AS c ON c.oid = l.relation JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE l.pid = %s AND l.granted AND c.relkind = 'r'
  AND n.nspname IN ('public', 'auth')
"""

Locks = dict[str, str]
"""The strongest lock of each table, by `schema.table`."""


@dataclass(frozen=True)
class Measured:
    """The tables that a revision added, and the locks of its upgrade and its downgrade."""

    tables: Tables
    upgrade: Locks
    downgrade: Locks


def run_all(url: URL) -> dict[str, Measured]:
    """Run each revision up, down and up again.

    Arguments:
        url: a database that was never migrated. At the end, it has no revision.

    Returns:
        The results by revision, from the oldest to the newest.
    """
    before = read_tables(url)
    measured = {}
    for revision in migrations.revisions():
        up = _locks_of(url, lambda engine, to=revision: _migrate(engine, command.upgrade, to))
        tables = added(before, read_tables(url))
        down = _locks_of(url, lambda engine: _migrate(engine, command.downgrade, "-1"))
        # On a busy machine, the first upgrade can end before the locks of a build are read.
        up_again = _locks_of(url, lambda engine, to=revision: _migrate(engine, command.upgrade, to))
        measured[revision] = Measured(tables, _stronger(up, up_again), down)
    _migrate(url, command.downgrade, "base")
    return measured


def _stronger(one: Locks, other: Locks) -> Locks:
    names = sorted({*one, *other})
    weakest = _MODES[0]
    return {
        name: max(one.get(name, weakest), other.get(name, weakest), key=_MODES.index)
        for name in names
    }


def read_tables(url: URL) -> Tables:
    """Return all tables except the version table, in the order of their creation."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        found = catalog.read(connection)
    return {name: table for name, table in found.items() if table.schema != VERSION_TABLE.schema}


def _migrate(target: URL | sa.Engine, direction: Callable[..., None], revision: str) -> None:
    """Migrate without preflight, because it compares the snapshots."""
    config = migrations.config_for(target)
    config.attributes["checked"] = False
    direction(config, revision)


def _locks_of(url: URL, step: Callable[[sa.Engine], None]) -> Locks:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    observing = sa.create_engine(url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    strongest: Locks = {}
    lock = threading.Lock()

    def record(rows: list[tuple[str, str]]) -> None:
        with lock:
            for table, mode in rows:
                if table in before and mode in _BLOCKING_MODES:
                    previous = strongest.get(table, _MODES[0])
                    strongest[table] = max(previous, mode, key=_MODES.index)

    def before_commit(connection: sa.Connection) -> None:
        with connection.connection.cursor() as cursor:
            cursor.execute(_HELD.replace("%s", "pg_backend_pid()"))
            record(cursor.fetchall())

    with (
        ThreadPoolExecutor() as pool,
        observing.connect() as observer,
        _open_snapshots(url) as end_snapshot,
    ):
        before = set(
            observer.exec_driver_sql(
                "SELECT schemaname || '.' || tablename FROM pg_tables"
            ).scalars()
        )
        event.listen(engine, "commit", before_commit)
        run = pool.submit(step, engine)
        while not run.done():
            # A build waits for the snapshot, so its locks can be read.
            building = observer.exec_driver_sql(
                "SELECT pid FROM pg_stat_progress_create_index"
                " WHERE phase = 'waiting for old snapshots'"
            ).scalar()
            if building:
                record([tuple(row) for row in observer.exec_driver_sql(_HELD, (building,))])
                end_snapshot()
            wait([run], timeout=0.005)
        run.result()
    return dict(sorted(strongest.items()))


@contextmanager
def _open_snapshots(url: URL) -> Iterator[Callable[[], None]]:
    """Hold a snapshot, and yield a function that replaces it with a new one."""
    engine = sa.create_engine(url, poolclass=sa.NullPool, isolation_level="REPEATABLE READ")
    with engine.connect() as connection:

        def take_snapshot() -> None:
            connection.exec_driver_sql("SELECT 1 FROM pg_class LIMIT 1")

        def end_snapshot() -> None:
            connection.rollback()
            take_snapshot()

        take_snapshot()
        yield end_snapshot
