"""One runner migrates at a time, and the other runners wait and succeed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from langfuse_schema import migrations
from langfuse_schema._runtime.options import Options
from tests.helpers.databases import (
    BUILDING,
    CHECKOUT,
    POLICIES,
    RUNNER_SESSION,
    SUPERUSER,
    Database,
    alembic,
    environment,
    langfuse_schema,
    wait_until,
)
from tests.helpers.probes import probes
from tests.helpers.projects import Project

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import OwnServer

WAITING_FOR_RUNNER_LOCK = f"""SELECT EXISTS (SELECT FROM pg_stat_activity
    WHERE query = 'COMMIT' AND state = 'idle' AND now() - state_change > interval '50 ms'
    AND {RUNNER_SESSION})"""
"""Whether a runner sleeps after an attempt to acquire the runner lock."""

PACKAGE = Project()
RUNNER_LOCK = PACKAGE.lock
RUNNERS = 20
ROUNDS, ROUNDS_OF_BARE_PROJECT = 10, 1


def start(
    database: Database, count: int, project: Project = PACKAGE
) -> list[subprocess.Popen[str]]:
    return [project.start(database, "upgrade", "head") for _ in range(count)]


def assert_one_runner_upgrades(database: Database, count: int, project: Project) -> None:
    """Start half of the runners on an empty database, and the others during an index build."""
    with database.connect() as reader:
        reader.exec_driver_sql("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM pg_class")
        runners = start(database, count // 2, project)
        wait_until(database, BUILDING)
        runners += start(database, count - count // 2, project)
        wait_until(database, WAITING_FOR_RUNNER_LOCK)
        reader.exec_driver_sql("ROLLBACK")
    printed = [runner.communicate()[1] for runner in runners]
    assert [runner.returncode for runner in runners] == [0] * count, printed
    migrated = [text for text in printed if "Running upgrade" in text]
    assert len(migrated) == 1
    waited = [text for text in printed if "waiting for another runner: pid " in text]
    assert waited
    assert all("(langfuse-schema) since 20" in text for text in waited)


def test_one_of_four_runners_upgrades_and_others_wait(database: Database) -> None:
    assert_one_runner_upgrades(database, 4, PACKAGE)
    assert database.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(0,)]


@pytest.mark.slow
def test_one_of_four_runners_upgrades_embedded_database_of_checkout(tmp_path: Path) -> None:
    """The runners also start and prepare the embedded database once."""
    for part in ("alembic.ini", "alembic", "src"):
        copy = shutil.copytree if (CHECKOUT / part).is_dir() else shutil.copy
        copy(CHECKOUT / part, tmp_path / part)
    runners = [
        subprocess.Popen(
            [sys.executable, "-m", "alembic", "upgrade", "head"],
            cwd=tmp_path,
            env=environment(PYTHONPATH=str(tmp_path / "src")),
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    printed = [runner.communicate()[1] for runner in runners]
    assert [runner.returncode for runner in runners] == [0] * 4, printed
    assert len([text for text in printed if "Running upgrade" in text]) == 1
    assert all("the embedded database in" in text for text in printed)
    assert not any(f"{CHECKOUT}/.langfuse-schema" in text for text in printed)


@pytest.mark.slow
def test_one_of_twenty_runners_upgrades_in_each_round(
    own_server: OwnServer, project: Project
) -> None:
    rounds = ROUNDS if project == PACKAGE else ROUNDS_OF_BARE_PROJECT
    for _ in range(rounds):
        assert_one_runner_upgrades(own_server.database, RUNNERS, project)
        project.migrate(own_server.database, "base", downgrade=True)
    log = own_server.log()
    assert log.count("CREATE TABLE public.langfuse_traces") == rounds, "the log contains no DDL"
    assert "deadlock detected" not in log
    assert "ERROR" not in log


def hold_runner_lock(connection: sa.Connection) -> None:
    connection.exec_driver_sql("SET application_name = 'other runner'")
    assert RUNNER_LOCK.try_twice(connection)


def test_wait_for_runner_lock_ends_at_lock_deadline(database: Database) -> None:
    with database.connect() as other:
        hold_runner_lock(other)
        outcome = alembic(database, "-x", "lock_deadline=500ms", "upgrade", "head")
        pid = other.exec_driver_sql("SELECT pg_backend_pid()").scalar()
    assert outcome.code != 0
    assert "another-runner" in outcome.stderr
    assert f"pid {pid} (other runner) since 20" in outcome.stderr
    assert "pg_locks" in outcome.stderr, "the error contains no query for the holder"
    assert "public.langfuse_traces" not in database.catalog().tables


def test_upgrade_at_head_and_read_only_commands_never_wait_for_runner_lock(
    database: Database,
) -> None:
    migrations.upgrade(database.url, POLICIES)
    commands = ("current", "history", "check", "preflight")
    migrations.upgrade(database.url)
    with database.connect() as other:
        hold_runner_lock(other)
        migrations.upgrade(database.url, lock_deadline=0.1)
        migrations.upgrade(database.url, POLICIES, lock_deadline=0.1)
        outcomes = [
            langfuse_schema(database, "-x", "lock_deadline=100ms", command) for command in commands
        ]
    assert "waiting" not in "".join(outcome.stderr for outcome in outcomes)
    assert [outcome.code for outcome in outcomes] == [0, 0, 0, 0]


def test_ensure_held_never_releases_runner_lock(database: Database) -> None:
    """Another session tries to acquire the lock repeatedly during the checks of the holder."""
    acquire = RUNNER_LOCK.acquire
    attempts_sql = f"SELECT count(*) FROM generate_series(1, 1000000) WHERE {acquire}"
    with database.connect() as holder, database.connect() as other, ThreadPoolExecutor() as thread:
        with RUNNER_LOCK.held(holder, deadline=1):
            attempts = thread.submit(other.exec_driver_sql, attempts_sql)
            while not attempts.done():
                RUNNER_LOCK.ensure_held(holder)
            assert attempts.result().scalar() == 0
        assert other.exec_driver_sql(f"SELECT {acquire}").scalar() is True


def test_runner_lock_ignores_other_databases_and_advisory_locks(
    database: Database, second_database: Database
) -> None:
    with database.connect() as other:
        hold_runner_lock(other)
        migrations.upgrade(second_database.url, lock_deadline=0.1)
    first, second = RUNNER_LOCK.key
    key = first << 32 | second
    with second_database.connect() as unrelated:
        unrelated.exec_driver_sql(f"SELECT pg_advisory_lock({key})")
        unrelated.exec_driver_sql(f"SELECT pg_advisory_lock({first}, 0)")
        migrations.downgrade(second_database.url, "base", lock_deadline=0.1)


def test_upgrade_succeeds_with_pool_of_one_connection(database: Database) -> None:
    engine = sa.create_engine(database.url, pool_size=1, max_overflow=0, pool_timeout=1)
    migrations.upgrade(engine)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SHOW lock_timeout").scalar() == "0"
        connection.rollback()
    engine.dispose()


def test_failed_upgrade_through_autocommit_engine_is_rolled_back(database: Database) -> None:
    """A revision is a transaction, although the engine is in autocommit mode."""
    engine = sa.create_engine(database.url, isolation_level="AUTOCOMMIT")

    def fail(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "CREATE TABLE public.rate_limit_logs" in statement:
            raise RuntimeError

    sa.event.listen(engine, "before_cursor_execute", fail)
    with pytest.raises(RuntimeError):
        migrations.upgrade(engine)
    assert "public.langfuse_traces" not in database.catalog().tables
    engine.dispose()


def test_upgrade_through_psycopg_reports_lock_and_succeeds_without_it(database: Database) -> None:
    engine = sa.create_engine(database.url.set(drivername="postgresql+psycopg"))
    with database.connect(SUPERUSER) as holder:
        holder.exec_driver_sql("BEGIN; SELECT 1 FROM reflections")
        with pytest.raises(Exception, match=r"table-locked\]: could not lock public\.reflections"):
            migrations.upgrade(engine, lock_timeout=0.1, lock_deadline=0.3)
        holder.exec_driver_sql("ROLLBACK")
    migrations.upgrade(engine)
    migrations.downgrade(engine, "base")
    engine.dispose()


@pytest.mark.slow
def test_upgrade_builds_each_index_once_during_long_transaction(own_server: OwnServer) -> None:
    database = own_server.database
    with probes(database) as running:
        with database.connect(SUPERUSER) as reader:
            reader.exec_driver_sql(
                "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM auth.users"
            )
            (runner,) = start(database, 1)
            wait_until(database, BUILDING)
            time.sleep(20.0)
            reader.exec_driver_sql("ROLLBACK")
        released = time.monotonic()
        printed = runner.communicate()[1]
        ended = time.monotonic() - released
    assert runner.returncode == 0
    assert ended <= 5.0
    worst = max(probe.worst for probe in running.values())
    print(f"longest statement of other sessions: {worst:.3f} s")
    assert worst < Options.lock_timeout
    built = [line for line in own_server.log().splitlines() if "CREATE INDEX CONCURRENTLY" in line]
    assert len(built) == len(set(built))
    assert len(built) >= 3
    reports = [line for line in printed.splitlines() if "waiting for old snapshots" in line]
    assert len(reports) == 2, "expected one line every ten seconds"
