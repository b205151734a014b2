"""The revisions make what the plan's own SQL makes, and what `tables` and `access` declare."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sqlalchemy as sa
from support import LINKS, PLAN_REVISIONS, POLICIES, REVISIONS, Database, plan_sql

from langfuse_schema import (
    access,
    catalog,
    create_all,
    declaration,
    differences,
    migrations,
)


def comparable(found: catalog.Catalog, *, grants: bool = False) -> dict[str, catalog.Table]:
    """The tables of schema public; those of the app, or all, without their grants."""
    return {
        name: table
        if grants and table.name in access.TABLES
        else replace(table, grants=frozenset())
        for name, table in found.tables.items()
        if table.schema == "public"
    }


@pytest.mark.parametrize("revision", PLAN_REVISIONS)
def test_a_revision_makes_what_the_plans_sql_makes(
    database: Database, second_database: Database, revision: str
) -> None:
    migrations.upgrade(database.url, revision)
    run_by_hand = PLAN_REVISIONS[: PLAN_REVISIONS.index(revision) + 1]
    second_database.execute(plan_sql(*run_by_hand))
    assert comparable(database.catalog()) == comparable(second_database.catalog())


@pytest.mark.parametrize("revision", PLAN_REVISIONS)
def test_a_downgrade_leaves_what_the_plans_rollback_leaves(
    database: Database, second_database: Database, revision: str
) -> None:
    migrations.upgrade(database.url, POLICIES)
    migrations.downgrade(database.url, revision)
    second_database.execute(plan_sql(*PLAN_REVISIONS[: PLAN_REVISIONS.index(revision) + 1]))
    assert comparable(database.catalog()) == comparable(second_database.catalog())


def test_a_database_of_the_plans_sql_is_adopted_by_a_stamp(
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
def test_the_declaration_and_the_revisions_make_the_same_database(
    any_world: Database, second_database: Database, revision: str
) -> None:
    migrations.upgrade(any_world.url, revision)
    create_declared(second_database, revision)
    assert comparable(any_world.catalog(), grants=True) == comparable(
        second_database.catalog(), grants=True
    )


def create_declared(database: Database, revision: str) -> None:
    """Make our tables and the links to them from the declaration, without any revision."""
    with sa.create_engine(database.url, poolclass=sa.NullPool).begin() as connection:
        create_all(connection, revision)


@pytest.mark.parametrize("revision", REVISIONS)
def test_what_is_declared_for_a_revision_is_what_the_catalog_holds_at_it(
    database: Database, revision: str
) -> None:
    migrations.upgrade(database.url, revision)
    found = database.catalog().tables
    for name, expected in declaration.at(revision).items():
        assert list(differences.of_table(expected, found[name])) == []


def test_the_foreign_keys_of_the_links_are_valid_without_a_scan(database: Database) -> None:
    migrations.upgrade(database.url, LINKS)
    assert database.execute(
        "SELECT count(*) FROM pg_constraint WHERE convalidated AND conname LIKE '%trace_id_fkey'"
        " AND confdeltype = 'n'"
    ) == [(3,)]
