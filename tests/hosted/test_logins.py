"""Roles and URLs of hosted Supabase, such as members without INHERIT and placeholders."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError

from langfuse_schema import migrations
from langfuse_schema._postgres.findings import SchemaError
from langfuse_schema._postgres.urls import connection_finding, parse_url
from langfuse_schema.verify import verify
from tests.helpers.databases import SUPERUSER, Database, langfuse_schema

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def cli_login(database: Database) -> Iterator[str]:
    """Yield a login role like that of the Supabase CLI, a member of postgres without INHERIT."""
    role = f"cli_login_{database.url.database}"
    database.execute(f"CREATE ROLE {role} LOGIN NOINHERIT IN ROLE postgres", SUPERUSER)
    yield role
    database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}", SUPERUSER)


@pytest.mark.parametrize("applied", [False, True])
def test_refusal_of_member_without_inherit_prints_role_option(
    database: Database, cli_login: str, applied: bool
) -> None:
    if applied:
        migrations.upgrade(database.url, "+1")
    url = database.as_user(cli_login).render_as_string(hide_password=False)
    refused = langfuse_schema(None, "upgrade", "head", DATABASE_URL=url)
    assert refused.code == 1
    assert refused.stderr.count("error[") == 1
    assert "error[role-not-inherited]" in refused.stderr
    assert "GRANT" not in refused.stderr
    (command,) = [line.strip() for line in refused.stderr.splitlines() if "export " in line]
    name, _, value = command.removeprefix("export ").partition("=")
    upgraded = langfuse_schema(
        None, "upgrade", "head", DATABASE_URL=url, **{name: value.strip("'")}
    )
    assert upgraded.code == 0, upgraded.stderr
    assert verify(database.url) == []


def test_options_of_url_set_the_role(database: Database, cli_login: str) -> None:
    url = database.as_user(cli_login).update_query_dict({"options": "-c role=postgres"})
    migrations.upgrade(url)
    assert verify(database.url) == []
    assert {table.owner for table in database.catalog().tables.values()} >= {"postgres"}


def test_refusal_of_role_without_access_to_version_table_names_owner(database: Database) -> None:
    migrations.upgrade(database.url, "+1")
    role = f"reader_{database.url.database}"
    database.execute(f"CREATE ROLE {role} LOGIN", SUPERUSER)
    try:
        with pytest.raises(SchemaError) as refused:
            migrations.preflight(database.as_user(role))
        (finding,) = refused.value.findings
        assert finding.code == "table-not-owned"
        assert finding.advice == "Connect as postgres."
        assert finding.fix == ()
    finally:
        database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}", SUPERUSER)


def test_fix_for_another_role_grants_no_membership(database: Database) -> None:
    # Membership in the owner would give the role all of the owner's privileges.
    role = f"app_{database.url.database}"
    database.execute(f"CREATE ROLE {role} LOGIN", SUPERUSER)
    try:
        report = migrations.preflight(database.as_user(role))
    finally:
        database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}", SUPERUSER)
    assert {"app-table-not-owned", "privilege-missing"} <= {one.code for one in report.findings}
    grants = [fix for one in report.findings for fix in one.fix if fix.startswith("GRANT ")]
    assert grants
    assert all(" ON " in grant for grant in grants)


def test_message_for_unreachable_direct_host_names_session_pooler() -> None:
    url = make_url(
        "postgresql+psycopg2://postgres:secret@db.abcdefghijklmnopqrst.supabase.co/postgres"
    )
    error = OperationalError("", {}, Exception("could not translate host name"))
    found = str(connection_finding(url, error))
    assert "server-unreachable" in found
    assert "postgres.abcdefghijklmnopqrst:PASSWORD@" in found
    assert ".pooler.supabase.com:5432/" in found
    assert "secret" not in found


def test_refusal_of_url_with_placeholder_names_placeholder() -> None:
    url = "postgresql://postgres:[YOUR-PASSWORD]@db.abcdefghijklmnopqrst.supabase.co:5432/postgres"
    with pytest.raises(SchemaError, match=r"the placeholder \[YOUR-PASSWORD\]") as refused:
        parse_url(url, "DATABASE_URL")
    assert refused.value.findings[0].code == "url-invalid"
