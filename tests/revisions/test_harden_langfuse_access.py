"""The plan's policies are replaced only if they are unchanged."""

from __future__ import annotations

import pytest

from langfuse_schema import migrations
from langfuse_schema._postgres.findings import SchemaError
from tests.helpers.databases import HARDENED, HOT_PATHS, POLICIES, Database

VIEW_TRACES = '"Users can view their own traces" ON langfuse_traces'
CUSTOM_RULE = "USING (auth.uid() = user_id AND entity_type <> 'reflection')"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (f"DROP POLICY {VIEW_TRACES}", "policy-missing"),
        (f"ALTER POLICY {VIEW_TRACES} {CUSTOM_RULE}", "policy-differs"),
        (f"ALTER POLICY {VIEW_TRACES} TO authenticated", "policy-differs"),
    ],
)
def test_upgrade_refuses_to_replace_changed_policy_of_plan(
    database: Database, change: str, code: str
) -> None:
    migrations.upgrade(database.url, POLICIES)
    before = database.catalog()
    database.execute(change)
    changed = database.catalog()
    with pytest.raises(SchemaError) as refused:
        migrations.upgrade(database.url)
    (finding,) = refused.value.findings
    assert (finding.code, finding.object) == (
        code,
        "public.langfuse_traces: Users can view their own traces",
    )
    assert database.catalog() == changed
    for statement in finding.fix:
        database.execute(statement)
    assert database.catalog() == before
    migrations.upgrade(database.url)


def test_upgrade_and_downgrade_keep_policy_of_app(database: Database) -> None:
    migrations.upgrade(database.url, POLICIES)
    database.execute("CREATE POLICY ours ON langfuse_traces FOR DELETE USING (false)")
    migrations.upgrade(database.url)
    migrations.downgrade(database.url, POLICIES)
    assert database.execute("SELECT count(*) FROM pg_policy WHERE polname = 'ours'") == [(1,)]


def test_upgrade_revokes_added_grants(database: Database) -> None:
    migrations.upgrade(database.url, HARDENED)
    expected = database.catalog()
    migrations.downgrade(database.url, POLICIES)
    database.execute(
        "GRANT ALL ON langfuse_batch_runs TO anon;"
        "GRANT SELECT (endpoint) ON rate_limit_logs TO PUBLIC;"
        "GRANT INSERT (status), UPDATE (status) ON langfuse_scores TO authenticated"
    )
    migrations.upgrade(database.url, HARDENED)
    assert database.catalog() == expected


def test_upgrade_revokes_grants_passed_on_with_grant_option(database: Database) -> None:
    migrations.upgrade(database.url)
    expected = database.catalog()
    migrations.downgrade(database.url, POLICIES)
    database.execute(
        "GRANT SELECT ON langfuse_traces TO service_role WITH GRANT OPTION; SET ROLE service_role;"
        " GRANT SELECT ON langfuse_traces TO anon; RESET ROLE"
    )
    migrations.upgrade(database.url)
    assert database.catalog() == expected


def test_downgrade_drops_indexes_of_interrupted_upgrade(database: Database) -> None:
    migrations.upgrade(database.url, POLICIES)
    before = database.catalog()
    migrations.upgrade(database.url, HOT_PATHS)
    # Alembic records a revision at its end, so an interrupted revision is not recorded.
    database.execute(f"UPDATE langfuse_migrations.alembic_version SET version_num = '{HARDENED}'")
    migrations.downgrade(database.url, POLICIES)
    assert database.catalog() == before
