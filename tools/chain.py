"""Run all revisions on the embedded PostgreSQL: their snapshots, and the locks that they take."""

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

# Weakest first, as in the table of conflicts of PostgreSQL's documentation.
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
_FELT = _MODES[3:]
"""The modes that reads or writes, or other index builds, can wait for."""

_HELD = """
SELECT n.nspname || '.' || c.relname, l.mode FROM pg_locks AS l
JOIN pg_class AS c ON c.oid = l.relation JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE l.pid = %s AND l.granted AND c.relkind = 'r'
  AND n.nspname IN ('public', 'auth')
"""

Locks = dict[str, str]
"""The strongest lock by `schema.table`."""


@dataclass(frozen=True)
class Measured:
    """The schema after a revision, and the locks of its upgrade and its downgrade."""

    tables: Tables
    upgrade: Locks
    downgrade: Locks


def run_all(url: URL) -> dict[str, Measured]:
    """Run each revision up, down and up again.

    Arguments:
        url: a database that was never migrated; it is left without any revision.

    Returns:
        The results by revision, oldest first.
    """
    before = read_tables(url)
    measured = {}
    for revision in migrations.revisions():
        up = _locks_of(url, lambda engine, to=revision: _go(engine, command.upgrade, to))
        tables = added(before, read_tables(url))
        down = _locks_of(url, lambda engine: _go(engine, command.downgrade, "-1"))
        # Under load, the locks of a build can be missed once.
        again = _locks_of(url, lambda engine, to=revision: _go(engine, command.upgrade, to))
        measured[revision] = Measured(tables, _stronger(up, again), down)
    _go(url, command.downgrade, "base")
    return measured


def _stronger(one: Locks, other: Locks) -> Locks:
    names = sorted({*one, *other})
    weakest = _MODES[0]
    return {
        name: max(one.get(name, weakest), other.get(name, weakest), key=_MODES.index)
        for name in names
    }


def read_tables(url: URL) -> Tables:
    """Read all tables but the version table, in the order of their creation."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        found = catalog.read(connection)
    return {name: table for name, table in found.items() if table.schema != VERSION_TABLE.schema}


def _go(target: URL | sa.Engine, direction: Callable[..., None], revision: str) -> None:
    """Migrate without preflight, which compares snapshots."""
    config = migrations.config_for(target)
    config.attributes["checked"] = False
    direction(config, revision)


def _locks_of(url: URL, step: Callable[[sa.Engine], None]) -> Locks:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    look = sa.create_engine(url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    strongest: Locks = {}
    lock = threading.Lock()

    def note(rows: list[tuple[str, str]]) -> None:
        with lock:
            for table, mode in rows:
                if table in before and mode in _FELT:
                    known = strongest.get(table, _MODES[0])
                    strongest[table] = max(known, mode, key=_MODES.index)

    def before_commit(connection: sa.Connection) -> None:
        with connection.connection.cursor() as cursor:
            cursor.execute(_HELD.replace("%s", "pg_backend_pid()"))
            note(cursor.fetchall())

    with (
        ThreadPoolExecutor() as pool,
        look.connect() as observer,
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
                note([tuple(row) for row in observer.exec_driver_sql(_HELD, (building,))])
                end_snapshot()
            wait([run], timeout=0.005)
        run.result()
    return dict(sorted(strongest.items()))


@contextmanager
def _open_snapshots(url: URL) -> Iterator[Callable[[], None]]:
    """Hold a snapshot as a long report does. The function replaces it with a new one."""
    engine = sa.create_engine(url, poolclass=sa.NullPool, isolation_level="REPEATABLE READ")
    with engine.connect() as connection:

        def take() -> None:
            connection.exec_driver_sql("SELECT 1 FROM pg_class LIMIT 1")

        def end_snapshot() -> None:
            connection.rollback()
            take()

        take()
        yield end_snapshot
