"""Commands over a long distance: few round trips, and no lock that is held during many of them."""

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
from tests.helpers.canary import CANARIES, WRITES, Canary, connect
from tests.helpers.databases import SUPERUSER
from tests.helpers.relay import relayed

if TYPE_CHECKING:
    from tests.helpers.databases import Database

MOST = {
    "upgrade": 90,
    "nothing to do": 16,
    "verify": 20,
    "preflight": 20,
    "downgrade": 70,
}
"""Round trips of the commands, on a database that is empty at first."""

DISTANCE_SECONDS, UPGRADE_SECONDS = 0.05, 5.5
LONG_DISTANCE_SECONDS = 0.2
OWN_SECONDS = 0.25  # of a statement of the load, on a busy machine

REFUSES_INDEX = """
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
    assert {name: number for name, number in counted.items() if number > MOST[name]} == {}
    assert all(counted.values())


def test_error_names_failing_statement_of_a_revision(database: Database) -> None:
    database.execute(REFUSES_INDEX, SUPERUSER)
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
def test_upgrade_over_50_ms_takes_few_seconds(database: Database) -> None:
    with relayed(database, DISTANCE_SECONDS) as (_, through):
        began = time.monotonic()
        migrations.upgrade(through.url)
        took = time.monotonic() - began
    print(f"upgrade head at a round trip of 50 ms: {took:.1f} s")
    assert took <= UPGRADE_SECONDS


@pytest.mark.slow
def test_load_waits_for_few_round_trips_of_a_distant_run(database: Database) -> None:
    """Each table of the app, and each Langfuse table while it exists, is read and written."""
    statements = {**CANARIES, **{f"write {name}": sql for name, sql in WRITES.items()}}
    tables = ("langfuse_traces", "langfuse_scores", "langfuse_batch_runs", "rate_limit_logs")
    statements |= {f"read {name}": f"SELECT count(*) FROM public.{name}" for name in tables}
    watching = {name: _Tolerant(statement) for name, statement in statements.items()}
    threads = [threading.Thread(target=one.run, args=(database,)) for one in watching.values()]
    for thread in threads:
        thread.start()
    try:
        with relayed(database, LONG_DISTANCE_SECONDS) as (_, through):
            migrations.upgrade(through.url)
            migrations.downgrade(through.url, "base")
    finally:
        for one in watching.values():
            one.stop.set()
        for thread in threads:
            thread.join()
    worst = {name: round(one.worst, 3) for name, one in watching.items()}
    print(f"longest statements beside a run at a round trip of 200 ms: {worst}")
    longest = Options.lock_timeout + 2 * LONG_DISTANCE_SECONDS + OWN_SECONDS
    assert {name: seconds for name, seconds in worst.items() if seconds > longest} == {}


class _Tolerant(Canary):
    """A canary whose table can be missing."""

    def run(self, database: Database) -> None:
        with connect(database) as connection:
            while not self.stop.wait(0.01):
                began = time.monotonic()
                with contextlib.suppress(psycopg.errors.UndefinedTable):
                    connection.execute(self.statement)
                self.worst = max(self.worst, time.monotonic() - began)
