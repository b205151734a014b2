"""An autovacuum blocks a run until PostgreSQL cancels it, because the run waits for the lock."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from langfuse_schema import embedded, migrations
from langfuse_schema._postgres.findings import SchemaError
from langfuse_schema.verify import verify
from tests.helpers.databases import CORE, HARDENED, LINKS, SUPERUSER, Database, wait_until
from tests.helpers.npm import start_postgresql
from tests.helpers.probes import probes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

LOCK_TIMEOUT = 0.5
ALLOWANCE = 0.2
MAX_SECONDS = 3.0
TRIES = 3

# PostgreSQL cancels an autovacuum after deadlock_timeout, which keeps its default of 1 s.
SETTINGS = {
    "fsync": "off",
    "autovacuum": "on",
    "autovacuum_naptime": "1s",
    "autovacuum_freeze_max_age": "100000",
}

FILL = {
    "public.reflections": "INSERT INTO public.reflections (user_id, body)"
    " SELECT 'a0000000-0000-4000-8000-000000000001', repeat('x', 100)"
    " FROM generate_series(1, 30000)",
    "public.langfuse_batch_runs": "INSERT INTO public.langfuse_batch_runs"
    " (id, batch_name, started_at) SELECT gen_random_uuid(), repeat('x', 100), now()"
    " FROM generate_series(1, 30000)",
    "auth.users": "INSERT INTO auth.users (id, email)"
    " SELECT gen_random_uuid(), repeat('x', 100) FROM generate_series(1, 30000)",
}

RUNNING = """SELECT EXISTS (SELECT FROM pg_stat_progress_vacuum AS v
    JOIN pg_stat_activity AS a USING (pid) WHERE v.relid = '{}'::regclass
    AND a.query LIKE 'autovacuum: VACUUM%%{}')"""


@pytest.fixture(scope="module", params=[15, 18])
def database(request: pytest.FixtureRequest, scratch: Path) -> Iterator[Database]:
    version: int = request.param
    server = start_postgresql(version, scratch / f"autovacuum-{version}", SETTINGS)
    embedded.prepare(server.url())
    yield Database(server.url())
    server.close()


def start_slow_vacuum(database: Database, table: str) -> None:
    """Start an autovacuum of a table that takes minutes."""
    for _ in range(TRIES):
        prepare_slow_vacuum(database, table)
        # An earlier autovacuum may have removed the dead rows already.
        with suppress(AssertionError):
            wait_until(database, RUNNING.format(table, ""), seconds=30)
            return
    pytest.fail(f"no autovacuum of {table} started")


def prepare_slow_vacuum(database: Database, table: str, enabled: str = "on") -> None:
    """Create dead rows in a table, and make its autovacuum slow."""
    database.execute(
        f"ALTER TABLE {table} SET (autovacuum_vacuum_cost_delay = 100,"
        " autovacuum_vacuum_cost_limit = 1, autovacuum_vacuum_threshold = 1,"
        f" autovacuum_vacuum_scale_factor = 0, autovacuum_enabled = {enabled})",
        SUPERUSER,
    )
    database.execute(FILL[table], SUPERUSER)
    column = {"auth.users": "email", "public.reflections": "body"}.get(table, "batch_name")
    database.execute(f"UPDATE {table} SET {column} = {column}", SUPERUSER)


def stop_vacuum(database: Database, table: str) -> None:
    """End the autovacuums of a table."""
    reset = ", ".join(
        f"autovacuum_{name}"
        for name in ("enabled", "vacuum_cost_delay", "vacuum_cost_limit", "vacuum_threshold")
    )
    cancel = (
        "SELECT pg_cancel_backend(pid) FROM pg_stat_progress_vacuum"
        f" WHERE relid = '{table}'::regclass"
    )
    deadline = time.monotonic() + 60
    # PostgreSQL can start the next autovacuum before ALTER TABLE gets its lock.
    while True:
        database.execute(cancel, SUPERUSER)
        try:
            database.execute(
                "SET lock_timeout = '100ms';"
                f" ALTER TABLE {table} RESET ({reset}, autovacuum_vacuum_scale_factor)",
                SUPERUSER,
            )
        except sa.exc.OperationalError:
            assert time.monotonic() < deadline
        else:
            return


@pytest.mark.parametrize(
    ("command", "origin", "target", "table"),
    [
        ("upgrade", "base", CORE, "auth.users"),
        ("upgrade", CORE, LINKS, "public.reflections"),
        ("downgrade", LINKS, CORE, "public.reflections"),
        ("upgrade", LINKS, HARDENED, "public.langfuse_batch_runs"),
        ("downgrade", "head", LINKS, "public.langfuse_batch_runs"),
        ("downgrade", CORE, "base", "auth.users"),
    ],
)
def test_run_during_autovacuum_ends_within_limit_and_blocks_no_write(
    database: Database, command: str, origin: str, target: str, table: str
) -> None:
    migrations.downgrade(database.url, "base")
    if origin != "base":
        migrations.upgrade(database.url, origin)
    run = migrations.upgrade if command == "upgrade" else migrations.downgrade
    with probes(database) as watching:
        start_slow_vacuum(database, table)
        for probe in watching.values():
            probe.worst = 0.0
        began = time.monotonic()
        run(database.url, target)
        seconds = time.monotonic() - began
    stop_vacuum(database, table)
    worst = max(probe.worst for probe in watching.values())
    print(f"{command} to {target} during an autovacuum of {table}: {seconds:.1f} s, {worst:.3f} s")
    assert seconds <= MAX_SECONDS
    assert worst <= LOCK_TIMEOUT + ALLOWANCE


def test_preflight_warns_of_autovacuum_with_its_progress(database: Database) -> None:
    migrations.downgrade(database.url, "base")
    migrations.upgrade(database.url, CORE)
    start_slow_vacuum(database, "public.reflections")
    report = migrations.preflight(database.url)
    stop_vacuum(database, "public.reflections")
    assert report.ok
    (finding,) = report.findings
    assert (finding.code, finding.severity) == ("autovacuum-running", "warning")
    assert "public.reflections); scanning heap" in str(finding.cause)
    assert "% of the table scanned" in str(finding.cause)


def test_message_names_autovacuum_that_prevents_wraparound(database: Database) -> None:
    migrations.downgrade(database.url, "base")
    migrations.upgrade(database.url, CORE)
    # An autovacuum that prevents wraparound runs even if autovacuum is disabled.
    prepare_slow_vacuum(database, "public.reflections", "off")
    # Each subtransaction that writes uses a transaction id.
    database.execute(
        """
        CREATE TEMPORARY TABLE used (n int);
        DO $$ BEGIN FOR i IN 1 .. 110000 LOOP
          BEGIN INSERT INTO used VALUES (i); EXCEPTION WHEN unique_violation THEN NULL; END;
        END LOOP; END $$"""
    )
    wait_until(database, RUNNING.format("public.reflections", "(to prevent wraparound)"))
    (warning,) = [
        one
        for one in migrations.preflight(database.url).findings
        if one.object == "public.reflections"
    ]
    assert warning.advice == "Upgrade when it has finished."
    with pytest.raises(SchemaError) as stopped:
        migrations.upgrade(database.url, LINKS, lock_deadline=3)
    stop_vacuum(database, "public.reflections")
    (finding,) = stopped.value.findings
    assert finding.object == "public.reflections"
    assert "(to prevent wraparound)" in str(finding.cause)
    assert "PostgreSQL does not cancel it, so it must finish" in str(finding.cause)
    migrations.upgrade(database.url)
    assert verify(database.url) == []
