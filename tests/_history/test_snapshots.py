"""The schema after each revision is the same on PostgreSQL 14 to 18, online and offline."""

from __future__ import annotations

import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from langfuse_schema import embedded, migrations
from langfuse_schema._history import snapshots
from tests.conftest import client_programs
from tests.helpers.databases import HISTORY, REVISIONS, Database, run
from tests.helpers.npm import start_postgresql
from tools import chain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from langfuse_schema._history.snapshots import Tables

pytestmark = pytest.mark.slow


@contextmanager
def server(scratch: Path, version: int) -> Iterator[tuple[Database, str]]:
    """Yield a prepared database on a server of this version, and the path of psql."""
    folder = Path(tempfile.mkdtemp(prefix=f"version-{version}-", dir=scratch))
    folder.chmod(0o755)
    with start_postgresql(version, folder / "server", {"fsync": "off"}) as started:
        embedded.prepare(started.url(), default_privileges="legacy")
        yield Database(started.url()), str(client_programs(started) / "psql")


def assert_snapshot(database: Database, before: Tables, revision: str) -> None:
    found = snapshots.added(before, chain.read_tables(database.url))
    text = HISTORY.snapshot_path(revision).read_text(encoding="utf-8")
    assert snapshots.render(revision, found) == text


@pytest.mark.parametrize("version", [14, 15, 16, 17, 18])
def test_snapshots_are_identical_on_every_postgresql_version(scratch: Path, version: int) -> None:
    with server(scratch, version) as (database, psql):
        before = chain.read_tables(database.url)
        for revision in REVISIONS:
            migrations.upgrade(database.url, revision)
            assert_snapshot(database, before, revision)
        migrations.downgrade(database.url, "base")
        assert chain.read_tables(database.url) == before
        database.execute("DROP SCHEMA langfuse_migrations CASCADE")
        for revision in REVISIONS:
            step = f"{HISTORY.below(revision) or 'base'}:{revision}"
            script = run(sys.executable, "-m", "alembic", "upgrade", step, "--sql",
                         DATABASE_URL="postgresql://x@127.0.0.1:1/x").stdout  # fmt: skip
            outcome = run(psql, database.text.replace("+psycopg2", ""), "-v", "ON_ERROR_STOP=1",
                          stdin=script)  # fmt: skip
            assert outcome.code == 0, outcome.stderr
            assert_snapshot(database, before, revision)
