"""supautils locks platform tables at each policy statement, so a run locks them first."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psycopg
import pytest

from langfuse_schema import migrations
from langfuse_schema._postgres.findings import SchemaError
from langfuse_schema.verify import verify
from tests.helpers.databases import AOI, HARDENED, LINKS, SUPERUSER, Database
from tests.helpers.hosted import PLATFORM_TABLES, add_platform_locks
from tests.helpers.probes import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LOCK_TIMEOUT = 0.5
ALLOWANCE = 0.2
MAX_SECONDS = 10.0


@pytest.fixture
def hosted(database: Database) -> Database:
    add_platform_locks(database)
    migrations.upgrade(database.url, LINKS)
    return database


@contextmanager
def idle_reader(database: Database) -> Iterator[int]:
    """Read storage.objects in a transaction that stays open, and yield its pid."""
    with connect(database) as reader:
        reader.execute("SET application_name = 'storage report'")
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM storage.objects")
        yield reader.info.backend_pid


@pytest.mark.parametrize("command", ["upgrade", "downgrade"])
def test_message_names_reader_of_platform_table(hosted: Database, command: str) -> None:
    if command == "downgrade":
        migrations.upgrade(hosted.url)
    run, target = {
        "upgrade": (migrations.upgrade, "head"),
        "downgrade": (migrations.downgrade, LINKS),
    }[command]
    with idle_reader(hosted) as pid, pytest.raises(SchemaError) as stopped:
        run(hosted.url, target, lock_timeout=0.3, lock_deadline=0.5)
    (finding,) = stopped.value.findings
    assert (finding.code, finding.object) == ("table-locked", "storage.objects")
    assert f"pid {pid} (supabase_admin, storage report)" in str(finding.cause)
    run(hosted.url, target)
    assert verify(hosted.url, "head" if command == "upgrade" else LINKS) == []


def test_preflight_names_reader_of_platform_table(hosted: Database) -> None:
    assert migrations.preflight(hosted.url).findings == ()
    with idle_reader(hosted) as pid:
        (warning,) = migrations.preflight(hosted.url).findings
    assert (warning.code, warning.object) == ("table-in-use", "storage.objects")
    assert f"pid {pid}" in str(warning.cause)


def test_preflight_ignores_platform_tables_if_no_policy_changes(hosted: Database) -> None:
    migrations.upgrade(hosted.url, HARDENED)
    with idle_reader(hosted):
        assert migrations.preflight(hosted.url).findings == ()


def test_run_without_setting_locks_no_platform_table(database: Database) -> None:
    add_platform_locks(database)
    database.execute("DROP EVENT TRIGGER lock_platform_tables", SUPERUSER)
    name = database.url.database
    database.execute(f'ALTER DATABASE "{name}" RESET supautils.policy_grants', SUPERUSER)
    with idle_reader(database):
        migrations.upgrade(database.url, lock_deadline=0.5)
    assert verify(database.url) == []


@pytest.mark.parametrize(
    ("change", "statement"),
    [
        ("CREATE POLICY other ON langfuse_traces USING (true)", "DROP POLICY"),
        (
            """CREATE TRIGGER other BEFORE UPDATE ON langfuse_traces FOR EACH ROW
            EXECUTE FUNCTION suppress_redundant_updates_trigger()""",
            "DROP TRIGGER",
        ),
    ],
)
def test_fix_locks_platform_tables_first(hosted: Database, change: str, statement: str) -> None:
    migrations.upgrade(hosted.url)
    hosted.execute(change)
    (finding,) = verify(hosted.url)
    begin, timeout, locks, repair, commit = finding.fix
    assert (begin, commit) == ("BEGIN;", "COMMIT;")
    assert repair.startswith(statement)
    with hosted.connect() as connection:
        for one in (begin, timeout, locks):
            connection.exec_driver_sql(one.replace("%", "%%"))
        locked = {
            name
            for (name,) in connection.exec_driver_sql(
                "SELECT n.nspname || '.' || c.relname FROM pg_locks AS l"
                " JOIN pg_class AS c ON c.oid = l.relation"
                " JOIN pg_namespace AS n ON n.oid = c.relnamespace"
                " WHERE l.pid = pg_backend_pid() AND l.mode = 'AccessExclusiveLock'"
            )
        }
        connection.exec_driver_sql(repair)
        connection.exec_driver_sql(commit)
    assert locked == {"public.langfuse_traces", *PLATFORM_TABLES}
    assert verify(hosted.url) == []


@dataclass
class Client:
    """A client that repeats an action. It records the longest duration and the failures."""

    act: Callable[[psycopg.Connection], None]
    longest: float = 0.0
    number: int = 0
    failures: list[str] = field(default_factory=list)

    def run(self, database: Database, stop: threading.Event) -> None:
        with connect(database) as connection:
            while not stop.wait(0.005):
                began = time.monotonic()
                try:
                    self.act(connection)
                except psycopg.Error as error:
                    self.failures.append(repr(error))
                    connection.rollback()
                self.longest = max(self.longest, time.monotonic() - began)
                self.number += 1


def sign_up(connection: psycopg.Connection) -> None:
    with connection.transaction():
        (user,) = connection.execute(
            "INSERT INTO auth.users (id) VALUES (gen_random_uuid()) RETURNING id"
        ).fetchone() or ("",)
        time.sleep(0.3)
        connection.execute(
            "INSERT INTO auth.identities (user_id, provider) VALUES (%s, 'email')", (user,)
        )


def sign_in(connection: psycopg.Connection) -> None:
    with connection.transaction():
        connection.execute(f"SELECT id FROM auth.users WHERE id = '{AOI}'")
        connection.execute(f"INSERT INTO auth.sessions (user_id) VALUES ('{AOI}')")


def insert_trace(connection: psycopg.Connection) -> None:
    connection.execute(
        "INSERT INTO langfuse_traces (trace_id, entity_type, entity_id, user_id, input, output)"
        f" VALUES (gen_random_uuid(), 'reflection', gen_random_uuid(), '{AOI}', 'in', 'out')"
    )


def delete_user(connection: psycopg.Connection) -> None:
    connection.execute(
        "DELETE FROM auth.users WHERE id = (SELECT id FROM auth.users AS u WHERE email IS NULL"
        " AND NOT EXISTS (SELECT FROM auth.identities WHERE user_id = u.id) LIMIT 1)"
    )


@pytest.mark.slow
def test_run_under_load_delays_sign_ins_within_limit_and_fails_no_insert(hosted: Database) -> None:
    hosted.execute(
        "INSERT INTO auth.users (id) SELECT gen_random_uuid() FROM generate_series(1, 20000)",
        SUPERUSER,
    )
    sign_ups = [Client(sign_up) for _ in range(3)]
    inserts = [Client(insert_trace) for _ in range(2)]
    sign_ins, deletes = Client(sign_in), Client(delete_user)
    clients = [*sign_ups, *inserts, sign_ins, deletes]
    stop = threading.Event()
    threads = [threading.Thread(target=one.run, args=(hosted, stop)) for one in clients]
    for thread in threads:
        thread.start()
    try:
        time.sleep(3.0)
        baseline = sign_ins.longest
        durations = []
        for run, target in ((migrations.upgrade, "head"), (migrations.downgrade, LINKS)):
            began = time.monotonic()
            run(hosted.url, target)
            durations.append(round(time.monotonic() - began, 1))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    print(
        f"{durations} s; longest sign-in {sign_ins.longest:.3f} s, without a run {baseline:.3f} s"
    )
    print({one.act.__name__: (one.number, round(one.longest, 3)) for one in clients})
    assert max(durations) <= MAX_SECONDS
    assert sign_ins.longest <= baseline + LOCK_TIMEOUT + ALLOWANCE
    assert [one.failures for one in (*sign_ups, *inserts)] == [[]] * 5
