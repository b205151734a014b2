"""Online index builds replace invalid indexes, and wait for transactions until a deadline."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from alembic.util import CommandError

from langfuse_schema import migrations
from langfuse_schema._checks import preflight
from langfuse_schema._postgres import sessions
from langfuse_schema._postgres.findings import SchemaError
from langfuse_schema._runtime import lock_monitor
from langfuse_schema.verify import verify
from tests.helpers.databases import (
    BUILDING,
    CHECKOUT,
    CORE,
    LINKS,
    SUPERUSER,
    Database,
    alembic,
    environment,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers.projects import Project

COLUMNS, UPDATES_PER_SECOND = 190, 10

INDEX = "idx_reflections_langfuse_trace_id"

ADD_LINK_COLUMN = """ALTER TABLE reflections ADD COLUMN langfuse_trace_id uuid
    REFERENCES langfuse_traces (trace_id) ON DELETE SET NULL"""


def index_oid(database: Database) -> int:
    return int(database.execute(f"SELECT '{INDEX}'::regclass::oid")[0][0])


def invalidate(database: Database) -> None:
    database.execute(
        f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{INDEX}'::regclass", SUPERUSER
    )


def is_valid(database: Database) -> bool:
    return bool(
        database.execute(f"SELECT indisvalid FROM pg_index WHERE indexrelid = '{INDEX}'::regclass")[
            0
        ][0]
    )


@contextmanager
def long_transaction(database: Database, query: str = "SELECT 1 FROM pg_class") -> Iterator[None]:
    """Run a query in a long transaction with a snapshot, as pg_dump does."""
    with database.connect() as reader:
        reader.exec_driver_sql("BEGIN ISOLATION LEVEL REPEATABLE READ")
        reader.exec_driver_sql(query)
        yield
        reader.exec_driver_sql("ROLLBACK")


@pytest.mark.parametrize("columns", ["(langfuse_trace_id)", "(user_id)"])
def test_upgrade_rebuilds_invalid_index(database: Database, columns: str, project: Project) -> None:
    project.migrate(database, CORE)
    database.execute(ADD_LINK_COLUMN)
    database.execute(f"CREATE INDEX {INDEX} ON reflections {columns}")
    invalidate(database)
    before = index_oid(database)
    project.migrate(database, LINKS)
    assert index_oid(database) != before
    assert is_valid(database)


def test_upgrade_keeps_valid_index_of_operator(database: Database) -> None:
    migrations.upgrade(database.url, CORE)
    database.execute(ADD_LINK_COLUMN)
    database.execute(f"CREATE INDEX {INDEX} ON reflections (langfuse_trace_id)")
    before = index_oid(database)
    migrations.upgrade(database.url, LINKS)
    assert index_oid(database) == before


CONFLICTING = {
    "other column": f"CREATE INDEX {INDEX} ON reflections (user_id)",
    "other method": f"CREATE INDEX {INDEX} ON reflections USING hash (langfuse_trace_id)",
    "partial": f"CREATE INDEX {INDEX} ON reflections (langfuse_trace_id) WHERE mood > 1",
    "unique": f"CREATE UNIQUE INDEX {INDEX} ON reflections (langfuse_trace_id)",
    "other table": f"CREATE INDEX {INDEX} ON ai_coach_messages (user_id)",
    "table": f"CREATE TABLE {INDEX} (id int)",
}


@pytest.mark.parametrize("found_by", ["preflight", "build"])
@pytest.mark.parametrize("statement", CONFLICTING.values(), ids=CONFLICTING)
def test_upgrade_refuses_index_of_another_definition(
    database: Database, statement: str, found_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrations.upgrade(database.url, CORE)
    database.execute(ADD_LINK_COLUMN)
    database.execute(statement)
    before = database.catalog()
    if found_by == "build":
        monkeypatch.setattr(preflight, "check", lambda *_: [])
    with pytest.raises(CommandError, match=INDEX):
        migrations.upgrade(database.url, LINKS)
    after = database.catalog()
    if found_by == "preflight":
        assert after == before
    assert after.tables["public.reflections"] == before.tables["public.reflections"]


def test_upgrade_waits_for_index_build_of_operator(database: Database) -> None:
    migrations.upgrade(database.url, CORE)
    database.execute(ADD_LINK_COLUMN)
    with long_transaction(database):
        build = threading.Thread(
            target=database.execute,
            args=(f"CREATE INDEX CONCURRENTLY {INDEX} ON reflections (langfuse_trace_id)",),
        )
        build.start()
        while not database.execute("SELECT count(*) FROM pg_index WHERE NOT indisvalid")[0][0]:
            time.sleep(0.01)
        before = index_oid(database)
        upgrade = threading.Thread(target=migrations.upgrade, args=(database.url, LINKS))
        upgrade.start()
        time.sleep(2.0)
    build.join()
    upgrade.join()
    assert index_oid(database) == before
    assert is_valid(database)


def test_index_build_stops_at_lock_deadline(database: Database) -> None:
    with long_transaction(database):
        outcome = alembic(database, "-x", "lock_deadline=1s", "upgrade", "head")
    assert outcome.code != 0
    message = "could not build an index on public.ai_coach_messages within 1 s"
    assert f"error[table-locked]: {message}" in outcome.stderr
    assert "could not lock" not in outcome.stderr
    assert "is locked" not in outcome.stderr
    assert "SELECT 1 FROM pg_class" in outcome.stderr
    migrations.upgrade(database.url)
    assert is_valid(database)


def test_index_build_stops_at_lock_deadline_without_lock_monitor(database: Database) -> None:
    """A role with a limit of one connection cannot open a second one for the monitor."""
    migrations.upgrade(database.url, CORE)
    role = f"limited_{database.url.database}"
    database.execute(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 1 IN ROLE postgres", SUPERUSER)
    try:
        with long_transaction(database), pytest.raises(SchemaError) as refused:
            migrations.upgrade(database.as_user(role), lock_timeout=0.1, lock_deadline=0.5)
        (finding,) = refused.value.findings
        assert (finding.code, finding.object) == ("table-locked", "public.ai_coach_messages")
        assert "a second connection was not available" in str(finding.cause)
        action = "build an index on public.ai_coach_messages"
        assert finding.message == f"could not {action} within 0.5 s"
    finally:
        database.execute(f"DROP ROLE {role}", SUPERUSER)


def test_index_build_prints_one_progress_line_after_one_second(database: Database) -> None:
    with long_transaction(database):
        process = start_upgrade(database, subprocess.PIPE)
        wait_until(database, BUILDING)
        time.sleep(2.0)
    _, printed = process.communicate()
    assert process.returncode == 0, printed
    lines = [line for line in printed.decode().splitlines() if "waiting for old snapshots" in line]
    assert len(lines) == 1, "expected one line every ten seconds"
    assert "public.ai_coach_messages: " in lines[0]
    assert "\r" not in printed.decode()


@pytest.mark.slow
def test_index_build_updates_one_progress_line_on_terminal(database: Database) -> None:
    """The line is updated rarely, fits into the terminal, and contains no control characters."""
    parent_end, child_end = pty.openpty()
    fcntl.ioctl(child_end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    began = time.monotonic()
    with long_transaction(database, f"SELECT '\x1b[2J\x07安全{'x' * 60}'"):
        process = start_upgrade(database, child_end, "-x", "lock_timeout=20ms")
        os.close(child_end)
        wait_until(database, BUILDING)
        time.sleep(2.0)
        took = time.monotonic() - began
    printed = b""
    while part := read_terminal(parent_end):
        printed += part
    os.close(parent_end)
    assert process.wait() == 0
    updates = printed.decode().split("\r\x1b[K")
    waiting = [update for update in updates if "waiting for old snapshots" in update]
    assert 2 < len(waiting) <= UPDATES_PER_SECOND * took
    assert any("安全" in update for update in waiting), waiting
    assert all(display_width(update) < COLUMNS for update in waiting)
    assert any(display_width(update) >= COLUMNS - 2 for update in waiting)
    assert "\x1b" not in "".join(waiting)
    assert "\x07" not in printed.decode()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("abcde", "abcde"),
        ("abcdef", "abcde"),
        ("安全な列", "安全"),
        ("a\u0301bcdefg", "a\u0301bcde"),
    ],
)
def test_progress_line_is_cut_to_width_of_terminal(line: str, expected: str) -> None:
    assert lock_monitor.cut(line, 5) == expected


def test_session_is_described_without_control_characters() -> None:
    row = (7, "a\x1b[1mb", "x\r\ny", 3, "active", "SELECT 1 \x9b2J; \u202e\x1b]0;title\x07")
    described = sessions.described(row)
    assert described.isprintable()
    assert "SELECT 1 2J;" in described


def display_width(line: str) -> int:
    return len(line) + line.count("安") + line.count("全")


def start_upgrade(database: Database, stderr: int, *options: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "alembic", *options, "upgrade", "head"],
        cwd=CHECKOUT,
        env=environment(DATABASE_URL=database.text),
        stderr=stderr,
    )


def read_terminal(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux raises it when the other end is closed
        return b""


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_upgrade_reports_connection_lost_during_index_build(
    database: Database, driver: str
) -> None:
    migrations.upgrade(database.url, CORE)
    engine = sa.create_engine(database.url.set(drivername=f"postgresql+{driver}"))
    with database.connect() as reader, ThreadPoolExecutor() as threads:
        reader.exec_driver_sql("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM pg_class")
        run = threads.submit(migrations.upgrade, engine)
        wait_until(database, "SELECT EXISTS (SELECT FROM pg_stat_progress_create_index)")
        database.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_progress_create_index")
        error = run.exception()
        reader.exec_driver_sql("ROLLBACK")
    engine.dispose()
    assert isinstance(error, SchemaError)
    (finding,) = error.findings
    assert finding.code == "connection-lost"
    assert "connection" in str(finding.cause)
    migrations.upgrade(database.url)
    assert verify(database.url) == []
