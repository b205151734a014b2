"""`create_all`: the schema of today in one call, for the test suites of apps."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import create_async_engine

from langfuse_schema import (
    copy_tables,
    create_all,
    langfuse_trace_id_column,
    metadata,
    migrations,
)
from langfuse_schema.verify import verify
from tests.support import SUPERUSER, Database, langfuse_schema, langfuse_tables

if TYPE_CHECKING:
    from collections.abc import Callable


def differing(database: Database) -> set[str]:
    return {finding.code for finding in verify(database.url)}


def test_it_makes_what_upgrade_makes_and_twice_changes_nothing(any_world: Database) -> None:
    engine = sa.create_engine(any_world.url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("SET search_path TO auth, public")
        create_all(connection)
        assert connection.exec_driver_sql("SHOW search_path").scalar() == "auth, public"
    assert differing(any_world) == {"version-table-missing"}
    before = any_world.catalog()
    with engine.begin() as connection:
        create_all(connection)
    assert any_world.catalog() == before
    migrations.stamp(any_world.url, "head")
    assert verify(any_world.url) == []


def app_metadata() -> sa.MetaData:
    """The MetaData of an app that copies the tables and links one of its own."""
    app = sa.MetaData()
    copy_tables(app)
    key = sa.Column("id", sa.Uuid, primary_key=True)
    sa.Table("reflections", app, key, langfuse_trace_id_column())
    return app


@pytest.mark.parametrize("declared", [lambda: metadata, app_metadata], ids=["own", "copied"])
@pytest.mark.parametrize("autocommit", [False, True], ids=["transaction", "autocommit"])
def test_metadata_create_all_leaves_no_table_open(
    any_world: Database, declared: Callable[[], sa.MetaData], autocommit: bool
) -> None:
    any_world.execute("DROP TABLE public.reflections")
    engine = sa.create_engine(any_world.url, poolclass=sa.NullPool)
    if autocommit:
        engine = engine.execution_options(isolation_level="AUTOCOMMIT")
    declared().create_all(engine)
    differences = {
        d.code for d in verify(any_world.url) if "langfuse_" in d.object.partition(":")[0]
    }
    assert not {code for code in differences if code.startswith(("grant", "policy", "row"))}
    for table in langfuse_tables():
        with any_world.signed_in("anon") as anon, pytest.raises(ProgrammingError, match="denied"):
            anon.exec_driver_sql(f"SELECT 1 FROM {table}")
    if declared is app_metadata:
        with engine.begin() as connection:
            create_all(connection)
        assert differing(any_world) == {"version-table-missing"}


def test_metadata_create_all_closes_tables_before_it_needs_the_user_function(
    legacy_database: Database,
) -> None:
    legacy_database.execute("DROP FUNCTION auth.uid CASCADE", SUPERUSER)
    engine = sa.create_engine(legacy_database.url, poolclass=sa.NullPool)
    with pytest.raises(ProgrammingError, match=r"auth\.uid"):
        metadata.create_all(engine.execution_options(isolation_level="AUTOCOMMIT"))
    with legacy_database.signed_in("anon") as anon, pytest.raises(ProgrammingError, match="denied"):
        anon.exec_driver_sql("SELECT 1 FROM langfuse_traces")


def test_metadata_create_all_through_an_async_driver(legacy_database: Database) -> None:
    async def create() -> None:
        url = legacy_database.url.set(drivername="postgresql+asyncpg")
        engine = create_async_engine(url, poolclass=sa.NullPool)
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all)

    asyncio.run(create())
    with legacy_database.signed_in("anon") as anon, pytest.raises(ProgrammingError, match="denied"):
        anon.exec_driver_sql("SELECT 1 FROM langfuse_traces")


def test_without_the_tables_of_the_app(database: Database) -> None:
    database.execute(
        "DROP TABLE public.ai_coach_messages, public.encouragement_messages, public.reflections"
    )
    with sa.create_engine(database.url, poolclass=sa.NullPool).begin() as connection:
        create_all(connection)
    found = {finding.object for finding in verify(database.url)}
    assert not {name for name in found if "langfuse_" in name.partition(".")[2]} - {
        "langfuse_migrations.alembic_version"
    }
    assert langfuse_schema(database, "verify").code == 1
