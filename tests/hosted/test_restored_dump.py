"""A dump of the Supabase CLI has GRANTs, but neither REVOKEs nor rows."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from alembic.util import CommandError

from langfuse_schema import migrations
from langfuse_schema.verify import verify
from tests.helpers.databases import (
    CORE,
    HARDENED,
    PLAN_REVISIONS,
    POLICIES,
    REVISIONS,
    SUPERUSER,
    Database,
    environment,
    langfuse_schema,
    langfuse_tables,
    plan_sql,
    run,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from langfuse_schema.migrations import Finding


def cli_dump(database: Database, psql: str) -> str:
    """Return the schema as `supabase db dump` writes it."""
    dumped = subprocess.run(
        [
            psql.replace("psql", "pg_dump"),
            *("--schema-only", "--quote-all-identifiers"),
            *("--schema=public", "--schema=langfuse_migrations"),
            database.as_user(SUPERUSER)
            .set(drivername="postgresql")
            .render_as_string(hide_password=False),
        ],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    omitted = re.compile(r"^(REVOKE|CREATE SCHEMA \"public\"|\\(un)?restrict|SET transaction_)")
    lines = [line for line in dumped.splitlines() if not omitted.match(line)]
    return "\n".join(lines).replace('CREATE SCHEMA "', 'CREATE SCHEMA IF NOT EXISTS "')


def restore(database: Database, dump: str, psql: str) -> None:
    """Restore a dump as postgres, which is the role that restores a project."""
    database.execute("DROP TABLE ai_coach_messages, encouragement_messages, reflections")
    restored = run(
        psql,
        *("-v", "ON_ERROR_STOP=1", "-q"),
        database.url.set(drivername="postgresql").render_as_string(hide_password=False),
        stdin=dump,
    )
    assert restored.code == 0, restored.stderr


def follow(database: Database, findings: Iterable[Finding], *, sql_first: bool) -> None:
    """Run the printed fixes as postgres, in their order or SQL first."""
    commands = [command for finding in findings for command in finding.fix]
    if sql_first:
        commands.sort(key=lambda command: command.startswith("langfuse-schema "))
    for command in commands:
        if command.startswith("langfuse-schema "):
            outcome = langfuse_schema(database, *command.split()[1:])
            assert outcome.code == 0, outcome.stderr
        else:
            database.execute(command)


@pytest.mark.parametrize(
    "revision",
    [
        pytest.param(CORE, marks=pytest.mark.slow),
        pytest.param(POLICIES, marks=pytest.mark.slow),
        pytest.param(HARDENED, marks=pytest.mark.slow),
        REVISIONS[-1],
    ],
)
@pytest.mark.parametrize(
    "reporter", [pytest.param("upgrade", marks=pytest.mark.slow), "preflight", "verify"]
)
def test_fixes_after_restore_complete_schema_and_deny_anon_access(
    legacy_database: Database, second_database: Database, psql: str, revision: str, reporter: str
) -> None:
    migrations.upgrade(second_database.url, revision)
    restore(legacy_database, cli_dump(second_database, psql), psql)
    findings: Any
    if reporter == "upgrade":
        with pytest.raises(CommandError) as refused:
            migrations.upgrade(legacy_database.url)
        findings = refused.value.findings  # type: ignore[attr-defined] # SchemaError
    elif reporter == "preflight":
        findings = migrations.preflight(legacy_database.url).findings
    else:
        findings = verify(legacy_database.url)
    codes = {finding.code for finding in findings}
    assert codes & {"revision-missing", "revision-behind", "plan-already-run"}
    assert ("access-differs" in codes) == (revision not in PLAN_REVISIONS or reporter == "verify")
    # The messages of upgrade and preflight put the SQL first.
    follow(legacy_database, findings, sql_first=reporter != "verify")
    migrations.upgrade(legacy_database.url)
    assert verify(legacy_database.url) == []
    tables = legacy_database.catalog().tables
    assert not [
        grant for name in langfuse_tables() for grant in tables[name].grants if grant.role == "anon"
    ]


def test_verify_reports_grants_of_adopted_plan_in_one_finding(any_world: Database) -> None:
    any_world.execute(plan_sql(*PLAN_REVISIONS))
    migrations.stamp(any_world.url, PLAN_REVISIONS[-1])
    (finding,) = verify(any_world.url, PLAN_REVISIONS[-1])
    assert finding.code == "access-differs"
    for statement in finding.fix:
        any_world.execute(statement)
    assert verify(any_world.url, PLAN_REVISIONS[-1]) == []
