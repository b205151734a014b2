"""The Core tables in the code of an app."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import uuid
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase

import langfuse_schema
from langfuse_schema import (
    EntityType,
    ScoreName,
    ScoreStatus,
    copy_tables,
    langfuse_scores,
    langfuse_trace_id_column,
    langfuse_traces,
    metadata,
    migrations,
)
from langfuse_schema.tables import EXTERNAL
from tests.helpers.databases import AOI, Database
from tests.helpers.models import declare_linked_classes


def test_every_public_name_is_importable() -> None:
    for name in langfuse_schema.__all__:
        assert getattr(langfuse_schema, name) is not None


def test_package_import_loads_sqlalchemy_core_only() -> None:
    printed = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import langfuse_schema"],
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    imported = {line.rpartition("|")[2].strip() for line in printed.splitlines()}
    assert "sqlalchemy.sql" in imported
    excluded = ("alembic", "psycopg2", "psycopg", "asyncpg", "sqlalchemy.orm", "mako")
    assert not [name for name in imported if name.startswith(excluded)]


def test_enumeration_member_equals_its_text() -> None:
    assert str(ScoreStatus.PENDING) == f"{ScoreStatus.PENDING}" == ScoreStatus.PENDING == "pending"


LINK = "langfuse_trace_id"

METADATA_OPTIONS = [
    {},
    {"schema": "public"},
    {"naming_convention": {"fk": "f_%(constraint_name)s", "ix": "i_%(constraint_name)s"}},
]


class TestCopyTables:
    def test_copy_tables_adds_langfuse_tables_and_users(self) -> None:
        target = sa.MetaData()
        copied = copy_tables(target)
        assert set(copied) == set(target.tables) == set(metadata.tables)
        assert target.tables["auth.users"].info == EXTERNAL

    def test_copy_tables_keeps_users_table_of_app(self) -> None:
        target = sa.MetaData()
        users = sa.Table("users", target, sa.Column("id", sa.Uuid, primary_key=True), schema="auth")
        assert copy_tables(target)["auth.users"] is users
        (key,) = target.tables["langfuse_traces"].c.user_id.foreign_keys
        assert key.column is users.c.id

    def test_second_copy_returns_tables_of_first(self) -> None:
        for target in (sa.MetaData(), sa.MetaData(schema="public")):
            first = copy_tables(target)
            assert copy_tables(target) == first
            assert set(first) == set(metadata.tables)

    def test_copy_tables_refuses_metadata_with_another_schema(self) -> None:
        target = sa.MetaData(schema="app")
        with pytest.raises(InvalidRequestError, match=r'Table\(…, schema="app"\)'):
            copy_tables(target)
        assert not target.tables

    @pytest.mark.parametrize("name", ["%(table_name)s", "%(table_name)s_%(constraint_name)s"])
    def test_copy_tables_ignores_naming_convention_of_app(self, name: str) -> None:
        names = dict.fromkeys(("uq", "ck", "fk", "ix"), f"app_{name}")
        target = sa.MetaData(naming_convention={"pk": "app_%(table_name)s", **names})
        copy_tables(target)
        for key, table in metadata.tables.items():
            names = {constraint.name for constraint in table.constraints}
            assert {constraint.name for constraint in target.tables[key].constraints} == names
            indexes = {index.name for index in table.indexes}
            assert {index.name for index in target.tables[key].indexes} == indexes


class TestLinkColumn:
    def test_link_column_adds_foreign_key_and_index(self) -> None:
        app = sa.MetaData()
        copy_tables(app)
        table = sa.Table("reflections", app, langfuse_trace_id_column())
        (key,) = table.foreign_key_constraints
        assert (key.name, key.ondelete) == ("reflections_langfuse_trace_id_fkey", "SET NULL")
        assert key.elements[0].column is app.tables["langfuse_traces"].c.trace_id
        assert [index.name for index in table.indexes] == ["idx_reflections_langfuse_trace_id"]

    @pytest.mark.parametrize("options", METADATA_OPTIONS, ids=str)
    def test_mixin_links_each_table_and_each_copy_once(self, options: dict[str, Any]) -> None:
        class Base(DeclarativeBase):
            metadata = sa.MetaData(**options)

        declare_linked_classes(Base)
        copy_tables(Base.metadata)
        copied, twice = sa.MetaData(**options), sa.MetaData()
        for table in Base.metadata.sorted_tables:
            table.to_metadata(copied).to_metadata(twice)
        for app in (Base.metadata, copied, twice):
            links = {table.name: table for table in app.tables.values() if LINK in table.c}
            assert set(links) == {"ai_coach_messages", "encouragement_messages", "reflections"}
            for name, table in links.items():
                (key,) = table.foreign_key_constraints
                assert (key.name, key.ondelete) == (f"{name}_{LINK}_fkey", "SET NULL")
                assert key.referred_table.name == "langfuse_traces"
                assert [index.name for index in table.indexes] == [f"idx_{name}_{LINK}"]

    def test_column_of_another_table_is_refused(self) -> None:
        shared = langfuse_trace_id_column()
        sa.Table("reflections", sa.MetaData(), shared)
        message = r"once for each table.*docs/how-to/app-models\.md"
        with pytest.raises(InvalidRequestError, match=message):
            sa.Table("streaks", sa.MetaData(), shared)

    def test_copied_link_column_has_one_foreign_key_and_one_index(self) -> None:
        app, other = sa.MetaData(), sa.MetaData()
        copy_tables(app)
        copy_tables(other)
        copied = sa.Table("reflections", app, langfuse_trace_id_column()).to_metadata(other)
        assert len(copied.foreign_key_constraints) == len(copied.indexes) == 1


def example_rows() -> tuple[dict[str, Any], dict[str, Any]]:
    trace_id = uuid.uuid4()
    trace = {
        "trace_id": trace_id,
        "entity_type": EntityType.REFLECTION,
        "entity_id": uuid.uuid4(),
        "user_id": uuid.UUID(AOI),
        "input": "100% :colon",
        "output": "out",
        "metadata": {"model": "small", "tokens": [1, 2]},
        "tags": ["a", "b"],
    }
    score = {"trace_id": trace_id, "score_name": ScoreName.USER_FEEDBACK, "value": 1}
    return trace, score


QUERY = (
    sa.select(langfuse_traces.c.metadata, langfuse_traces.c.tags, langfuse_scores.c.status)
    .join(langfuse_scores, langfuse_scores.c.trace_id == langfuse_traces.c.trace_id)
    .where(langfuse_scores.c.status == ScoreStatus.PENDING)
)
EXPECTED_ROW = ({"model": "small", "tokens": [1, 2]}, ["a", "b"], "pending")


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_rows_round_trip_through_sync_driver(database: Database, driver: str) -> None:
    migrations.upgrade(database.url)
    trace, score = example_rows()
    engine = sa.create_engine(
        database.url.set(drivername=f"postgresql+{driver}"), poolclass=sa.NullPool
    )
    with engine.begin() as connection:
        connection.execute(sa.insert(langfuse_traces).values(trace))
        connection.execute(sa.insert(langfuse_scores).values(score))
        assert tuple(connection.execute(QUERY).one()) == EXPECTED_ROW


def test_rows_round_trip_through_async_driver(database: Database) -> None:
    migrations.upgrade(database.url)
    trace, score = example_rows()

    async def round_trip() -> tuple[Any, ...]:
        engine = create_async_engine(
            database.url.set(drivername="postgresql+asyncpg"), poolclass=sa.NullPool
        )
        async with engine.begin() as connection:
            await connection.execute(sa.insert(langfuse_traces).values(trace))
            await connection.execute(sa.insert(langfuse_scores).values(score))
            return tuple((await connection.execute(QUERY)).one())

    assert asyncio.run(round_trip()) == EXPECTED_ROW
