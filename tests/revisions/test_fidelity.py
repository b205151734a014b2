"""The revisions create the same schema as the plan's SQL, `create_all` and `tables`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from langfuse_schema import create_all, migrations, tables
from langfuse_schema._history import snapshots
from tests.helpers.databases import (
    HEAD,
    HISTORY,
    LINKS,
    PLAN_REVISIONS,
    POLICIES,
    REVISIONS,
    Database,
    plan_sql,
)
from tools import chain

if TYPE_CHECKING:
    from langfuse_schema._postgres.objects import Table
    from tests.helpers.databases import Catalog


def comparable(found: Catalog, *, grants: bool = False) -> dict[str, Table]:
    """Return the tables of schema public. `grants` includes the grants on the Langfuse tables."""
    return {
        name: table
        if grants and table.name not in tables.APP_TABLES
        else replace(table, grants=frozenset())
        for name, table in found.tables.items()
        if table.schema == "public"
    }


@pytest.mark.parametrize("revision", PLAN_REVISIONS)
def test_revision_creates_same_schema_as_plan_sql(
    database: Database, second_database: Database, revision: str
) -> None:
    migrations.upgrade(database.url, revision)
    applied = PLAN_REVISIONS[: PLAN_REVISIONS.index(revision) + 1]
    second_database.execute(plan_sql(*applied))
    assert comparable(database.catalog()) == comparable(second_database.catalog())


@pytest.mark.parametrize("revision", PLAN_REVISIONS)
def test_downgrade_leaves_same_schema_as_plan_sql(
    database: Database, second_database: Database, revision: str
) -> None:
    migrations.upgrade(database.url, POLICIES)
    migrations.downgrade(database.url, revision)
    second_database.execute(plan_sql(*PLAN_REVISIONS[: PLAN_REVISIONS.index(revision) + 1]))
    assert comparable(database.catalog()) == comparable(second_database.catalog())


def test_stamped_plan_database_upgrades_to_head_schema(
    any_world: Database, second_database: Database
) -> None:
    any_world.execute(plan_sql(*PLAN_REVISIONS))
    migrations.stamp(any_world.url, POLICIES)
    migrations.upgrade(any_world.url, "head")
    migrations.upgrade(second_database.url, "head")
    assert comparable(any_world.catalog(), grants=True) == comparable(
        second_database.catalog(), grants=True
    )


@pytest.mark.parametrize("revision", REVISIONS)
def test_create_all_creates_the_schema_of_the_revision(
    any_world: Database, second_database: Database, revision: str
) -> None:
    migrations.upgrade(any_world.url, revision)
    create_declared(second_database, revision)
    assert comparable(any_world.catalog(), grants=True) == comparable(
        second_database.catalog(), grants=True
    )


def create_declared(database: Database, revision: str) -> None:
    """Create the schema of a revision without running revisions."""
    with sa.create_engine(database.url, poolclass=sa.NullPool).begin() as connection:
        create_all(connection, revision)


@pytest.mark.parametrize("revision", REVISIONS)
def test_snapshot_equals_the_database_after_the_revision(
    any_world: Database, revision: str
) -> None:
    before = chain.read_tables(any_world.url)
    migrations.upgrade(any_world.url, revision)
    found = snapshots.added(before, chain.read_tables(any_world.url))
    text = snapshots.render(revision, found)
    assert HISTORY.snapshot_path(revision).read_text(encoding="utf-8") == text
    assert snapshots.parse(text) == found


def test_tables_module_declares_the_schema_of_the_head(
    database: Database, second_database: Database
) -> None:
    migrations.upgrade(database.url)
    engine = sa.create_engine(second_database.url, poolclass=sa.NullPool)
    declared = tables.declared_metadata()
    with engine.begin() as connection:
        for name in tables.APP_TABLES:
            connection.exec_driver_sql(f"DROP TABLE public.{name}")
        declared.create_all(connection)
    found = second_database.catalog().tables
    for name, expected in database.catalog().tables.items():
        if name.partition(".")[2] in tables.metadata.tables:
            assert found[name] == expected, "declare the change in tables.py"
    for name in tables.APP_TABLES:
        (column,) = found[f"public.{name}"].columns
        expected = HISTORY.schema(HEAD)[f"public.{name}"]
        assert expected.columns == (column,)
        assert found[f"public.{name}"].constraints == expected.constraints
        assert found[f"public.{name}"].indexes == expected.indexes


def test_link_foreign_keys_are_valid_and_set_null_on_delete(database: Database) -> None:
    migrations.upgrade(database.url, LINKS)
    assert database.execute(
        "SELECT count(*) FROM pg_constraint WHERE convalidated AND conname LIKE '%trace_id_fkey'"
        " AND confdeltype = 'n'"
    ) == [(3,)]
