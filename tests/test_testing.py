"""The pytest plugin for apps creates a migrated database for each test, and drops it."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from langfuse_schema import langfuse_traces, migrations
from langfuse_schema._postgres.findings import SchemaError
from langfuse_schema.testing import as_user
from tests.helpers.databases import (
    AOI,
    BEN,
    CHECKOUT,
    SUPERUSER,
    Database,
    Outcome,
    insert_example_rows,
    run,
)
from tests.helpers.fixes import filled, follows, printed_commands

if TYPE_CHECKING:
    from collections.abc import Iterator

CONFTEST = 'pytest_plugins = ["langfuse_schema.testing"]\n'

APP_TESTS = """
import os
from pathlib import Path
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError
from langfuse_schema import langfuse_traces
from langfuse_schema.verify import verify

@pytest.mark.parametrize("number", range(3))
def test_database_is_migrated_and_empty(langfuse_database_url, number):
    assert langfuse_database_url.startswith("postgresql://")
    assert verify(langfuse_database_url) == []
    url = sa.make_url(langfuse_database_url).set(drivername="postgresql+psycopg2")
    with sa.create_engine(url, poolclass=sa.NullPool).begin() as connection:
        for table in ("auth.users", "public.reflections", "langfuse_traces"):
            assert connection.scalar(sa.text(f"SELECT count(*) FROM {table}")) == 0
        connection.execute(sa.text("INSERT INTO auth.users VALUES (gen_random_uuid())"))
        created = "SELECT count(*) FROM pg_database WHERE datname LIKE 'langfuse\\\\_%\\\\_new'"
        assert connection.scalar(sa.text(created)) == 0
    with Path("seen").open("a") as seen:
        template = url.database.rpartition("_")[0]
        seen.write(f"{url.database} {template} {os.getpid()}\\n")
"""


class App:
    """An app with a conftest and tests, and the files that its test run leaves."""

    def __init__(self, folder: Path, conftest: str = CONFTEST, tests: str = APP_TESTS) -> None:
        self.folder = folder / "app"
        self.temporary = folder / "tmp"
        for path in (self.folder, self.temporary):
            path.mkdir(mode=0o755)
        (self.folder / "conftest.py").write_text(conftest)
        (self.folder / "test_app.py").write_text(tests)

    @property
    def shared(self) -> Path:
        """The parent of the shared folder, one for each test process."""
        worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
        folder = Path(os.environ["LANGFUSE_SCHEMA_SHARED_FOLDER"]) / worker
        folder.mkdir(mode=0o755, exist_ok=True)
        return folder

    def pytest(self, *arguments: str, **variables: str) -> Outcome:
        return run(
            sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider",
            *arguments,
            cwd=self.folder, TMPDIR=str(self.temporary),
            LANGFUSE_SCHEMA_SHARED_FOLDER=str(self.shared), **variables,
        )  # fmt: skip

    def used_databases(self) -> list[list[str]]:
        return [line.split() for line in (self.folder / "seen").read_text().splitlines()]

    def remaining_files(self) -> list[str]:
        """Return the files of the run, without the files of pytest and the copied programs."""
        runs = (self.shared / "langfuse-schema-root").glob("tests-*")
        found = [*self.temporary.iterdir(), *runs]
        return [str(path) for path in found if not path.name.startswith("pytest-of-")]


def test_each_test_gets_own_migrated_database_and_run_leaves_no_files(tmp_path: Path) -> None:
    app = App(tmp_path)
    outcome = app.pytest()
    assert outcome.code == 0, outcome.stdout
    databases = app.used_databases()
    assert len({name for name, *_ in databases}) == 3
    assert len({template for _, template, _ in databases}) == 1
    assert app.remaining_files() == []


@pytest.mark.slow
def test_processes_of_xdist_share_one_template_and_finish_within_10_s(tmp_path: Path) -> None:
    app = App(tmp_path)
    began = time.monotonic()
    outcome = app.pytest("-n", "2")
    seconds = time.monotonic() - began
    print(f"three tests with -n 2: {seconds:.1f} s")
    assert outcome.code == 0, outcome.stdout
    assert len({process for *_, process in app.used_databases()}) == 2
    assert len({template for _, template, _ in app.used_databases()}) == 1
    assert app.remaining_files() == []
    assert seconds < 10


@pytest.mark.slow
def test_killed_run_leaves_no_files(tmp_path: Path) -> None:
    killing = "\ndef test_zzz(langfuse_database_url):\n    os.kill(os.getpid(), 9)\n"
    app = App(tmp_path, tests=APP_TESTS + killing)
    assert app.pytest().code == -9
    deadline = time.monotonic() + 60
    while app.remaining_files() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert app.remaining_files() == []


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [(), ("-n", "2")], ids=["one process", "two processes"])
def test_configured_server_is_used_and_all_databases_are_dropped(
    tmp_path: Path, database: Database, arguments: tuple[str, ...]
) -> None:
    app = App(tmp_path)
    url = database.url.set(drivername="postgresql", username=SUPERUSER)
    text = url.render_as_string(hide_password=False)
    outcome = app.pytest(*arguments, LANGFUSE_SCHEMA_TEST_URL=text)
    assert outcome.code == 0, outcome.stdout
    (template,) = {template for _, template, _ in app.used_databases()}
    remaining = f"SELECT datname FROM pg_database WHERE datname LIKE '{template}%'"
    assert database.execute(remaining) == []
    assert app.remaining_files() == []


@pytest.mark.slow
@follows("test-server-role")
def test_configured_server_without_superuser_is_refused_without_traceback(
    tmp_path: Path, database: Database
) -> None:
    app = App(tmp_path)
    outcome = app.pytest(LANGFUSE_SCHEMA_TEST_URL=database.text)
    assert outcome.code == 1
    assert "error[test-server-role]: the role postgres cannot prepare" in outcome.stdout
    assert "Traceback" not in outcome.stdout
    (command,) = printed_commands(outcome.stdout, "test-server-role")
    export = filled(command, {"SUPERUSER:PASSWORD@": f"{SUPERUSER}@"})
    name, _, value = export.removeprefix("export ").partition("=")
    allowed = app.pytest(**{name: shlex.split(value)[0]})
    assert allowed.code == 0, allowed.stdout
    assert app.remaining_files() == []


@pytest.mark.slow
def test_app_migrations_run_once_before_upgrade(tmp_path: Path) -> None:
    conftest = (
        CONFTEST
        + """
import pytest
import sqlalchemy as sa

@pytest.fixture(scope="session")
def langfuse_app_migrations():
    def migrate(url):
        engine = sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg2"))
        with engine.begin() as connection:
            for table in ("ai_coach_messages", "encouragement_messages", "reflections"):
                connection.execute(sa.text(
                    f"CREATE TABLE {table} (id uuid PRIMARY KEY, made_by_the_app int)"
                ))
        with open("migrated", "a") as file:
            file.write("once\\n")
        migrate.engine = engine  # its pool keeps a connection open
    return migrate
"""
    )
    tests = """
import pytest
import sqlalchemy as sa

@pytest.mark.parametrize("number", range(4))
def test_table_of_app_has_link(langfuse_database_url, number):
    engine = sa.create_engine(
        sa.make_url(langfuse_database_url).set(drivername="postgresql+psycopg2"),
        poolclass=sa.NullPool,
    )
    names = {column["name"] for column in sa.inspect(engine).get_columns("reflections")}
    assert names == {"id", "made_by_the_app", "langfuse_trace_id"}
"""
    app = App(tmp_path, conftest, tests)
    # Python warns about an engine that the app does not dispose of.
    outcome = app.pytest("-n", "2", "-W", "default")
    assert outcome.code == 0, outcome.stdout
    assert (app.folder / "migrated").read_text() == "once\n"
    assert app.remaining_files() == []


@pytest.mark.slow
def test_documented_test_passes(tmp_path: Path) -> None:
    page = (CHECKOUT / "docs" / "how-to" / "test-your-app.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)```", page, re.MULTILINE | re.DOTALL)
    conftest, tests = (block for block in blocks if "langfuse_schema.testing" in block)
    outcome = App(tmp_path, conftest, tests).pytest()
    assert outcome.code == 0, outcome.stdout
    assert "1 passed" in outcome.stdout


@pytest.fixture
def engine(database: Database) -> Iterator[sa.Engine]:
    migrations.upgrade(database.url)
    insert_example_rows(database)
    engine = sa.create_engine(database.url)
    yield engine
    engine.dispose()


VISIBLE_USERS = sa.select(langfuse_traces.c.user_id)


def test_as_user_shows_own_rows_and_ends_with_transaction(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        as_user(connection, UUID(AOI))
        assert connection.scalars(VISIBLE_USERS).all() == [UUID(AOI)]
        as_user(connection, BEN)
        assert connection.scalars(VISIBLE_USERS).all() == [UUID(BEN)]
        as_user(connection, uuid4())
        assert connection.scalars(VISIBLE_USERS).all() == []
        connection.commit()
        settings = "SELECT current_user, current_setting('request.jwt.claims', true), auth.uid()"
        assert connection.execute(sa.text(settings)).one() == ("postgres", "", None)
        assert len(connection.scalars(VISIBLE_USERS).all()) == 2


def test_as_user_passes_claims_and_uses_anon_for_none(engine: sa.Engine) -> None:
    claims = sa.text("SELECT current_setting('request.jwt.claims')::jsonb")
    with Session(engine) as session:
        as_user(session, AOI, claims={"email": "aoi@example.com", "role": "service_role"})
        expected = {"email": "aoi@example.com", "role": "authenticated", "sub": AOI}
        assert session.scalar(claims) == expected
        as_user(session, None)
        assert session.execute(sa.text("SELECT current_user, auth.uid()")).one() == ("anon", None)


@pytest.mark.parametrize("driver", ["asyncpg", pytest.param("psycopg", marks=pytest.mark.slow)])
def test_awaited_as_user_shows_own_rows_on_async_connection_and_session(
    engine: sa.Engine, driver: str
) -> None:
    async def scenario() -> None:
        url = engine.url.set(drivername=f"postgresql+{driver}")
        asynchronous = create_async_engine(url, poolclass=sa.NullPool)
        async with asynchronous.connect() as connection:
            await as_user(connection, AOI)
            assert (await connection.scalars(VISIBLE_USERS)).all() == [UUID(AOI)]
            await connection.rollback()
            assert len((await connection.scalars(VISIBLE_USERS)).all()) == 2
        async with AsyncSession(asynchronous) as session:
            await as_user(session, BEN)
            assert (await session.scalars(VISIBLE_USERS)).all() == [UUID(BEN)]
            await as_user(session, None)
            assert await session.scalar(sa.text("SELECT current_user")) == "anon"

    asyncio.run(scenario())


def test_as_user_refuses_autocommit_connection(engine: sa.Engine) -> None:
    with (
        engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
        pytest.raises(SchemaError, match=re.escape("error[transaction-missing]")),
    ):
        as_user(connection, AOI)


def test_as_user_refuses_text_that_is_no_uuid() -> None:
    connection = sa.create_mock_engine("postgresql+psycopg2://", lambda *_: None)
    with pytest.raises(ValueError, match="user_id must be a UUID or None, not 'aoi'"):
        as_user(connection, "aoi")  # type: ignore[call-overload]
