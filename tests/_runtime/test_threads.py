"""A command never changes the database of a command in another thread."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from langfuse_schema import migrations
from langfuse_schema._postgres.findings import SchemaError
from langfuse_schema.verify import verify
from tests.helpers import projects
from tests.helpers.databases import HEAD, SUPERUSER, Database, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_postgresql.executors import NoopExecutor

HAS_RUNNER_LOCK = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory')"

UPGRADES, DOWNGRADES, THREADS = 40, 8, 8

CREATE_TABLE_A = """\"\"\"a\"\"\"
from alembic import op
revision, down_revision = "a", None

def upgrade():
    op.execute("CREATE TABLE a (id int)")
"""


@pytest.fixture
def clones(database: Database, restricted_template: NoopExecutor) -> Iterator[list[Database]]:
    """Yield clones of the template, one for each upgrade and downgrade."""
    names = [f"{database.url.database}_{number}" for number in range(UPGRADES + DOWNGRADES)]
    server = Database(database.url.set(database="postgres"))
    for name in names:
        template = restricted_template.template_dbname
        server.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" OWNER postgres', SUPERUSER)
    yield [Database(database.url.set(database=name)) for name in names]
    for name in names:
        server.execute(f'DROP DATABASE "{name}" WITH (FORCE)', SUPERUSER)


@pytest.mark.slow
def test_upgrades_downgrades_and_verify_in_threads_reach_their_targets(
    clones: list[Database],
) -> None:
    downgraded, upgraded = clones[:DOWNGRADES], clones[DOWNGRADES:]
    for one in downgraded:
        migrations.upgrade(one.url)
    verified = []

    def downgrade(one: Database) -> None:
        migrations.downgrade(one.url, "base")

    def upgrade(one: Database) -> None:
        migrations.upgrade(one.url)
        verified.append(verify(one.url))

    jobs = [(upgrade, one) for one in upgraded]
    for number, one in enumerate(downgraded):
        jobs.insert(6 * number, (downgrade, one))
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(lambda job: job[0](job[1]), jobs))
    assert verified == [[]] * UPGRADES
    revision = "SELECT version_num FROM langfuse_migrations.alembic_version"
    assert [one.execute(revision) for one in upgraded] == [[(HEAD,)]] * UPGRADES
    assert [one.execute(revision) for one in downgraded] == [[]] * DOWNGRADES
    for one in downgraded:
        assert "public.langfuse_traces" not in one.catalog().tables


def test_run_migrations_refuses_command_of_another_thread(
    database: Database, second_database: Database, tmp_path: Path
) -> None:
    waiting, refused = tmp_path / "waiting", tmp_path / "refused"
    waiting.mkdir()
    refused.mkdir()
    first, second = (projects.create(folder, a=CREATE_TABLE_A) for folder in (waiting, refused))
    with database.connect() as holder, ThreadPoolExecutor(1) as threads:
        # The first command retries its revision while a transaction creates a table of this name.
        holder.exec_driver_sql("BEGIN; CREATE TABLE a (id int)")
        running = threads.submit(first.migrate, database, "head")
        wait_until(database, HAS_RUNNER_LOCK)
        with pytest.raises(SchemaError) as error:
            second.migrate(second_database, "head")
        holder.exec_driver_sql("ROLLBACK")
        running.result()
    assert [one.code for one in error.value.findings] == ["command-in-thread"]
    assert "public.a" in database.catalog().tables
    assert "public.a" not in second_database.catalog().tables
