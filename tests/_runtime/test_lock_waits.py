"""Other sessions wait for a run at most one lock_timeout, and a run waits for their locks."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import ExitStack
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from langfuse_schema import migrations, tables
from langfuse_schema._postgres.findings import SchemaError
from tests.helpers.databases import (
    AOI,
    CHECKOUT,
    CORE,
    LINKS,
    POLICIES,
    SUPERUSER,
    WAITING,
    Database,
    alembic,
    environment,
    wait_until,
)
from tests.helpers.fixes import commands, follows
from tests.helpers.probes import WRITES, held, probes
from tests.helpers.projects import Project

PACKAGE = Project()

LOCK_TIMEOUT = 0.5
ALLOWANCE = 0.2
END_SECONDS = 5.0


def start(database: Database, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "alembic", *arguments],
        cwd=CHECKOUT,
        env=environment(DATABASE_URL=database.text),
        stderr=subprocess.PIPE,
        text=True,
    )


def assert_short_waits(
    database: Database,
    direction: str,
    held_tables: tuple[str, ...],
    seconds: float,
    project: Project = PACKAGE,
) -> None:
    """Assert that probes wait briefly during a run, while other sessions hold tables.

    The first table is held before the run, and the second one during the run.
    """
    if direction == "downgrade":
        project.migrate(database, "head")
    target = "head" if direction == "upgrade" else "base"
    with probes(database) as running, ExitStack() as holders:
        for table in held_tables[:1]:
            holders.enter_context(held(database, table))
        time.sleep(1.0)
        baseline = max(probe.worst for probe in running.values())
        process = project.start(database, direction, target)
        if held_tables:
            wait_until(database, WAITING)
        began = time.monotonic()
        for table in held_tables[1:]:
            time.sleep(1.0)
            holders.enter_context(held(database, table))
        time.sleep(max(0.0, began + seconds - time.monotonic()))
        holders.close()
        released = time.monotonic()
        _, message = process.communicate()
        ended = time.monotonic() - released
        worst = {table: round(probe.worst, 3) for table, probe in running.items()}
    assert process.returncode == 0, message
    print(f"{direction} {held_tables}: {worst}, baseline {baseline:.3f} s, end after {ended:.1f} s")
    assert max(worst.values()) <= baseline + LOCK_TIMEOUT + ALLOWANCE
    assert ended <= END_SECONDS or not held_tables


@pytest.mark.parametrize(
    "direction", ["upgrade", pytest.param("downgrade", marks=pytest.mark.slow)]
)
def test_other_sessions_wait_at_most_one_lock_timeout(
    database: Database, direction: str, project: Project
) -> None:
    assert_short_waits(database, direction, ("reflections", "auth.users"), 3.0, project)


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["upgrade", "downgrade"])
@pytest.mark.parametrize(
    "held_tables",
    [
        *((table,) for table in WRITES),
        ("auth.users", "auth.users"),
        ("ai_coach_messages", "reflections"),
        ("reflections", "auth.users"),
        ("auth.users", "encouragement_messages"),
    ],
    ids=" and ".join,
)
def test_other_sessions_wait_at_most_one_lock_timeout_during_ten_seconds(
    database: Database, direction: str, held_tables: tuple[str, ...]
) -> None:
    assert_short_waits(database, direction, held_tables, 10.0)


@pytest.mark.slow
def test_index_build_blocks_no_writer_of_large_table(database: Database) -> None:
    """benchmarks/live.py measures the waits, which are much shorter than lock_timeout."""
    for table in tables.APP_TABLES:
        database.execute(
            f"INSERT INTO {table} (user_id, body)"
            f" SELECT '{AOI}', 'x' FROM generate_series(1, 100000)"
        )
    assert_short_waits(database, "upgrade", (), 0.0)


def test_upgrade_reports_blocking_session_at_lock_deadline(database: Database) -> None:
    with held(database, "encouragement_messages") as holder:
        outcome = alembic(
            database, "-x", "lock_deadline=1s", "-x", "lock_timeout=200ms", "upgrade", "head"
        )
        assert outcome.code != 0
        for message in (
            "error[table-locked]: could not lock public.encouragement_messages within 1 s",
            f"pid {holder.info.backend_pid} (supabase_admin, nightly report)",
            f"the database is at {CORE}",
            "then run the same command again.",
        ):
            assert message in outcome.stderr
        # As on Supabase, postgres is a member of pg_monitor, which reads the queries of all roles.
        assert WRITES["encouragement_messages"][:60] in outcome.stderr
        assert "Traceback" not in outcome.stderr
    (column,) = database.execute(
        "SELECT count(*) FROM pg_attribute WHERE attname = 'langfuse_trace_id'"
        " AND attrelid = 'ai_coach_messages'::regclass"
    )
    assert column == (1,), "the completed step was not kept"
    migrations.upgrade(database.url)


@follows("table-locked")
def test_downgrade_reports_query_of_blocking_session_of_same_role(database: Database) -> None:
    migrations.upgrade(database.url)
    with database.connect() as holder:
        holder.exec_driver_sql("BEGIN; SELECT 1 FROM langfuse_scores; SELECT 'payroll'")
        with pytest.raises(
            SchemaError, match=r"a transaction open for . s, idle.*payroll"
        ) as stopped:
            migrations.downgrade(database.url, "base", lock_timeout=0.2, lock_deadline=0.5)
        (finding,) = stopped.value.findings
        pid = holder.connection.dbapi_connection.info.backend_pid  # type: ignore[union-attr]
        assert finding.code == "table-locked"
        assert finding.fix == (f"SELECT pg_terminate_backend({pid});",)
        (command,) = commands(finding)
        assert database.execute(command) == [(True,)]
    migrations.downgrade(database.url, "base")


def test_table_locked_by_superuser_has_no_fix(database: Database) -> None:
    """The migrating role does not have the privilege to end such a session."""
    with held(database, "encouragement_messages") as holder:
        with pytest.raises(SchemaError) as stopped:
            migrations.upgrade(database.url, lock_timeout=0.2, lock_deadline=0.5)
        (finding,) = stopped.value.findings
        assert f"pid {holder.info.backend_pid} (supabase_admin" in str(finding.cause)
        assert finding.fix == ()
        assert "pg_terminate_backend" not in str(finding)
        with pytest.raises(sa.exc.ProgrammingError, match=r"permission denied|must be a superuser"):
            database.execute(f"SELECT pg_terminate_backend({holder.info.backend_pid})")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "origin", "steps", "reached"),
    [("upgrade", "base", "+2", LINKS), ("downgrade", POLICIES, "-2", CORE)],
)
def test_relative_target_is_unchanged_by_lock_retries(
    database: Database, command: str, origin: str, steps: str, reached: str
) -> None:
    if origin != "base":
        migrations.upgrade(database.url, origin)
    with held(database, "reflections"):
        process = start(database, command, steps)
        wait_until(database, WAITING)
        time.sleep(1.0)
    _, message = process.communicate()
    assert process.returncode == 0, message
    assert "public.reflections is locked" in message
    found = database.execute("SELECT version_num FROM langfuse_migrations.alembic_version")
    assert found == [(reached,)]


def test_upgrade_locks_at_most_one_app_table_at_a_time(database: Database) -> None:
    """The locks that block a write are read after each statement."""
    engine = sa.create_engine(database.url, poolclass=sa.NullPool)
    names = ", ".join(f"'{name}'" for name in tables.APP_TABLES)
    locked_tables = set()

    def record_locks(connection: sa.Connection, *_: Any) -> None:
        pid = connection.connection.dbapi_connection.info.backend_pid  # type: ignore[union-attr]
        locked = database.execute(
            "SELECT DISTINCT c.relname FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation"
            f" WHERE l.pid = {pid} AND c.relname IN ({names}) AND l.mode IN"
            " ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')"
        )
        locked_tables.add(tuple(name for (name,) in locked))

    event.listen(engine, "after_cursor_execute", record_locks)
    migrations.upgrade(engine)
    assert locked_tables == {(), *((name,) for name in tables.APP_TABLES)}


def test_upgrade_at_head_succeeds_while_table_is_locked(database: Database) -> None:
    migrations.upgrade(database.url)
    with database.connect() as holder:
        holder.exec_driver_sql("BEGIN; LOCK TABLE langfuse_traces")
        outcome = alembic(database, "-x", "lock_timeout=100ms", "upgrade", "head")
        holder.exec_driver_sql("ROLLBACK")
    assert outcome.code == 0
    assert "nothing to do; a table is locked" in outcome.stderr


def test_upgrade_waits_for_access_exclusive_lock_of_other_session(database: Database) -> None:
    """Preflight cannot read such a table either."""
    with database.connect(SUPERUSER) as holder:
        holder.exec_driver_sql("BEGIN; LOCK TABLE reflections")
        process = start(database, "upgrade", "head")
        wait_until(database, WAITING)
        holder.exec_driver_sql("ROLLBACK")
    _, message = process.communicate()
    assert process.returncode == 0, message
