"""Each revision upgrades, downgrades and upgrades again, with and without rows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from langfuse_schema import migrations
from tests.helpers.databases import CORE, HARDENED, SUPERUSER, Database, insert_example_rows

if TYPE_CHECKING:
    from tests.helpers.databases import Catalog

REVISIONS = migrations.revisions()


def without_version_table(found: Catalog) -> Catalog:
    """Return a catalog without the version table, which a downgrade to base keeps."""
    tables = {
        name: table for name, table in found.tables.items() if table.schema != "langfuse_migrations"
    }
    schemas = {name: acl for name, acl in found.schemas.items() if name != "langfuse_migrations"}
    return replace(found, tables=tables, schemas=schemas)


@pytest.mark.parametrize(
    "with_rows", [pytest.param(False, marks=pytest.mark.slow), True], ids=["empty", "with rows"]
)
def test_each_revision_upgrades_downgrades_and_upgrades_again(
    any_world: Database, with_rows: bool
) -> None:
    snapshots = {"base": without_version_table(any_world.catalog())}
    for revision in REVISIONS:
        migrations.upgrade(any_world.url, revision)
        snapshots[revision] = without_version_table(any_world.catalog())
    if with_rows:
        insert_example_rows(any_world)
    below = ["base", *REVISIONS]
    for position in range(len(REVISIONS), 0, -1):
        above = below[position]
        migrations.downgrade(any_world.url, "-1")
        assert without_version_table(any_world.catalog()) == snapshots[below[position - 1]]
        migrations.upgrade(any_world.url, "+1")
        assert without_version_table(any_world.catalog()) == snapshots[above]
        migrations.downgrade(any_world.url, "-1")


def test_downgrade_to_base_keeps_only_empty_version_table(database: Database) -> None:
    before = database.catalog()
    migrations.upgrade(database.url)
    insert_example_rows(database)
    migrations.downgrade(database.url, "base")
    after = database.catalog()
    assert without_version_table(after) == before
    assert after.tables.keys() - before.tables.keys() == {"langfuse_migrations.alembic_version"}
    assert database.execute("SELECT count(*) FROM langfuse_migrations.alembic_version") == [(0,)]


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE reflections ADD langfuse_trace_id text DEFAULT 'of the app'",
        "DROP TABLE reflections",
        "ALTER TABLE reflections OWNER TO supabase_admin",
    ],
)
def test_downgrade_keeps_objects_of_the_app(database: Database, change: str) -> None:
    database.execute(change, SUPERUSER)
    before = database.catalog()
    migrations.upgrade(database.url, CORE)
    migrations.downgrade(database.url, "base")
    assert without_version_table(database.catalog()) == before


def test_downgrade_keeps_index_of_another_table(database: Database) -> None:
    migrations.upgrade(database.url, HARDENED)
    database.execute("CREATE INDEX idx_langfuse_scores_pending ON langfuse_batch_runs (id)")
    migrations.downgrade(database.url, "-1")
    found = database.catalog().tables["public.langfuse_batch_runs"]
    assert found.index("idx_langfuse_scores_pending") is not None


def test_downgrade_keeps_rows_of_the_app(database: Database) -> None:
    rows = "SELECT count(*), max(body) FROM public.{}"
    tables = ("ai_coach_messages", "encouragement_messages", "reflections")
    before = [database.execute(rows.format(table)) for table in tables]
    migrations.upgrade(database.url)
    insert_example_rows(database)
    database.execute(
        "UPDATE reflections SET langfuse_trace_id = (SELECT min(trace_id::text)::uuid"
        " FROM langfuse_traces)"
    )
    migrations.downgrade(database.url, "base")
    assert [database.execute(rows.format(table)) for table in tables] == before
