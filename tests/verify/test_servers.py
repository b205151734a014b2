"""`verify` on every version of PostgreSQL, in every kind of database, and on a standby."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from langfuse_schema import embedded, migrations
from langfuse_schema.embedded import folders
from langfuse_schema.verify import verify
from tests.helpers.databases import FAST_SETTINGS, PLAN_REVISIONS, POLICIES, Database, plan_sql
from tests.helpers.mutations import SUPERUSER
from tests.helpers.npm import start_postgresql
from tests.verify.test_mutations import try_every_mutation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.slow

PLAIN = """
    CREATE SCHEMA auth;
    CREATE TABLE auth.users (id uuid PRIMARY KEY);
    CREATE FUNCTION auth.uid() RETURNS uuid LANGUAGE sql STABLE AS 'SELECT NULL::uuid';
    CREATE TABLE public.ai_coach_messages (id uuid);
    CREATE TABLE public.encouragement_messages (id uuid);
    CREATE TABLE public.reflections (id uuid);
"""


@pytest.fixture
def folder(scratch: Path) -> Iterator[Path]:
    """Yield a folder that the server's account can reach, and delete it after the test."""
    path = Path(tempfile.mkdtemp(dir=scratch))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def new_database(server: embedded.Server, name: str) -> Database:
    administration = Database(server.url("postgres", SUPERUSER))
    administration.execute(f"CREATE DATABASE {name}", SUPERUSER)
    return Database(server.url(name))


def supabase_database(server: embedded.Server, name: str, world: embedded.World) -> Database:
    database = new_database(server, name)
    embedded.prepare(database.url, default_privileges=world)
    return database


@pytest.mark.parametrize("version", [14, 15, 16, 17, 18])
def test_verify_reports_exactly_the_mutations_on_each_postgresql_version(
    folder: Path, version: int, record_property: Callable[[str, object], None]
) -> None:
    with start_postgresql(version, folder / "server", FAST_SETTINGS) as server:
        plain = new_database(server, "plain").as_user(SUPERUSER)
        Database(plain).execute(PLAIN, SUPERUSER)
        migrations.upgrade(plain)
        assert verify(plain) == []

        for world in ("legacy", "restricted"):
            migrated = supabase_database(server, world, world)
            migrations.upgrade(migrated.url)
            assert verify(migrated.url) == []
            by_hand = supabase_database(server, f"{world}_by_hand", world)
            by_hand.execute(plan_sql(*PLAN_REVISIONS))
            migrations.stamp(by_hand.url, POLICIES)
            migrations.upgrade(by_hand.url)
            assert verify(by_hand.url) == []

        number, _ = try_every_mutation(supabase_database(server, "mutated", "restricted"))
        record_property(f"mutations reported by verify on PostgreSQL {version}", number)


def test_verify_on_standby_reports_index_dropped_on_primary(folder: Path) -> None:
    primary_folder, standby_folder = folder / "primary", folder / "standby"
    with embedded.start(primary_folder, settings=FAST_SETTINGS) as primary:
        embedded.prepare(primary.url())
        migrations.upgrade(primary.url())
        copy_server(primary, standby_folder)
        with embedded.start(standby_folder, settings={"hot_standby": "on"}) as standby:
            database = Database(standby.url())
            assert database.execute("SELECT pg_is_in_recovery()") == [(True,)]
            assert verify(standby.url()) == []
            Database(primary.url()).execute("DROP INDEX public.idx_langfuse_scores_status")
            deadline = time.monotonic() + 30
            while not verify(standby.url()) and time.monotonic() < deadline:
                time.sleep(0.05)
            (finding,) = verify(standby.url())
            assert finding.code == "index-missing"


def copy_server(primary: embedded.Server, directory: Path) -> None:
    """Create a standby of a server. PostgreSQL requires that the server's account owns it."""
    account = folders.server_account()
    folders.create_directory(directory, account)
    data = directory / "data"
    data.mkdir(mode=0o700)
    identity = {}
    if account is not None:
        shutil.chown(data, account.user, account.group)
        identity = {"user": account.user, "group": account.group, "extra_groups": []}
    subprocess.run(
        [
            str(primary.bin / "pg_basebackup"),
            *("-h", primary.host, "-p", str(primary.port), "-U", SUPERUSER),
            *("-D", str(data), "--write-recovery-conf", "--checkpoint=fast"),
        ],
        check=True,
        cwd="/",
        timeout=60,
        **identity,
    )
