"""Commands that an app calls in its env.py and in its revisions."""

from __future__ import annotations

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from langfuse_schema import migrations
from langfuse_schema._postgres.findings import SchemaError
from langfuse_schema.verify import verify
from tests.helpers.databases import CORE, HEAD, Database, langfuse_tables

if TYPE_CHECKING:
    from pathlib import Path

ENVIRONMENT = """
import asyncio
import os

import sqlalchemy as sa
from alembic import context
from sqlalchemy.ext.asyncio import create_async_engine

from langfuse_schema import migrations
from langfuse_schema.verify import verify

url = sa.make_url(context.config.attributes["url"])


def run(connection):
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()


def run_app():
    if context.is_offline_mode():
        context.configure(dialect_name="postgresql")
        with context.begin_transaction():
            context.run_migrations()
        return
    with sa.create_engine(url, poolclass=sa.NullPool).connect() as connection:
        run(connection)


async def run_async():
    engine = create_async_engine(url.set(drivername="postgresql+asyncpg"), poolclass=sa.NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(run)
        await connection.commit()


"""

REVISION = """
import sqlalchemy as sa
from alembic import context, op

from langfuse_schema import migrations
from langfuse_schema.verify import verify

revision, down_revision = "{revision}", {down_revision!r}
url = context.config.attributes["url"]


def upgrade():
{upgrade}


def downgrade():
    pass
"""

AUTOCOMMIT = """
    with op.get_context().autocommit_block():
        migrations.upgrade(url)
"""


@dataclass(frozen=True)
class App:
    """A folder with an Alembic environment and revisions of an app."""

    folder: Path
    database: Database
    drivername: str = "postgresql+psycopg2"

    def config(self, **options: io.StringIO) -> Config:
        config = Config(**options)
        config.set_main_option("script_location", str(self.folder))
        config.set_main_option("path_separator", "os")
        url = self.database.url.set(drivername=self.drivername)
        config.attributes["url"] = url.render_as_string(hide_password=False)
        return config

    def write(self, *revisions: str, end: str = "run_app()") -> None:
        (self.folder / "versions").mkdir()
        (self.folder / "env.py").write_text(ENVIRONMENT + end)
        names = [f"a{number}" for number in range(1, len(revisions) + 1)]
        for name, previous, body in zip(names, [None, *names], revisions, strict=False):
            text = REVISION.format(revision=name, down_revision=previous, upgrade=body.strip("\n"))
            (self.folder / "versions" / f"{name}.py").write_text(text)

    def upgrade(self) -> None:
        command.upgrade(self.config(), "head")

    def heads(self) -> tuple[str, str]:
        """Return the recorded revisions of the app and of langfuse-schema."""
        tables = ("public.alembic_version", "langfuse_migrations.alembic_version")
        (app,), (langfuse,) = (
            self.database.execute(f"SELECT min(version_num) FROM {table}") for table in tables
        )
        return app[0], langfuse[0]

    def finding(self, code: str) -> str:
        """Assert that an upgrade raises findings of one code, and return the message."""
        with pytest.raises(SchemaError) as raised:
            self.upgrade()
        assert {one.code for one in raised.value.findings} == {code}
        return str(raised.value)


@pytest.fixture
def app(database: Database, tmp_path: Path) -> App:
    return App(tmp_path, database)


EMPTY = "    pass"
CREATE = "    op.create_table('app_rows', sa.Column('id', sa.Integer))"


@pytest.mark.parametrize(
    "end",
    [
        pytest.param("migrations.upgrade(url)\nrun_app()", id="before"),
        pytest.param("run_app()\nmigrations.upgrade(url)\nassert verify(url) == []", id="after",
                     marks=pytest.mark.slow),
        pytest.param("asyncio.run(run_async())\nmigrations.upgrade(url)", id="async env.py",
                     marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_upgrade_in_env_py_leaves_both_histories_at_head(app: App, end: str) -> None:
    app.write(CREATE, EMPTY, end=end)
    app.upgrade()
    assert app.heads() == ("a2", HEAD)
    app.upgrade()
    assert verify(app.database.url) == []


@pytest.mark.parametrize(
    ("drivername", "end"),
    [
        ("postgresql+psycopg2", "run_app()"),
        pytest.param("postgresql+psycopg", "run_app()", marks=pytest.mark.slow),
        pytest.param("postgresql+asyncpg", "asyncio.run(run_async())", marks=pytest.mark.slow),
    ],
)
def test_upgrade_in_autocommit_block_of_revision_leaves_both_histories_at_head(
    app: App, drivername: str, end: str
) -> None:
    app = App(app.folder, app.database, drivername)
    linked = "    op.create_table('app_links', sa.Column('trace_id', sa.Uuid, sa.ForeignKey("
    linked += "'langfuse_traces.trace_id')))"
    app.write("    op.add_column('reflections', sa.Column('extra', sa.Integer))" + AUTOCOMMIT,
              linked, end=end)  # fmt: skip
    app.upgrade()
    assert app.heads() == ("a2", HEAD)
    assert verify(app.database.url) == []


@pytest.mark.slow
def test_all_commands_succeed_in_revision_without_locks(app: App) -> None:
    app.write(
        CREATE
        + """
    migrations.upgrade(url, "+1")
    report = migrations.preflight(url)
    assert report.ok, report
    migrations.upgrade(url)
    assert verify(url) == []
    migrations.downgrade(url, "base")
    migrations.stamp(url, "base")
    migrations.upgrade(url)
    assert context.get_context() is op.get_context()
    assert context.config.attributes["url"] == url
    op.create_table('more_rows', sa.Column('id', sa.Integer))
"""
    )
    app.upgrade()
    assert app.heads() == ("a1", HEAD)
    assert {"public.app_rows", "public.more_rows"} <= app.database.catalog().tables.keys()


@pytest.mark.parametrize(
    ("drivername", "end", "target"),
    [
        ("postgresql+psycopg2", "run_app()", "url"),
        pytest.param(
            "postgresql+psycopg",
            "run_app()",
            "sa.create_engine(url, poolclass=sa.NullPool)",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "postgresql+asyncpg", "asyncio.run(run_async())", "url", marks=pytest.mark.slow
        ),
    ],
)
def test_upgrade_in_revision_that_has_read_a_table_stops_with_message(
    app: App, drivername: str, end: str, target: str
) -> None:
    app = App(app.folder, app.database, drivername)
    read = "    op.execute('SELECT count(*) FROM reflections')"
    app.write(f"{read}\n    migrations.upgrade({target})", end=end)
    message = app.finding("caller-transaction-open")
    # An open cursor of asyncpg holds a snapshot, for which the first index build waits.
    table = "ai_coach_messages" if "asyncpg" in drivername else "reflections"
    assert f"public.{table} is held by the transaction in which this run was called" in message
    assert f"the database is at {CORE}; completed steps are kept" in message
    assert "autocommit_block()" in message


@pytest.mark.slow
def test_upgrade_in_revision_with_old_snapshot_stops_with_message(app: App) -> None:
    """The transaction locks no table, but an index build waits for its snapshot."""
    app.write("    migrations.upgrade(url)")
    environment = app.folder / "env.py"
    isolated = "poolclass=sa.NullPool, isolation_level='REPEATABLE READ'"
    environment.write_text(environment.read_text().replace("poolclass=sa.NullPool", isolated, 1))
    app.finding("caller-transaction-open")


@pytest.mark.slow
def test_upgrade_in_revision_that_has_created_app_table_stops_with_message(app: App) -> None:
    app.database.execute("DROP TABLE reflections")
    create = "    op.create_table('reflections', sa.Column('id', sa.Uuid, primary_key=True))"
    app.write(f"{create}\n    migrations.upgrade(url)")
    assert "public.reflections is held" in app.finding("caller-transaction-open")


@pytest.mark.slow
def test_verify_in_revision_that_has_locked_a_table_stops_with_message(app: App) -> None:
    migrations.upgrade(app.database.url)
    app.write("    op.execute('LOCK TABLE langfuse_traces')\n    verify(url)")
    assert "public.langfuse_traces" in app.finding("caller-transaction-open")


@pytest.mark.slow
def test_upgrade_at_head_in_revision_that_has_locked_a_table_has_nothing_to_do(app: App) -> None:
    migrations.upgrade(app.database.url)
    app.write("    op.execute('LOCK TABLE langfuse_traces')\n    migrations.upgrade(url)")
    app.upgrade()
    assert app.heads() == ("a1", HEAD)


@pytest.mark.parametrize(
    ("revision", "end"),
    [("    migrations.upgrade(url)", "run_app()"), (EMPTY, "migrations.upgrade(url)\nrun_app()")],
    ids=["revision", "env.py"],
)
def test_upgrade_in_offline_environment_is_refused(app: App, revision: str, end: str) -> None:
    app.write(revision, end=end)
    with pytest.raises(SchemaError, match=r"caller-offline[\s\S]*is_offline_mode"):
        command.upgrade(app.config(output_buffer=io.StringIO()), "head", sql=True)
    assert not set(langfuse_tables()) & app.database.catalog().tables.keys()


@pytest.mark.slow
def test_upgrades_of_two_databases_in_two_threads_succeed(
    database: Database, second_database: Database
) -> None:
    """Alembic has global variables, which would give a revision the other connection."""
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda one: migrations.upgrade(one.url), [database, second_database]))
    assert verify(database.url) == verify(second_database.url) == []


@pytest.mark.slow
def test_verify_in_another_thread_ignores_the_transaction_of_a_revision(app: App) -> None:
    migrations.upgrade(app.database.url)
    app.write(
        """
    from concurrent.futures import ThreadPoolExecutor
    from langfuse_schema._runtime.alembic_internals import running_environment
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(running_environment).result() is None
        assert threads.submit(verify, url).result() == []
    assert running_environment() is context._proxy
"""
    )
    app.upgrade()


@pytest.mark.slow
def test_upgrade_in_running_event_loop_succeeds(database: Database) -> None:
    async def main() -> None:
        migrations.upgrade(database.url.set(drivername="postgresql+asyncpg"))

    asyncio.run(main())
    assert verify(database.url) == []


def test_upgrade_refuses_async_engine_and_names_its_url(database: Database) -> None:
    from sqlalchemy.ext.asyncio import create_async_engine

    url = database.url.set(drivername="postgresql+asyncpg")
    engine = create_async_engine(url, poolclass=sa.NullPool)
    for target in (engine, engine.sync_engine, engine.connect()):
        with pytest.raises(SchemaError, match=r"engine-async[\s\S]*upgrade\(engine\.url\)"):
            migrations.upgrade(target)  # type: ignore[arg-type] # on purpose

    async def verify_connection() -> None:
        async with engine.connect() as connection:
            await connection.run_sync(verify)

    with pytest.raises(SchemaError, match="engine-async"):
        asyncio.run(verify_connection())
