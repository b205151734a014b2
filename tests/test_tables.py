"""The Core tables as app code uses them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import uuid
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

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
from langfuse_schema.tables import NOT_OURS
from tests.helpers.databases import AOI, Database


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
    unwanted = ("alembic", "psycopg2", "psycopg", "asyncpg", "sqlalchemy.orm", "mako")
    assert not [name for name in imported if name.startswith(unwanted)]


def test_enumeration_member_equals_its_text() -> None:
    assert str(ScoreStatus.PENDING) == f"{ScoreStatus.PENDING}" == ScoreStatus.PENDING == "pending"


class TestCopyTables:
    def test_copy_tables_adds_langfuse_tables_and_users(self) -> None:
        target = sa.MetaData()
        copied = copy_tables(target)
        assert set(copied) == set(target.tables) == set(metadata.tables)
        assert target.tables["auth.users"].info == NOT_OURS

    def test_copy_tables_keeps_users_table_of_app(self) -> None:
        target = sa.MetaData()
        users = sa.Table("users", target, sa.Column("id", sa.Uuid, primary_key=True), schema="auth")
        assert copy_tables(target)["auth.users"] is users
        (key,) = target.tables["langfuse_traces"].c.user_id.foreign_keys
        assert key.column is users.c.id

    def test_copy_tables_ignores_naming_convention_of_app(self) -> None:
        kinds = ("pk", "uq", "ck", "fk", "ix")
        target = sa.MetaData(naming_convention=dict.fromkeys(kinds, "app_%(table_name)s"))
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


QUESTION = (
    sa.select(langfuse_traces.c.metadata, langfuse_traces.c.tags, langfuse_scores.c.status)
    .join(langfuse_scores, langfuse_scores.c.trace_id == langfuse_traces.c.trace_id)
    .where(langfuse_scores.c.status == ScoreStatus.PENDING)
)
ANSWER = ({"model": "small", "tokens": [1, 2]}, ["a", "b"], "pending")


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
        assert tuple(connection.execute(QUESTION).one()) == ANSWER


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
            return tuple((await connection.execute(QUESTION)).one())

    assert asyncio.run(round_trip()) == ANSWER
