"""A run may end at any statement, in any way: the next run heals what it left."""

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
    until,
)
from tests.helpers.projects import Project
from tests.helpers.tcp_proxy import kill_at, proxied, start

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import OwnServer
    from tests.helpers.databases import Catalog

DIRECTIONS = {"upgrade": ("base", "head"), "downgrade": ("head", "base")}

OWN = Project()
BUILDS = 6

EXIT_SECONDS = 1.0
STALLED_STATEMENT = 25  # the message with the first revision
ORPHAN_SECONDS = 10.0  # client_connection_check_interval is 2 s


def go(database: Database, revision: str, project: Project = OWN) -> None:
    """Migrate to base or head from wherever the database is."""
    project.go(database, revision, downgrade=revision == "base")


def statements_of(database: Database, direction: str, project: Project = OWN) -> list[str]:
    """The statements of an undisturbed run, which ends where it began."""
    origin, target = DIRECTIONS[direction]
    go(database, origin, project)
    with proxied(database) as (proxy, through):
        process = start(direction, through, target, project)
        process.join()
        assert process.exitcode == 0
        statements = list(proxy.statements)
    go(database, origin, project)
    return statements


def undisturbed(database: Database, project: Project = OWN) -> dict[str, Catalog]:
    """The catalogs of all schemas at head and at base, once the version table is there."""
    found = {}
    for revision in ("head", "base"):
        go(database, revision, project)
        found[revision] = database.catalog()
    return found


def assert_nothing_is_left(database: Database) -> None:
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
    expected = undisturbed(database)
    origin, target = DIRECTIONS[direction]
    statements = statements_of(database, direction)
    points = kill_points(statements)
    repaired = 0
    for number, before in points:
        where = f"{'before' if before else 'after'} {number}: {statements[number - 1]}"
        assert kill_at(direction, database, target, number, before=before), where
        go(database, repaired_by)
        assert database.catalog() == expected[repaired_by], where
        assert_nothing_is_left(database)
        repaired += 1
        if repaired_by != origin:
            go(database, origin)
    what = f"of {len(points)} kills in {len(statements)} statements of {direction}"
    record_property(f"{what}, repaired by going to {repaired_by}", repaired)


def kill_points(statements: list[str]) -> list[tuple[int, bool]]:
    """Before each statement, which is also after the one before, and while one changes something.

    A kill while the server reads leaves nothing else behind than one before it does.
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
    """The fast part of the proof above."""
    expected = undisturbed(database, project)
    points = milestones(statements_of(database, "upgrade", project))
    assert len(points) >= len(REVISIONS) + BUILDS
    for number, statement in points:
        assert kill_at("upgrade", database, "head", number, before=False, project=project)
        go(database, "head", project)
        assert database.catalog() == expected["head"], statement
        assert_nothing_is_left(database)
        go(database, "base", project)


def milestones(statements: list[str]) -> list[tuple[int, str]]:
    """The end of each revision, and each index that is built online, by number."""
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
@pytest.mark.parametrize("how", ["terminate", "cut"])
def test_next_run_repairs_database_after_lost_connection(
    database: Database, direction: str, how: str, record_property: Callable[[str, object], None]
) -> None:
    def disturb() -> None:
        if how == "terminate":
            terminate(database)

    repaired = repair_lost_connections(database, direction, disturb, cut=how == "cut")
    record_property(f"connections lost by {how} in {direction}, repaired", repaired)


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
    database: Database, direction: str, disturb: Callable[[], None], *, cut: bool
) -> int:
    """Disturb a run at the end of each revision and in each build, heal it, and count."""
    repaired = 0
    expected = undisturbed(database)
    origin, target = DIRECTIONS[direction]
    points = milestones(statements_of(database, direction))
    for repaired_by in ("head", "base"):
        for number, statement in points:
            go(database, origin)
            with proxied(database, number, before=False) as (proxy, through):
                proxy.on_stop, proxy.cut = disturb, cut
                process = start(direction, through, target)
                process.join()
                # The client may be gone before the disturbance is complete.
                assert proxy.stopped.wait(60), statement
            go(database, repaired_by)
            assert database.catalog() == expected[repaired_by], statement
            assert_nothing_is_left(database)
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
    exited_after = interrupt_a_build(database, program, number, code)
    began = time.monotonic()
    run(sys.executable, "-m", program, "heads")
    # On a machine so busy that a process that does nothing takes longer, that is the measure.
    assert exited_after <= max(EXIT_SECONDS, time.monotonic() - began)
    go(database, "head")
    assert_nothing_is_left(database)


def test_runner_exits_within_one_second_of_signal_when_network_stalls(database: Database) -> None:
    stalled, over = threading.Event(), threading.Event()
    with proxied(database, stop_at=STALLED_STATEMENT) as (proxy, through):

        def stall() -> None:
            proxy.silent = True
            stalled.set()
            over.wait(30)

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
        over.set()
    began = time.monotonic()
    run(sys.executable, "-m", "langfuse_schema", "heads")
    assert exited_after <= max(EXIT_SECONDS, time.monotonic() - began)
    assert process.returncode == 130
    assert "interrupted; run the same command again to resume" in printed
    go(database, "head")
    assert_nothing_is_left(database)


def interrupt_a_build(database: Database, program: str, number: int, code: int) -> float:
    """Send a signal to a run, check its output, and return how long it took to end."""

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
    """Neither during a run nor afterwards is anything of the whole process changed."""

    def process_state() -> list[object]:
        loggers = [logging.getLogger(name) for name in ("", "alembic", "langfuse_schema")]
        return [
            signal.getsignal(signal.SIGINT),
            signal.getsignal(signal.SIGTERM),
            get_wait_callback(),
            *((logger.level, [*logger.handlers], [*logger.filters]) for logger in loggers),
        ]

    def record_state(*_: object) -> None:
        seen.append(process_state())

    before = process_state()
    seen: list[list[object]] = []
    engine = sa.create_engine(database.url, poolclass=sa.NullPool)
    sa.event.listen(engine, "before_cursor_execute", record_state)
    migrations.upgrade(engine)
    assert seen
    assert all(during == before for during in seen)
    assert process_state() == before


def test_next_runner_waits_for_orphaned_backend_of_killed_runner(database: Database) -> None:
    with database.connect() as reader:
        reader.exec_driver_sql("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM pg_class")
        killed = start("upgrade", database, "head")
        until(database, BUILDING)
        orphan = lock_holders(database)
        killed.kill()
        killed.join()
        assert lock_holders(database) == orphan, "the orphan still works, and holds the lock"
        following = start("upgrade", database, "head")
        deadline = time.monotonic() + ORPHAN_SECONDS
        while builders(database) <= orphan:
            assert time.monotonic() < deadline
        assert lock_holders(database) == builders(database), "only now, and alone"
        reader.exec_driver_sql("ROLLBACK")
        following.join()
    assert following.exitcode == 0
    assert_nothing_is_left(database)


def lock_holders(database: Database) -> set[int]:
    return pids(database, "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted")


def builders(database: Database) -> set[int]:
    return pids(database, "SELECT pid FROM pg_stat_progress_create_index")


def pids(database: Database, query: str) -> set[int]:
    return {row[0] for row in database.execute(query)}
