"""Each login role of docs/how-to/server-roles.md reads and writes as documented."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg2
import pytest

from langfuse_schema import migrations
from tests.conftest import POSTGRESQL
from tests.helpers.databases import AOI, CHECKOUT, TRACE, Database, insert_example_rows
from tests.helpers.npm import start_postgresql

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COUNTS = """SELECT (SELECT count(*) FROM langfuse_traces), (SELECT count(*) FROM langfuse_scores),
  (SELECT count(*) FROM langfuse_batch_runs), (SELECT count(*) FROM rate_limit_logs)"""
ALL_ROWS, NO_ROWS = [(2, 2, 1, 1)], [(0, 0, 0, 0)]

COUNT_REQUEST = f"""INSERT INTO rate_limit_logs (user_id, endpoint, window_start)
  VALUES ('{AOI}', '/again', now()) ON CONFLICT (user_id, endpoint, window_start)
  DO UPDATE SET request_count = rate_limit_logs.request_count + 1"""

SEND = """UPDATE langfuse_scores SET status = 'sent', sent_at = now() WHERE id IN (
  SELECT id FROM langfuse_scores WHERE status = 'pending' ORDER BY created_at
  LIMIT 100 FOR UPDATE SKIP LOCKED) RETURNING id"""


def sql_of_page(title: str) -> str:
    """Return the SQL block below a heading of the page."""
    page = CHECKOUT / "docs" / "how-to" / "server-roles.md"
    section = page.read_text(encoding="utf-8").partition(f"## {title}\n")[2]
    return section.partition("```sql\n")[2].partition("```")[0]


@pytest.fixture
def migrated(database: Database) -> Database:
    migrations.upgrade(database.url)
    insert_example_rows(database)
    return database


@pytest.fixture
def login(migrated: Database) -> Iterator[Database]:
    """Yield the database for the login role of the page, and drop the role after the test."""
    role = f"app_server_{migrated.url.database}"
    create_role = sql_of_page("The app's server").replace("app_server", f'"{role}"')
    try:
        migrated.execute(create_role, "supabase_admin")
        yield Database(migrated.as_user(role))
    finally:
        migrated.execute(f'DROP ROLE IF EXISTS "{role}"', "supabase_admin")


def test_owner_is_not_subject_to_any_policy(migrated: Database) -> None:
    assert migrated.execute(COUNTS) == ALL_ROWS
    assert len(migrated.execute(SEND)) == 2


def test_login_role_that_becomes_service_role_reads_and_writes_all_rows(login: Database) -> None:
    role = str(login.url.username)
    with login.connect(role) as connection:
        assert connection.exec_driver_sql("SELECT current_user").scalar() == "service_role"
        assert list(connection.exec_driver_sql(COUNTS)) == ALL_ROWS
        connection.exec_driver_sql(COUNT_REQUEST)
        assert len(list(connection.exec_driver_sql(SEND))) == 2
        assert list(connection.exec_driver_sql(SEND)) == []


def test_member_of_service_role_without_set_role_is_subject_to_policies(
    migrated: Database, login: Database
) -> None:
    # BYPASSRLS is an attribute of a role, which its members do not inherit.
    role = str(login.url.username)
    migrated.execute(f'ALTER ROLE "{role}" RESET role', "supabase_admin")
    assert login.execute(COUNTS, role) == NO_ROWS
    with pytest.raises(Exception, match="row-level security policy"):
        login.execute(COUNT_REQUEST, role)


def test_concurrent_jobs_claim_different_scores(migrated: Database) -> None:
    claim = SEND.replace("LIMIT 100", "LIMIT 1")
    url = migrated.as_user("authenticator").set(drivername="postgresql")
    jobs = [psycopg2.connect(url.render_as_string(hide_password=False)) for _ in range(3)]
    claimed = []
    for job in jobs:
        cursor = job.cursor()
        cursor.execute("SET ROLE service_role")
        cursor.execute(claim)
        claimed.append(cursor.fetchall())
    for job in jobs:
        job.close()
    assert [len(rows) for rows in claimed] == [1, 1, 0]
    assert claimed[0] != claimed[1]


@pytest.fixture
def plain(scratch: Path) -> Iterator[Database]:
    """Yield a database without API roles, in which the app created the schema auth."""
    with start_postgresql(POSTGRESQL, scratch / "plain", {"fsync": "off"}) as server:
        database = Database(server.url(user="app"))
        database.execute("CREATE ROLE app LOGIN; CREATE ROLE web LOGIN", "supabase_admin")
        database.execute("ALTER DATABASE postgres OWNER TO app", "supabase_admin")
        database.execute("CREATE SCHEMA IF NOT EXISTS public", "supabase_admin")
        database.execute("ALTER SCHEMA public OWNER TO app", "supabase_admin")
        database.execute(sql_of_page("PostgreSQL without Supabase"), "app")
        database.execute(
            "CREATE TABLE ai_coach_messages (id int); CREATE TABLE encouragement_messages (id int);"
            f"CREATE TABLE reflections (id int); INSERT INTO auth.users VALUES ('{AOI}')",
            "app",
        )
        yield database


def test_upgrade_succeeds_on_plain_postgresql_without_api_roles(plain: Database) -> None:
    before = plain.catalog()
    migrations.upgrade(plain.url)
    grantees = {
        grant.role
        for table in plain.catalog().tables.values()
        if table.name.startswith(("langfuse", "rate", "alembic"))
        for grant in table.grants
    }
    assert grantees == {"app"}
    trace = TRACE.format(1)
    plain.execute(
        "INSERT INTO langfuse_traces (trace_id, entity_type, entity_id, user_id, input, output)"
        f" VALUES ('{trace}', 'reflection', gen_random_uuid(), '{AOI}', 'in', 'out')",
        "app",
    )
    # On the page, a role of the app takes the place of authenticated.
    plain.execute(
        "GRANT SELECT ON langfuse_traces TO web; GRANT USAGE ON SCHEMA auth TO web", "app"
    )
    query = "SELECT count(*) FROM langfuse_traces"
    assert plain.execute(query, "web") == [(0,)]
    assert plain.execute(f"SET app.user_id = '{AOI}'; {query}", "web") == [(1,)]
    plain.execute("REVOKE ALL ON SCHEMA auth FROM web", "app")
    migrations.downgrade(plain.url, "base")
    assert plain.catalog().tables.keys() - before.tables.keys() == {
        "langfuse_migrations.alembic_version"
    }
