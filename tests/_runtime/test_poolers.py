"""Commands refuse the transaction mode of PgBouncer, and succeed in session mode."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
import sqlalchemy as sa

from langfuse_schema import migrations
from langfuse_schema._postgres.findings import SchemaError
from langfuse_schema._runtime.runner_lock import RunnerLock
from tests.helpers.databases import Database, langfuse_schema
from tests.helpers.projects import Project

if TYPE_CHECKING:
    from collections.abc import Iterator

PGBOUNCER = shutil.which("pgbouncer", path=os.environ["PATH"] + ":/usr/sbin")

if PGBOUNCER is None and os.environ.get("CI") != "true":
    pytest.skip("pgbouncer is not installed (Debian: pgbouncer)", allow_module_level=True)

PACKAGE = Project()

PORT = 6543  # part of the name of the socket file


@contextmanager
def pooler(
    database: Database, folder: Path, mode: str, size: int, clients: int = 200
) -> Iterator[Database]:
    """Run PgBouncer in front of a database, and yield the database through it."""
    assert PGBOUNCER, "pgbouncer is not installed"
    socket = Path(tempfile.mkdtemp(prefix=f"{mode}-", dir=folder))
    url = database.url
    users = socket / "users"
    users.write_text('"postgres" ""\n')
    settings = socket / "ini"
    settings.write_text(
        f"[databases]\n* = host={url.query['host']} port={url.query['port']}\n"
        f"[pgbouncer]\nlisten_port = {PORT}\nunix_socket_dir = {socket}\n"
        f"auth_type = trust\nauth_file = {users}\npool_mode = {mode}\n"
        f"default_pool_size = {size}\nmax_client_conn = {clients}\nlogfile = {socket}/log\n"
    )
    as_root = os.geteuid() == 0
    if as_root:
        shutil.chown(socket, "nobody", "nogroup")
    process = subprocess.Popen(
        [PGBOUNCER, "-q", str(settings)],
        user="nobody" if as_root else None,
        group="nogroup" if as_root else None,
        extra_groups=[] if as_root else None,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(socket / f".s.PGSQL.{PORT}")
        yield Database(url.set(query={"host": str(socket), "port": str(PORT)}))
    finally:
        process.kill()
        process.wait()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.01)


@contextmanager
def other_clients(pooled: Database, number: int, *, reconnect: bool) -> Iterator[None]:
    """Run short transactions through a pooler, on new connections if `reconnect`."""
    done = threading.Event()
    url = pooled.url.set(drivername="postgresql").render_as_string(hide_password=False)

    def transact(connection: psycopg.Connection) -> None:
        connection.execute("SELECT pg_sleep(0.002)")
        connection.commit()

    def work() -> None:
        while not done.is_set():
            with psycopg.connect(url, prepare_threshold=None) as connection:
                transact(connection)
                while not (reconnect or done.is_set()):
                    transact(connection)

    threads = [threading.Thread(target=work) for _ in range(number)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()


def advisory_locks(database: Database) -> int:
    return int(database.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")[0][0])


def assert_refused(database: Database, pooled: Database, project: Project = PACKAGE) -> None:
    before = database.catalog()
    with pytest.raises(SchemaError) as refused:
        project.migrate(pooled, "head")
    (finding,) = refused.value.findings
    assert finding.code == "connection-pooled"
    assert "5432" in str(finding.advice)
    assert "session mode" in str(finding.advice)
    assert advisory_locks(database) == 0
    assert database.catalog() == before


@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_pooler_without_free_client_slot_is_refused_before_any_change(
    database: Database, scratch: Path, mode: str
) -> None:
    before = database.catalog()
    with pooler(database, scratch, mode, 2, clients=1) as pooled:
        with pytest.raises(SchemaError, match="max_client_conn") as refused:
            migrations.upgrade(pooled.url)
        assert [finding.code for finding in refused.value.findings] == ["pooler-full"]
        assert advisory_locks(database) == 0
    assert database.catalog() == before


def assert_default_settings(pooled: Database, size: int) -> None:
    """Assert that all backends of a pool have their default settings."""
    engine = sa.create_engine(pooled.url, poolclass=sa.NullPool)
    connections = [engine.connect() for _ in range(size)]
    try:
        for connection in connections:
            found = connection.exec_driver_sql(
                "SELECT current_setting('lock_timeout'), current_setting('search_path')"
            ).one()
            assert tuple(found) == ("0", '"$user", public')
    finally:
        for connection in connections:
            connection.close()


@pytest.mark.parametrize("size", [1, 10])
def test_upgrade_refuses_transaction_mode_and_keeps_backend_settings(
    database: Database, scratch: Path, size: int, project: Project
) -> None:
    with pooler(database, scratch, "transaction", size) as pooled:
        assert_refused(database, pooled, project)
        assert_default_settings(pooled, size)


def test_commands_refuse_transaction_mode(database: Database, scratch: Path) -> None:
    size = 2
    with pooler(database, scratch, "transaction", size) as pooled:
        outcome = langfuse_schema(pooled, "upgrade", "head")
        assert outcome.code != 0
        assert "connection-pooled" in outcome.stderr
        assert_default_settings(pooled, size)
        preflight = langfuse_schema(pooled, "preflight")
        assert preflight.code == 1
        assert "connection-pooled" in preflight.stdout


def test_read_only_commands_succeed_in_transaction_mode(database: Database, scratch: Path) -> None:
    migrations.upgrade(database.url)
    with pooler(database, scratch, "transaction", 2) as pooled:
        assert langfuse_schema(pooled, "current").code == 0
        assert langfuse_schema(pooled, "check").code == 0
        assert langfuse_schema(pooled, "upgrade", "head").code == 0, "upgrade at head failed"
        assert_default_settings(pooled, 2)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 10])
def test_upgrade_and_downgrade_succeed_in_session_mode(
    database: Database, scratch: Path, size: int, project: Project
) -> None:
    with pooler(database, scratch, "session", size) as pooled:
        project.migrate(pooled, "head")
        project.migrate(pooled, "base", downgrade=True)
    assert advisory_locks(database) == 0


def test_runner_lock_stops_upgrade_when_pooler_detection_misses_pooler(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunnerLock, "try_twice", lambda *_: True)
    with pytest.raises(SchemaError, match="runner-lock-lost"):
        migrations.upgrade(database.url)
    assert "public.langfuse_traces" not in database.catalog().tables


ATTEMPTS = 20


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 10])
@pytest.mark.parametrize("clients", [0, 8, 30])
def test_upgrade_refuses_transaction_mode_on_every_attempt(
    database: Database, scratch: Path, clients: int, size: int
) -> None:
    with (
        pooler(database, scratch, "transaction", size) as pooled,
        other_clients(pooled, clients, reconnect=False),
    ):
        for _ in range(ATTEMPTS):
            assert_refused(database, pooled)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 10])
@pytest.mark.parametrize("clients", [0, 8, 30])
def test_upgrade_and_downgrade_succeed_in_session_mode_on_every_attempt(
    database: Database, scratch: Path, clients: int, size: int
) -> None:
    with (
        pooler(database, scratch, "session", size) as pooled,
        other_clients(pooled, clients, reconnect=True),
    ):
        for _ in range(ATTEMPTS // 2):
            migrations.upgrade(pooled.url)
            assert "public.langfuse_traces" in database.catalog().tables
            migrations.downgrade(pooled.url, "base")
            assert "public.langfuse_traces" not in database.catalog().tables
        assert advisory_locks(database) == 0
