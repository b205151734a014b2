"""Automatic row level security enables RLS before the revisions do."""

from __future__ import annotations

import pytest
from alembic.util import CommandError

from langfuse_schema import migrations
from langfuse_schema.verify import verify
from tests.helpers.databases import (
    CORE,
    LINKS,
    PLAN_REVISIONS,
    POLICIES,
    REVISIONS,
    Database,
    langfuse_schema,
    langfuse_tables,
    plan_sql,
)
from tests.helpers.hosted import enable_automatic_rls


@pytest.fixture
def hosted(any_world: Database) -> Database:
    enable_automatic_rls(any_world)
    return any_world


def test_run_stopped_at_each_revision_resumes_to_same_catalog(
    hosted: Database, second_database: Database
) -> None:
    migrations.upgrade(second_database.url)
    for revision in REVISIONS[:-1]:
        migrations.upgrade(hosted.url, revision)
        assert verify(hosted.url, revision) == []
        migrations.upgrade(hosted.url)
        assert verify(hosted.url) == []
        tables = hosted.catalog().tables
        expected = second_database.catalog().tables
        # The default privileges of the app's tables differ between the two worlds.
        for name in langfuse_tables():
            assert tables[name] == expected[name]
        migrations.downgrade(hosted.url, "base")


def test_verify_lists_automatic_rls_as_fact(hosted: Database) -> None:
    migrations.upgrade(hosted.url, LINKS)
    outcome = langfuse_schema(hosted, "verify", "--revision", LINKS)
    assert outcome.code == 0
    tables = ", ".join(langfuse_tables())
    assert f"additional row security: {tables}" in outcome.stdout
    assert "DISABLE" not in outcome.stdout


@pytest.mark.parametrize("command", ["upgrade", "preflight"])
def test_command_accepts_recorded_revision_with_automatic_rls(
    hosted: Database, command: str
) -> None:
    migrations.upgrade(hosted.url, LINKS)
    if command == "preflight":
        assert migrations.preflight(hosted.url).findings == ()
    else:
        migrations.upgrade(hosted.url, POLICIES)
        assert verify(hosted.url, POLICIES) == []


def test_plan_run_by_hand_is_adopted_with_rls_on_all_tables(hosted: Database) -> None:
    hosted.execute(plan_sql(*PLAN_REVISIONS))
    with pytest.raises(CommandError, match="plan-already-run") as refused:
        migrations.upgrade(hosted.url)
    assert "DISABLE" not in str(refused.value)
    migrations.stamp(hosted.url, PLAN_REVISIONS[-1])
    migrations.upgrade(hosted.url)
    assert verify(hosted.url) == []


def test_downgrade_disables_rls_and_grants_users_no_access(hosted: Database) -> None:
    migrations.upgrade(hosted.url)
    migrations.downgrade(hosted.url, CORE)
    assert verify(hosted.url, CORE) == []
    for table in langfuse_tables():
        found = hosted.catalog().tables[table]
        assert {grant.role for grant in found.grants} == {"postgres", "service_role"}


def test_no_fix_of_verify_disables_rls(hosted: Database) -> None:
    migrations.upgrade(hosted.url)
    for revision in REVISIONS:
        printed = "\n".join(map(str, verify(hosted.url, revision)))
        assert "DISABLE ROW" not in printed
