"""The revisions make what the plan's own SQL makes, and what `tables` and `access` declare."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sqlalchemy as sa
from support import LINKS, PLAN_REVISIONS, POLICIES, REVISIONS, Database, plan_sql

from langfuse_schema import access, catalog, declaration, differences, migrations, tables


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
    declared = tables.declared_metadata(revision)
    engine = sa.create_engine(database.url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL search_path TO public")
        declared.create_all(connection, [declared.tables[name] for name in access.TABLES])
        for table in (declared.tables[n] for n in tables.APP_TABLES if n in declared.tables):
            connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD langfuse_trace_id uuid")
            for constraint in table.foreign_key_constraints:
                connection.execute(sa.schema.AddConstraint(constraint))
            for index in table.indexes:
                connection.execute(sa.schema.CreateIndex(index))
        roles = connection.exec_driver_sql("SELECT rolname FROM pg_roles").scalars().all()
        for statement in access.statements(roles, revision):
            connection.exec_driver_sql(statement)


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
