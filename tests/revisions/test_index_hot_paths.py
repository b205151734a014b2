"""An existing index is kept if it has the right definition, and is never replaced."""

from __future__ import annotations

import pytest

from langfuse_schema import migrations
from langfuse_schema._postgres.findings import SchemaError
from tests.helpers.databases import HARDENED, Database

PENDING = "idx_langfuse_scores_pending"
CREATE_PENDING = (
    f"CREATE INDEX {PENDING} ON langfuse_scores (created_at, id) WHERE status = 'pending'"
)


@pytest.mark.parametrize(
    ("conflict", "code"),
    [
        (f"CREATE INDEX {PENDING} ON langfuse_scores (created_at)", "name-taken"),
        (f"CREATE INDEX {PENDING} ON reflections (created_at)", "name-taken"),
        (f"CREATE TABLE {PENDING} ()", "name-taken"),
    ],
)
def test_upgrade_reports_other_relation_with_name_of_new_index(
    database: Database, conflict: str, code: str
) -> None:
    migrations.upgrade(database.url, HARDENED)
    database.execute(conflict)
    before = database.catalog()
    with pytest.raises(SchemaError) as refused:
        migrations.upgrade(database.url)
    (finding,) = refused.value.findings
    assert (finding.code, finding.object) == (code, f"public.{PENDING}")
    assert database.catalog() == before
    for statement in finding.fix:
        database.execute(statement)
    migrations.upgrade(database.url)


def test_upgrade_from_base_reports_name_conflict_of_later_revision(database: Database) -> None:
    database.execute(f"CREATE INDEX {PENDING} ON reflections (created_at)")
    with pytest.raises(SchemaError) as refused:
        migrations.upgrade(database.url)
    assert [finding.code for finding in refused.value.findings] == ["name-taken"]


def test_upgrade_keeps_existing_valid_index(database: Database) -> None:
    migrations.upgrade(database.url, HARDENED)
    database.execute(CREATE_PENDING)
    oid = database.execute(f"SELECT '{PENDING}'::regclass::oid")
    migrations.upgrade(database.url)
    assert database.execute(f"SELECT '{PENDING}'::regclass::oid") == oid


def test_upgrade_rebuilds_invalid_index(database: Database) -> None:
    migrations.upgrade(database.url)
    expected = database.catalog()
    migrations.downgrade(database.url, HARDENED)
    database.execute(CREATE_PENDING)
    database.execute(
        f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{PENDING}'::regclass",
        "supabase_admin",
    )
    migrations.upgrade(database.url)
    assert database.catalog() == expected


def test_downgrade_skips_dropped_index(database: Database) -> None:
    migrations.upgrade(database.url)
    database.execute(f"DROP INDEX {PENDING}")
    migrations.downgrade(database.url, HARDENED)
