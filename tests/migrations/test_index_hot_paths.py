"""20261123000002: indexes that are there are kept if they are ours, and never replaced else."""

from __future__ import annotations

import pytest

from langfuse_schema import migrations
from langfuse_schema._postgres.findings import SchemaError
from tests.support import HARDENED, Database

PENDING = "idx_langfuse_scores_pending"
OURS = f"CREATE INDEX {PENDING} ON langfuse_scores (created_at, id) WHERE status = 'pending'"


@pytest.mark.parametrize(
    ("obstacle", "code"),
    [
        (f"CREATE INDEX {PENDING} ON langfuse_scores (created_at)", "name-taken"),
        (f"CREATE INDEX {PENDING} ON reflections (created_at)", "name-taken"),
        (f"CREATE TABLE {PENDING} ()", "name-taken"),
    ],
)
def test_a_foreign_relation_under_a_new_name_is_a_finding(
    database: Database, obstacle: str, code: str
) -> None:
    migrations.upgrade(database.url, HARDENED)
    database.execute(obstacle)
    before = database.catalog()
    with pytest.raises(SchemaError) as refused:
        migrations.upgrade(database.url)
    (finding,) = refused.value.findings
    assert (finding.code, finding.object) == (code, f"public.{PENDING}")
    assert database.catalog() == before
    database.execute(finding.remedy.partition(": ")[2])
    migrations.upgrade(database.url)


def test_a_name_that_a_later_revision_needs_is_found_before_the_first(database: Database) -> None:
    database.execute(f"CREATE INDEX {PENDING} ON reflections (created_at)")
    with pytest.raises(SchemaError) as refused:
        migrations.upgrade(database.url)
    assert [finding.code for finding in refused.value.findings] == ["name-taken"]


def test_an_index_that_was_built_beforehand_is_kept(database: Database) -> None:
    migrations.upgrade(database.url, HARDENED)
    database.execute(OURS)
    oid = database.execute(f"SELECT '{PENDING}'::regclass::oid")
    migrations.upgrade(database.url)
    assert database.execute(f"SELECT '{PENDING}'::regclass::oid") == oid


def test_an_invalid_index_is_built_anew(database: Database) -> None:
    migrations.upgrade(database.url)
    expected = database.catalog()
    migrations.downgrade(database.url, HARDENED)
    database.execute(OURS)
    database.execute(
        f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{PENDING}'::regclass",
        "supabase_admin",
    )
    migrations.upgrade(database.url)
    assert database.catalog() == expected


def test_a_downgrade_of_an_index_that_somebody_dropped_goes_on(database: Database) -> None:
    migrations.upgrade(database.url)
    database.execute(f"DROP INDEX {PENDING}")
    migrations.downgrade(database.url, HARDENED)
