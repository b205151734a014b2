"""Commands over a long distance need few round trips, and hold locks during few of them."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

import psycopg
import pytest

from langfuse_schema import migrations
from langfuse_schema._runtime.options import Options
from langfuse_schema.verify import verify
from tests.helpers.databases import SUPERUSER
from tests.helpers.probes import PROBES, WRITES, Probe, connect
from tests.helpers.relay import relayed

if TYPE_CHECKING:
    from tests.helpers.databases import Database

LIMITS = {
    "upgrade": 90,
    "nothing to do": 16,
    "verify": 20,
    "preflight": 20,
    "downgrade": 70,
}
"""The highest number of round trips of each command, in this order on an empty database."""

DISTANCE_SECONDS, UPGRADE_SECONDS = 0.05, 5.5
LONG_DISTANCE_SECONDS = 0.2
STATEMENT_SECONDS = 0.25  # the longest statement without a run, on a busy machine

REFUSE_INDEX = """
    CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$
    BEGIN
      IF to_regclass('public.idx_langfuse_scores_status') IS NOT NULL THEN
        RAISE EXCEPTION 'no more indexes';
      END IF;
    END $$;
    CREATE EVENT TRIGGER refuse ON ddl_command_end WHEN TAG IN ('CREATE INDEX')
      EXECUTE FUNCTION refuse()
"""


def test_commands_need_few_round_trips(database: Database) -> None:
    counted = {}
    with relayed(database) as (relay, through):
        for name, command in {
            "preflight": lambda: migrations.preflight(through.url),
            "upgrade": lambda: migrations.upgrade(through.url),
            "nothing to do": lambda: migrations.upgrade(through.url),
            "verify": lambda: verify(through.url),
            "downgrade": lambda: migrations.downgrade(through.url, "base"),
        }.items():
            before = relay.round_trips
            command()
            counted[name] = relay.round_trips - before
    assert {name: number for name, number in counted.items() if number > LIMITS[name]} == {}
    assert all(counted.values())


def test_error_names_failing_statement_of_revision(database: Database) -> None:
    database.execute(REFUSE_INDEX, SUPERUSER)
    before = database.catalog()
    with pytest.raises(migrations.SchemaError) as refused:
        migrations.upgrade(database.url)
    (finding,) = refused.value.findings
    assert finding.code == "server-refused"
    assert "no more indexes" in str(finding.cause)
    statement = "CREATE INDEX idx_langfuse_scores_status ON public.langfuse_scores (status)"
    assert str(finding.cause).endswith(f"Statement: {statement}")
    assert database.catalog().tables.keys() - before.tables.keys() == {
        "langfuse_migrations.alembic_version"
    }


@pytest.mark.slow
def test_upgrade_at_round_trip_of_50_ms_takes_few_seconds(database: Database) -> None:
    with relayed(database, DISTANCE_SECONDS) as (_, through):
        began = time.monotonic()
        migrations.upgrade(through.url)
        took = time.monotonic() - began
    print(f"upgrade head at a round trip of 50 ms: {took:.1f} s")
    assert took <= UPGRADE_SECONDS


@pytest.mark.slow
def test_load_waits_at_most_lock_timeout_and_two_round_trips(database: Database) -> None:
    """The load reads and writes app tables, and reads each Langfuse table while it exists."""
    statements = {**PROBES, **{f"write {name}": sql for name, sql in WRITES.items()}}
    tables = ("langfuse_traces", "langfuse_scores", "langfuse_batch_runs", "rate_limit_logs")
    statements |= {f"read {name}": f"SELECT count(*) FROM public.{name}" for name in tables}
    running = {name: _TolerantProbe(statement) for name, statement in statements.items()}
    threads = [threading.Thread(target=probe.run, args=(database,)) for probe in running.values()]
    for thread in threads:
        thread.start()
    try:
        with relayed(database, LONG_DISTANCE_SECONDS) as (_, through):
            migrations.upgrade(through.url)
            migrations.downgrade(through.url, "base")
    finally:
        for probe in running.values():
            probe.stop.set()
        for thread in threads:
            thread.join()
    worst = {name: round(probe.worst, 3) for name, probe in running.items()}
    print(f"longest statements during a run at a round trip of 200 ms: {worst}")
    longest = Options.lock_timeout + 2 * LONG_DISTANCE_SECONDS + STATEMENT_SECONDS
    assert {name: seconds for name, seconds in worst.items() if seconds > longest} == {}


class _TolerantProbe(Probe):
    """A probe whose table can be missing."""

    def run(self, database: Database) -> None:
        with connect(database) as connection:
            while not self.stop.wait(0.01):
                began = time.monotonic()
                with contextlib.suppress(psycopg.errors.UndefinedTable):
                    connection.execute(self.statement)
                self.worst = max(self.worst, time.monotonic() - began)
