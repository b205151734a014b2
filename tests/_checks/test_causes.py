"""Preflight reports each cause of a failed or insecure upgrade, and fixes remove the causes."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from langfuse_schema import migrations
from langfuse_schema._checks import preflight as checks
from langfuse_schema._history.chain import Position
from langfuse_schema._postgres.findings import SchemaError
from langfuse_schema.verify import verify
from tests.helpers.databases import HISTORY, REVISIONS, SUPERUSER, Database, not_member
from tests.helpers.effective_access import effective_access
from tests.helpers.fixes import commands, follows, is_sql, user_of
from tests.helpers.hosted import add_platform_tables, enable_automatic_rls

if TYPE_CHECKING:
    from collections.abc import Iterator

    from langfuse_schema._postgres.findings import Finding

REFLECTIONS = "public.reflections"


@dataclass(frozen=True)
class Cause:
    """A change by a superuser, after which preflight has one finding.

    `has_fix` is whether the finding has a fix. `succeeds` is whether the upgrade succeeds without
    the fix. `granted` is the beginning of each privilege that the fix must grant.
    """

    sql: str
    finding: str
    has_fix: bool = True
    succeeds: bool = False
    granted: str | None = None


def as_postgres(sql: str) -> str:
    return f"SET LOCAL ROLE postgres; {sql}; RESET ROLE"


def recreate_reflections(columns: str) -> str:
    return as_postgres(f"DROP TABLE {REFLECTIONS}; CREATE TABLE {REFLECTIONS} {columns}")


def create_columns(number: int) -> str:
    """Return SQL that creates a table with this many columns, and drops one of them."""
    columns = ", ".join(f"c{position} int" for position in range(number))
    return recreate_reflections(f"({columns}); ALTER TABLE {REFLECTIONS} DROP COLUMN c0")


NO_REFERENCES = "; ".join(
    f"ALTER TABLE public.{table} DROP CONSTRAINT {table}_user_id_fkey"
    for table in ("ai_coach_messages", "encouragement_messages", "reflections")
)
UID = "CREATE FUNCTION auth.uid({}) RETURNS {} LANGUAGE sql STABLE AS 'SELECT NULL::uuid'"
NO_UID = "DROP FUNCTION auth.uid() CASCADE"
APP_TABLE_DIFFERS = f"error[app-table-differs] {REFLECTIONS}"
USERS_TABLE_DIFFERS = "error[users-table-differs] auth.users"
EVENT_TRIGGER = """
    CREATE FUNCTION public.refuse() RETURNS event_trigger LANGUAGE plpgsql
    AS $$ BEGIN RAISE EXCEPTION 'no DDL'; END $$;
    CREATE EVENT TRIGGER refuse ON ddl_command_start {} EXECUTE FUNCTION public.refuse();
    CREATE ROLE other_admin SUPERUSER; ALTER EVENT TRIGGER refuse OWNER TO other_admin
"""

CAUSES = (
    Cause(
        as_postgres(
            f"DROP TABLE {REFLECTIONS};"
            " CREATE TABLE public.whole (id uuid, body text) PARTITION BY LIST (id);"
            f" CREATE TABLE {REFLECTIONS} PARTITION OF public.whole DEFAULT"
        ),
        APP_TABLE_DIFFERS,
        has_fix=False,
    ),
    Cause(
        as_postgres(
            f"DROP TABLE {REFLECTIONS}; CREATE TYPE public.kind AS (id uuid, body text);"
            f" CREATE TABLE {REFLECTIONS} OF public.kind"
        ),
        APP_TABLE_DIFFERS,
    ),
    Cause(create_columns(1600), APP_TABLE_DIFFERS, has_fix=False),
    Cause(
        f"CREATE TABLE public.kid () INHERITS ({REFLECTIONS})",
        "error[app-table-not-owned] public.kid",
        granted="postgres public.kid",
    ),
    Cause(
        as_postgres(
            f"CREATE TABLE public.kid () INHERITS ({REFLECTIONS});"
            " CREATE TABLE public.grandkid (langfuse_trace_id text) INHERITS (public.kid)"
        ),
        "error[name-taken] public.grandkid.langfuse_trace_id",
    ),
    Cause(
        f"{NO_REFERENCES}; ALTER TABLE auth.users DROP CONSTRAINT users_pkey,"
        " ADD PRIMARY KEY (id) DEFERRABLE",
        f"{USERS_TABLE_DIFFERS}.id",
        has_fix=False,
    ),
    Cause(
        f"{NO_REFERENCES}; ALTER TABLE auth.users SET UNLOGGED", USERS_TABLE_DIFFERS, has_fix=False
    ),
    Cause(
        f"{NO_UID}; {UID.format('', 'SETOF uuid')}",
        "error[uid-function-missing] auth.uid()",
        has_fix=False,
    ),
    Cause(
        UID.format("day int DEFAULT 1", "uuid"),
        "error[uid-function-missing] auth.uid()",
        has_fix=False,
    ),
    Cause("REVOKE USAGE ON LANGUAGE plpgsql FROM PUBLIC", "error[privilege-missing] plpgsql"),
    *(
        Cause(
            f"REVOKE EXECUTE ON FUNCTION pg_catalog.{function} FROM PUBLIC",
            f"error[privilege-missing] pg_catalog.{function}",
        )
        for function in (
            "pg_try_advisory_lock(integer,integer)",
            "pg_advisory_unlock(integer,integer)",
        )
    ),
    Cause(
        "CREATE SCHEMA langfuse_migrations;"
        " GRANT USAGE, CREATE ON SCHEMA langfuse_migrations TO postgres",
        "warning[owner-differs] langfuse_migrations",
        succeeds=True,
    ),
    Cause(
        EVENT_TRIGGER.format("WHEN TAG IN ('CREATE TABLE')"),
        "warning[event-trigger-found] pg_event_trigger",
        has_fix=False,
    ),
    Cause(
        "REVOKE USAGE ON SCHEMA public FROM PUBLIC, anon, authenticated, service_role",
        "warning[access-missing] public",
        succeeds=True,
    ),
    Cause(
        "ALTER ROLE service_role NOBYPASSRLS", "warning[role-differs] service_role", succeeds=True
    ),
    Cause("ALTER ROLE anon SUPERUSER BYPASSRLS", "warning[role-differs] anon", succeeds=True),
    Cause(
        "GRANT service_role TO authenticated", "warning[role-differs] authenticated", succeeds=True
    ),
    Cause(
        "REVOKE EXECUTE ON FUNCTION auth.uid() FROM PUBLIC",
        "warning[access-missing] auth.uid()",
        succeeds=True,
    ),
    Cause(
        "ALTER FUNCTION auth.uid() VOLATILE",
        "warning[uid-function-differs] auth.uid()",
        succeeds=True,
    ),
)

HARMLESS = (
    create_columns(1599),
    as_postgres(f"CREATE TABLE public.kid (langfuse_trace_id uuid) INHERITS ({REFLECTIONS})"),
    f"{NO_UID}; {UID.format('day int DEFAULT 1', 'uuid')}",
    EVENT_TRIGGER.format("WHEN TAG IN ('CREATE FUNCTION')"),
    EVENT_TRIGGER.format("") + "; ALTER EVENT TRIGGER refuse DISABLE",
    "ALTER TABLE auth.users ADD UNIQUE (id) DEFERRABLE",
)
"""Changes after which preflight has no finding, because the upgrade succeeds."""


@contextmanager
def changed(database: Database, sql: str) -> Iterator[sa.Connection]:
    """Make a change in a transaction of a superuser, and roll it back."""
    engine = sa.create_engine(database.as_user(SUPERUSER), poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql(sql)
        yield connection
        connection.rollback()


def preflight_findings(connection: sa.Connection) -> list[Finding]:
    """Return the findings of preflight for postgres, with an upgrade from base."""
    connection.exec_driver_sql("SET LOCAL ROLE postgres")
    found = checks.check(connection, Position(HISTORY, None, REVISIONS))
    connection.exec_driver_sql("RESET ROLE")
    return found


def shown(findings: list[Finding]) -> list[str]:
    return [f"{one.severity}[{one.code}] {one.object}" for one in findings]


def repair(connection: sa.Connection, finding: Finding) -> None:
    """Run the fix as postgres, or as the role that the advice names."""
    connection.exec_driver_sql(f"SET LOCAL ROLE {user_of(finding)}")
    for statement in commands(finding):
        assert is_sql(statement)
        connection.exec_driver_sql(statement)
    connection.exec_driver_sql("RESET ROLE")


def problems_of(connection: sa.Connection, cause: Cause, allowed: set[str]) -> list[str]:
    """Return the differences from the expected finding, and the effects of its fix.

    The effects are the findings that remain, and the access that the fix opens.
    """
    findings = preflight_findings(connection)
    if shown(findings) != [cause.finding] or bool(findings[0].fix) != cause.has_fix:
        return [*map(str, findings), "instead of", cause.finding]
    if not cause.has_fix:
        return []
    access = allowed | effective_access(connection)
    repair(connection, findings[0])
    # A renamed column keeps its privileges.
    opened = {one.replace("_before", "") for one in effective_access(connection)} - access
    if cause.granted:
        opened = {one for one in opened if not one.startswith(cause.granted)}
    return [*shown(preflight_findings(connection)), *sorted(opened)]


@follows(*{re.split(r"[][]", cause.finding)[1] for cause in CAUSES if cause.has_fix})
def test_preflight_reports_each_cause_with_fix_that_opens_no_access(database: Database) -> None:
    with changed(database, "SELECT 1") as connection:
        allowed = effective_access(connection)
    problems = {}
    for cause in CAUSES:
        with changed(database, cause.sql) as connection:
            problem = problems_of(connection, cause, allowed)
            problems |= {cause.sql[:200]: problem} if problem else {}
    assert problems == {}


def test_preflight_reports_nothing_after_harmless_change(database: Database) -> None:
    for sql in HARMLESS:
        with changed(database, sql) as connection:
            assert shown(preflight_findings(connection)) == [], sql[:200]


def test_preflight_reports_default_tablespace_without_create(database: Database) -> None:
    """A tablespace cannot be created in a transaction."""
    with database.connect(SUPERUSER) as superuser:
        superuser.exec_driver_sql("SET allow_in_place_tablespaces = on")
        superuser.exec_driver_sql("CREATE TABLESPACE \"slow disk\" LOCATION ''")
        sql = "SET LOCAL default_tablespace TO 'slow disk'"
        cause = Cause(sql, "error[privilege-missing] slow disk")
        try:
            with changed(database, sql) as connection:
                assert problems_of(connection, cause, set()) == []
                connection.exec_driver_sql("SET LOCAL ROLE postgres; CREATE TABLE public.t ()")
            refused = pytest.raises(sa.exc.ProgrammingError, match="permission denied for tables")
            with changed(database, f"{sql}; SET LOCAL ROLE postgres") as connection, refused:
                connection.exec_driver_sql("CREATE TABLE public.t ()")
        finally:
            superuser.exec_driver_sql('DROP TABLESPACE "slow disk"')


def test_preflight_succeeds_without_privilege_on_pg_locks(database: Database) -> None:
    database.execute("REVOKE SELECT ON pg_locks FROM PUBLIC", SUPERUSER)
    with not_member(database, "pg_read_all_data"), not_member(database, "pg_monitor"):
        report = migrations.preflight(database.url)
        assert (report.findings, report.facts["locks_readable"]) == ((), False)
        migrations.upgrade(database.url)
    assert verify(database.url) == []


def test_preflight_ignores_event_trigger_of_supabase(database: Database) -> None:
    enable_automatic_rls(database)
    add_platform_tables(database)
    assert migrations.preflight(database.url).findings == ()


@pytest.mark.slow
@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: cause.finding)
def test_upgrade_without_checks_succeeds_only_for_expected_causes(
    database: Database, cause: Cause, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If an upgrade succeeds without the checks, its finding must be a warning."""
    with database.connect(SUPERUSER) as superuser:
        roles = cause.finding.startswith("warning[role-differs]")
        superuser.exec_driver_sql(f"BEGIN; {cause.sql}; COMMIT")
        monkeypatch.setattr(checks, "check", lambda *_: [])
        try:
            if cause.succeeds:
                migrations.upgrade(database.url)
            else:
                with pytest.raises(SchemaError, match="server-refused"):
                    migrations.upgrade(database.url)
        finally:
            if "other_admin" in cause.sql:
                superuser.exec_driver_sql("DROP EVENT TRIGGER refuse; DROP ROLE other_admin")
            if roles:
                superuser.exec_driver_sql(
                    "ALTER ROLE service_role BYPASSRLS; ALTER ROLE anon NOSUPERUSER NOBYPASSRLS;"
                    " REVOKE service_role FROM authenticated"
                )
