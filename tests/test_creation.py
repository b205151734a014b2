"""`create_all`: the schema of today in one call, for the test suites of apps."""

from __future__ import annotations

import sqlalchemy as sa
from support import Database, langfuse_schema

from langfuse_schema import (
    copy_tables,
    create_all,
    langfuse_trace_id_column,
    migrations,
)
from langfuse_schema.verify import verify


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


def test_it_protects_tables_that_the_metadata_of_the_app_made(database: Database) -> None:
    """An app whose MetaData holds copies of our tables may have made them before."""
    database.execute("DROP TABLE public.reflections")
    metadata = sa.MetaData()
    copy_tables(metadata)
    sa.Table(
        "reflections",
        metadata,
        sa.Column("id", sa.Uuid, primary_key=True),
        langfuse_trace_id_column(),
    )
    engine = sa.create_engine(database.url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        ours = [table for table in metadata.sorted_tables if table.schema is None]
        metadata.create_all(connection, ours)
    assert differing(database) > {"version-table-missing"}
    with engine.begin() as connection:
        create_all(connection)
    assert differing(database) == {"version-table-missing"}


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
