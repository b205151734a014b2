"""`create_all` creates the current schema in one call, for the tests of apps."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import InvalidRequestError, ProgrammingError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase

from langfuse_schema import (
    copy_tables,
    create_all,
    langfuse_trace_id_column,
    metadata,
    migrations,
)
from langfuse_schema.verify import verify
from tests.helpers.databases import SUPERUSER, Database, langfuse_schema, langfuse_tables
from tests.helpers.models import declare_linked_classes

if TYPE_CHECKING:
    from collections.abc import Callable


def difference_codes(database: Database) -> set[str]:
    return {finding.code for finding in verify(database.url)}


def test_create_all_equals_upgrade_and_second_call_changes_nothing(any_world: Database) -> None:
    engine = sa.create_engine(any_world.url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("SET search_path TO auth, public")
        create_all(connection)
        assert connection.exec_driver_sql("SHOW search_path").scalar() == "auth, public"
    assert difference_codes(any_world) == {"version-table-missing"}
    before = any_world.catalog()
    with engine.begin() as connection:
        create_all(connection)
    assert any_world.catalog() == before
    migrations.stamp(any_world.url, "head")
    assert verify(any_world.url) == []


def app_metadata() -> sa.MetaData:
    """Return the MetaData of an app that copies the tables and has a linked table."""
    app = sa.MetaData()
    copy_tables(app)
    key = sa.Column("id", sa.Uuid, primary_key=True)
    sa.Table("reflections", app, key, langfuse_trace_id_column())
    return app


@pytest.mark.parametrize("declared", [lambda: metadata, app_metadata], ids=["declared", "copied"])
@pytest.mark.parametrize("autocommit", [False, True], ids=["transaction", "autocommit"])
def test_metadata_create_all_denies_anon_access_to_every_table(
    any_world: Database, declared: Callable[[], sa.MetaData], autocommit: bool
) -> None:
    any_world.execute("DROP TABLE public.reflections")
    engine = sa.create_engine(any_world.url, poolclass=sa.NullPool)
    if autocommit:
        engine = engine.execution_options(isolation_level="AUTOCOMMIT")
    declared().create_all(engine)
    differences = {
        finding.code
        for finding in verify(any_world.url)
        if "langfuse_" in finding.object.partition(":")[0]
    }
    assert not {code for code in differences if code.startswith(("grant", "policy", "row"))}
    for table in langfuse_tables():
        with any_world.signed_in("anon") as anon, pytest.raises(ProgrammingError, match="denied"):
            anon.exec_driver_sql(f"SELECT 1 FROM {table}")
    if declared is app_metadata:
        with engine.begin() as connection:
            create_all(connection)
        assert difference_codes(any_world) == {"version-table-missing"}


def test_metadata_create_all_without_auth_uid_fails_and_denies_anon_access(
    legacy_database: Database,
) -> None:
    legacy_database.execute("DROP FUNCTION auth.uid CASCADE", SUPERUSER)
    engine = sa.create_engine(legacy_database.url, poolclass=sa.NullPool)
    with pytest.raises(ProgrammingError, match=r"auth\.uid"):
        metadata.create_all(engine.execution_options(isolation_level="AUTOCOMMIT"))
    with legacy_database.signed_in("anon") as anon, pytest.raises(ProgrammingError, match="denied"):
        anon.exec_driver_sql("SELECT 1 FROM langfuse_traces")


def test_metadata_create_all_refuses_another_schema(legacy_database: Database) -> None:
    app = sa.MetaData()
    for table in metadata.sorted_tables:
        table.to_metadata(app, schema=table.schema or "app")
    legacy_database.execute("CREATE SCHEMA app")
    engine = sa.create_engine(legacy_database.url, poolclass=sa.NullPool)
    with pytest.raises(InvalidRequestError, match="must be in schema public"):
        app.create_all(engine)
    translated = engine.execution_options(schema_translate_map={None: "app"})
    other_search_path = sa.create_engine(
        legacy_database.url, poolclass=sa.NullPool, connect_args={"options": "-csearch_path=app"}
    )
    for moved in (translated, other_search_path):
        with pytest.raises(InvalidRequestError, match="must be in schema public"):
            metadata.create_all(moved)
    assert not [name for name in legacy_database.catalog().tables if name.startswith("app.")]


@pytest.mark.parametrize("copied", [False, True], ids=["declared", "copied"])
def test_metadata_create_all_links_tables_of_mixin(database: Database, *, copied: bool) -> None:
    class Base(DeclarativeBase):
        metadata = sa.MetaData(naming_convention={"fk": "app_%(constraint_name)s"})

    declare_linked_classes(Base)
    copy_tables(Base.metadata)
    app = sa.MetaData() if copied else Base.metadata
    for table in Base.metadata.sorted_tables if copied else ():
        table.to_metadata(app)
    database.execute("DROP TABLE ai_coach_messages, encouragement_messages, reflections")
    app.create_all(sa.create_engine(database.url, poolclass=sa.NullPool))
    assert difference_codes(database) == {"version-table-missing"}


def test_metadata_create_all_through_asyncpg_denies_anon_access(legacy_database: Database) -> None:
    async def create() -> None:
        url = legacy_database.url.set(drivername="postgresql+asyncpg")
        engine = create_async_engine(url, poolclass=sa.NullPool)
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all)

    asyncio.run(create())
    with legacy_database.signed_in("anon") as anon, pytest.raises(ProgrammingError, match="denied"):
        anon.exec_driver_sql("SELECT 1 FROM langfuse_traces")


def test_create_all_without_app_tables_creates_langfuse_tables(database: Database) -> None:
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
