"""The next run repairs the database after a run that ended at any statement."""

from __future__ import annotations

import logging
import re
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from psycopg2.extensions import get_wait_callback

from langfuse_schema import migrations
from tests.helpers.databases import (
    BUILDING,
    CHECKOUT,
    CORE,
    REVISIONS,
    SUPERUSER,
    Database,
    environment,
    run,
    signal_build,
    wait_until,
)
from tests.helpers.projects import Project
from tests.helpers.tcp_proxy import kill_at, proxied, start

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import OwnServer
    from tests.helpers.databases import Catalog

DIRECTIONS = {"upgrade": ("base", "head"), "downgrade": ("head", "base")}

PACKAGE = Project()

EXIT_SECONDS = 1.0
STALLED_STATEMENT = 25  # the message with the first revision
ORPHAN_SECONDS = 10.0  # client_connection_check_interval is 2 s


def migrate(database: Database, revision: str, project: Project = PACKAGE) -> None:
    """Downgrade to base, or upgrade to head."""
    project.migrate(database, revision, downgrade=revision == "base")


def statements_of(database: Database, direction: str, project: Project = PACKAGE) -> list[str]:
    """Return the statements of an uninterrupted run, and migrate back to its origin."""
    origin, target = DIRECTIONS[direction]
    migrate(database, origin, project)
    with proxied(database) as (proxy, through):
        process = start(direction, through, target, project)
        process.join()
        assert process.exitcode == 0
        statements = list(proxy.statements)
    migrate(database, origin, project)
    return statements


def expected_catalogs(database: Database, project: Project = PACKAGE) -> dict[str, Catalog]:
    """Return the catalogs of all schemas at head and at base, with a version table."""
    found = {}
    for revision in ("head", "base"):
        migrate(database, revision, project)
        found[revision] = database.catalog()
    return found


def assert_no_lock_or_invalid_index(database: Database) -> None:
    assert database.execute(
        "SELECT (SELECT count(*) FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database"
        "   WHERE l.locktype = 'advisory' AND d.datname = current_database()),"
        " (SELECT count(*) FROM pg_index WHERE NOT indisvalid)"
    ) == [(0, 0)]


@pytest.mark.slow
@pytest.mark.parametrize("repaired_by", ["head", "base"])
@pytest.mark.parametrize("direction", ["upgrade", "downgrade"])
def test_next_run_repairs_database_after_kill_at_any_statement(
    database: Database,
    direction: str,
    repaired_by: str,
    record_property: Callable[[str, object], None],
) -> None:
    expected = expected_catalogs(database)
    origin, target = DIRECTIONS[direction]
    statements = statements_of(database, direction)
    points = kill_points(statements)
    repaired = 0
    for number, before in points:
        point = f"{'before' if before else 'after'} {number}: {statements[number - 1]}"
        assert kill_at(direction, database, target, number, before=before), point
        migrate(database, repaired_by)
        assert database.catalog() == expected[repaired_by], point
        assert_no_lock_or_invalid_index(database)
        repaired += 1
        if repaired_by != origin:
            migrate(database, origin)
    label = f"of {len(points)} kills in {len(statements)} statements of {direction}"
    record_property(f"{label}, repaired by a run to {repaired_by}", repaired)


def kill_points(statements: list[str]) -> list[tuple[int, bool]]:
    """Return the points before each statement, and those during each statement that writes.

    A kill during a statement that reads has the same effect as a kill before it.
    """
    reading = ("SELECT", "BEGIN", "ROLLBACK", "SHOW")
    points = []
    for number, statement in enumerate(statements, start=1):
        points.append((number, True))
        first = statement.removeprefix("BEGIN;").lstrip().upper()
        if number == len(statements) or not first.startswith(reading):
            points.append((number, False))
    return points


@pytest.mark.slow
def test_next_run_repairs_database_after_kill_in_each_revision(
    database: Database, project: Project
) -> None:
    """This test kills a run once in each revision and in each build."""
    expected = expected_catalogs(database, project)
    points = commits_and_builds(statements_of(database, "upgrade", project))
    builds = sum("CREATE INDEX CONCURRENTLY" in statement for _, statement in points)
    assert builds > 0
    assert len(points) == len(REVISIONS) + builds
    for number, statement in points:
        assert kill_at("upgrade", database, "head", number, before=False, project=project)
        migrate(database, "head", project)
        assert database.catalog() == expected["head"], statement
        assert_no_lock_or_invalid_index(database)
        migrate(database, "base", project)


def commits_and_builds(statements: list[str]) -> list[tuple[int, str]]:
    """Return the end of each revision and each online index build, with their numbers."""
    recorded = re.compile(
        r"(INSERT INTO|UPDATE|DELETE FROM) (langfuse_migrations\.)?alembic_version\b"
    )
    return [
        (number, statement)
        for number, statement in enumerate(statements, start=1)
        if "CONCURRENTLY" in statement or recorded.search(statement)
    ]


def terminate(database: Database) -> None:
    database.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'langfuse-schema' AND datname = current_database()",
        SUPERUSER,
    )


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["upgrade", "downgrade"])
@pytest.mark.parametrize("loss", ["terminate", "cut"])
def test_next_run_repairs_database_after_lost_connection(
    database: Database, direction: str, loss: str, record_property: Callable[[str, object], None]
) -> None:
    def interrupt() -> None:
        if loss == "terminate":
            terminate(database)

    repaired = repair_lost_connections(database, direction, interrupt, cut=loss == "cut")
    record_property(f"connections lost by {loss} in {direction}, repaired", repaired)


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["upgrade", "downgrade"])
def test_next_run_repairs_database_after_restart_of_server(
    own_server: OwnServer, direction: str, record_property: Callable[[str, object], None]
) -> None:
    repaired = repair_lost_connections(
        own_server.database, direction, own_server.restart, cut=False
    )
    record_property(f"restarts of the server in {direction}, repaired", repaired)


def repair_lost_connections(
    database: Database, direction: str, interrupt: Callable[[], None], *, cut: bool
) -> int:
    """Interrupt a run at the end of each revision and in each build, and count the repairs."""
    repaired = 0
    expected = expected_catalogs(database)
    origin, target = DIRECTIONS[direction]
    points = commits_and_builds(statements_of(database, direction))
    for repaired_by in ("head", "base"):
        for number, statement in points:
            migrate(database, origin)
            with proxied(database, number, before=False) as (proxy, through):
                proxy.on_stop, proxy.cut = interrupt, cut
                process = start(direction, through, target)
                process.join()
                # The client can exit before the interruption is complete.
                assert proxy.stopped.wait(60), statement
            migrate(database, repaired_by)
            assert database.catalog() == expected[repaired_by], statement
            assert_no_lock_or_invalid_index(database)
            repaired += 1
    return repaired


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)
@pytest.mark.parametrize(
    "program", [pytest.param("alembic", marks=pytest.mark.slow), "langfuse_schema"]
)
def test_runner_exits_within_one_second_of_signal(
    database: Database, program: str, number: int, code: int
) -> None:
    exited_after = interrupt_build(database, program, number, code)
    began = time.monotonic()
    run(sys.executable, "-m", program, "heads")
    # On a busy machine, a process without work can take longer than the limit.
    assert exited_after <= max(EXIT_SECONDS, time.monotonic() - began)
    migrate(database, "head")
    assert_no_lock_or_invalid_index(database)


def test_runner_exits_within_one_second_of_signal_when_network_stalls(database: Database) -> None:
    stalled, released = threading.Event(), threading.Event()
    with proxied(database, stop_at=STALLED_STATEMENT) as (proxy, through):

        def stall() -> None:
            proxy.silent = True
            stalled.set()
            released.wait(30)

        proxy.on_stop = stall
        process = subprocess.Popen(
            [sys.executable, "-m", "langfuse_schema", "upgrade", "head"],
            cwd=CHECKOUT,
            env=environment(DATABASE_URL=through.text),
            stderr=subprocess.PIPE,
            text=True,
        )
        assert stalled.wait(30)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, printed = process.communicate(timeout=30)
        exited_after = time.monotonic() - began
        released.set()
    began = time.monotonic()
    run(sys.executable, "-m", "langfuse_schema", "heads")
    assert exited_after <= max(EXIT_SECONDS, time.monotonic() - began)
    assert process.returncode == 130
    assert "interrupted; run the same command again to resume" in printed
    migrate(database, "head")
    assert_no_lock_or_invalid_index(database)


def interrupt_build(database: Database, program: str, number: int, code: int) -> float:
    """Send a signal to a run, check its output, and return the seconds until it ended."""

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", program, "upgrade", "head"],
            cwd=CHECKOUT,
            env=environment(DATABASE_URL=database.text),
            stderr=subprocess.PIPE,
            text=True,
        )

    exited_after, returned, printed = signal_build(database, start, number)
    assert returned == code
    assert f"interrupted; the database is at {CORE}; run the same command again" in printed
    assert "Traceback" not in printed
    return exited_after


def test_upgrade_keeps_signal_handlers_and_loggers_of_program(database: Database) -> None:
    """The state of the process is unchanged during a run and after it."""

    def process_state() -> list[object]:
        loggers = [logging.getLogger(name) for name in ("", "alembic", "langfuse_schema")]
        return [
            signal.getsignal(signal.SIGINT),
            signal.getsignal(signal.SIGTERM),
            get_wait_callback(),
            *((logger.level, [*logger.handlers], [*logger.filters]) for logger in loggers),
        ]

    def record_state(*_: object) -> None:
        states.append(process_state())

    before = process_state()
    states: list[list[object]] = []
    engine = sa.create_engine(database.url, poolclass=sa.NullPool)
    sa.event.listen(engine, "before_cursor_execute", record_state)
    migrations.upgrade(engine)
    assert states
    assert all(during == before for during in states)
    assert process_state() == before


def test_next_runner_waits_for_orphaned_backend_of_killed_runner(database: Database) -> None:
    with database.connect() as reader:
        reader.exec_driver_sql("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM pg_class")
        killed = start("upgrade", database, "head")
        wait_until(database, BUILDING)
        orphan = lock_holders(database)
        killed.kill()
        killed.join()
        assert lock_holders(database) == orphan, "the orphaned backend does not hold the lock"
        next_run = start("upgrade", database, "head")
        deadline = time.monotonic() + ORPHAN_SECONDS
        while builders(database) <= orphan:
            assert time.monotonic() < deadline
        assert lock_holders(database) == builders(database), "the builder does not hold the lock"
        reader.exec_driver_sql("ROLLBACK")
        next_run.join()
    assert next_run.exitcode == 0
    assert_no_lock_or_invalid_index(database)


def lock_holders(database: Database) -> set[int]:
    return pids(database, "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted")


def builders(database: Database) -> set[int]:
    return pids(database, "SELECT pid FROM pg_stat_progress_create_index")


def pids(database: Database, query: str) -> set[int]:
    return {row[0] for row in database.execute(query)}
