"""Preflight reports nothing on a healthy database, and only the findings of each problem."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from langfuse_schema import migrations
from langfuse_schema._checks import plan, requirements
from tests.helpers.databases import (
    AOI,
    CORE,
    HEAD,
    HISTORY,
    LINKS,
    POLICIES,
    SUPERUSER,
    Database,
    langfuse_schema,
    not_member,
)

if TYPE_CHECKING:
    from alembic.script import Script

    from tests.conftest import OwnServer

INDEX = "idx_reflections_langfuse_trace_id"


def report(database: Database, *options: str) -> dict[str, Any]:
    outcome = langfuse_schema(database, *options, "preflight", "--format", "json")
    found: dict[str, Any] = json.loads(outcome.stdout)
    assert outcome.code == (0 if found["ok"] else 1)
    return found


def codes(database: Database, *options: str) -> list[tuple[str, str, str]]:
    return [
        (finding["severity"], finding["code"], finding["object"])
        for finding in report(database, *options)["findings"]
    ]


@pytest.mark.parametrize(
    "revision",
    [
        "base",
        *(pytest.param(one, marks=pytest.mark.slow) for one in (CORE, LINKS, POLICIES)),
        "head",
    ],
)
def test_preflight_of_healthy_database_has_no_findings(any_world: Database, revision: str) -> None:
    if revision != "base":
        migrations.upgrade(any_world.url, revision)
    before = any_world.catalog()
    assert codes(any_world) == []
    assert any_world.catalog() == before, "preflight changed the database"


def test_preflight_takes_less_than_a_second(database: Database) -> None:
    """The best of three runs counts, because a busy machine can delay a process."""
    config = migrations.config_for(database.url)
    times = []
    for _ in range(3):
        began = time.monotonic()
        assert migrations.preflight_report(config).ok
        times.append(time.monotonic() - began)
    assert min(times) < 1.0


def test_preflight_reports_server_roles_and_sizes_as_facts(
    database: Database, legacy_database: Database
) -> None:
    database.execute("ANALYZE reflections")
    facts = report(database)["facts"]
    assert facts["server"].startswith(("14", "15", "16", "17", "18"))
    assert (facts["role"], facts["api_roles"]) == (
        "postgres",
        ["anon", "authenticated", "service_role"],
    )
    assert facts["tables"]["public.reflections"]["rows"] > 0
    assert facts["tables"]["public.reflections"]["bytes"] > 0
    assert "SELECT" not in facts["default_privileges"].get("anon", "")
    legacy = report(legacy_database)["facts"]["default_privileges"]
    assert all("SELECT" in legacy[role] for role in ("anon", "authenticated", "service_role"))


def test_preflight_prints_plan_then_findings_then_result(database: Database) -> None:
    migrations.upgrade(database.url, CORE)
    database.execute("ALTER TABLE auth.users SET (autovacuum_enabled = off)", SUPERUSER)
    database.execute("ANALYZE reflections, langfuse_traces")
    lines = migrations.preflight(database.url).as_text().splitlines()
    assert [line for line in lines if line[:8].isdigit()] == [
        f"{script.revision} {script.doc}" for script in HISTORY.scripts[1:]
    ]
    assert any(line.startswith("  locks: for one app table at a time, SHARE ROW") for line in lines)
    assert "  public.reflections: about 3 rows, 48 kB" in lines
    assert "  public.encouragement_messages: an unknown number of rows, 48 kB" in lines
    assert any(line.startswith("  public.langfuse_traces: about 0 rows") for line in lines)
    assert lines[-1] == f"Ready: {len(HISTORY.scripts) - 1} revisions to apply."

    database.execute("DROP TABLE reflections")
    lines = migrations.preflight(database.url).as_text().splitlines()
    error = "error[app-table-missing]: the app's table public.reflections does not exist"
    assert lines.index("affected tables:") < lines.index(error)
    assert lines[-1] == "Not ready: 1 error, 0 warnings."

    plan = json.loads(migrations.preflight(database.url).as_json())["facts"]
    assert [one["revision"] for one in plan["pending"]] == list(HISTORY.revisions[1:])
    assert "SHARE UPDATE EXCLUSIVE" in plan["pending"][0]["locks"]
    assert plan["tables"]["public.encouragement_messages"] == {"rows": None, "bytes": 49152}


def test_preflight_at_head_prints_nothing_to_do(database: Database) -> None:
    migrations.upgrade(database.url)
    text = migrations.preflight(database.url).as_text()
    assert text.splitlines()[-1] == f"Already at {HEAD} (head). Nothing to do."
    assert "affected tables" not in text


@pytest.mark.parametrize("script", HISTORY.scripts, ids=lambda script: script.revision)
def test_docstring_of_revision_contains_its_locks(script: Script) -> None:
    assert plan.heading(script.module.__doc__ or "", "Locks")


def test_preflight_warns_about_open_transaction_on_app_table(database: Database) -> None:
    with database.connect(SUPERUSER) as holder:
        holder.exec_driver_sql("SET application_name = 'payroll'; BEGIN; SELECT 1 FROM reflections")
        found = report(database)
        holder.exec_driver_sql("ROLLBACK")
    (finding,) = found["findings"]
    assert found["ok"], "a warning is reported as an error"
    assert (finding["code"], finding["severity"]) == ("table-in-use", "warning")
    assert finding["object"] == "public.reflections"
    assert "supabase_admin, payroll" in finding["cause"]


@pytest.mark.parametrize("encoding", ["LATIN1", pytest.param("SQL_ASCII", marks=pytest.mark.slow)])
def test_preflight_shows_japanese_query_in_any_client_encoding(
    database: Database, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A URL is opened with UTF8. The engine of a program keeps its encoding."""
    engine = sa.create_engine(database.url, connect_args={"client_encoding": encoding})
    with database.connect(SUPERUSER) as holder:
        holder.exec_driver_sql("BEGIN; SELECT 1 FROM reflections /* 長い */")
        monkeypatch.setenv("PGCLIENTENCODING", encoding)
        (of_url,) = migrations.preflight(database.url).findings
        (of_engine,) = migrations.preflight(engine).findings
        holder.exec_driver_sql("ROLLBACK")
    engine.dispose()
    assert str(of_url.cause).endswith("SELECT 1 FROM reflections /* 長い */")
    assert str(of_engine.cause).endswith("SELECT 1 FROM reflections /* ?? */")


@pytest.mark.parametrize(
    ("statement", "reported"),
    [
        ("SELECT count(*) FROM auth.users", False),
        (f"UPDATE auth.users SET email = email WHERE id = '{AOI}'", True),
    ],
)
def test_preflight_warns_about_writer_of_users_but_not_reader(
    database: Database, statement: str, reported: bool
) -> None:
    with database.connect(SUPERUSER) as holder:
        holder.exec_driver_sql(f"BEGIN; {statement}")
        found = codes(database)
        holder.exec_driver_sql("ROLLBACK")
    assert found == ([("warning", "table-in-use", "auth.users")] if reported else [])


def test_preflight_at_head_ignores_open_transaction_on_app_table(database: Database) -> None:
    migrations.upgrade(database.url)
    with database.connect(SUPERUSER) as holder:
        holder.exec_driver_sql("BEGIN; SELECT 1 FROM reflections")
        assert codes(database) == [], "a table is reported although no revision is pending"
        holder.exec_driver_sql("ROLLBACK")


def test_preflight_warns_about_invalid_index(database: Database) -> None:
    migrations.upgrade(database.url, CORE)
    database.execute(
        "ALTER TABLE reflections ADD COLUMN langfuse_trace_id uuid"
        " REFERENCES langfuse_traces (trace_id) ON DELETE SET NULL"
    )
    database.execute(f"CREATE INDEX {INDEX} ON reflections (langfuse_trace_id)")
    database.execute(
        f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{INDEX}'::regclass", SUPERUSER
    )
    assert codes(database) == [("warning", "index-invalid", f"public.{INDEX}")]
    outcome = langfuse_schema(database, "upgrade", "head")
    assert outcome.code == 0
    assert f"warning[index-invalid]: public.{INDEX} is an INVALID index" in outcome.stderr


def test_preflight_reports_read_only_session_as_error(database: Database) -> None:
    name = database.url.database
    database.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on', SUPERUSER)
    assert codes(database) == [("error", "session-read-only", "transaction_read_only")]
    outcome = langfuse_schema(database, "upgrade", "head")
    assert outcome.code != 0
    assert "session-read-only" in outcome.stderr
    assert "public.langfuse_traces" not in database.catalog().tables


def test_preflight_reports_standby_server_as_error(own_server: OwnServer) -> None:
    own_server.restart(standby=True)
    (finding,) = report(own_server.database)["findings"]
    assert finding["code"] == "session-read-only"
    assert finding["found"] == "a standby server"


def test_preflight_reports_app_table_of_another_owner(database: Database) -> None:
    database.execute("ALTER TABLE reflections OWNER TO supabase_admin", SUPERUSER)
    assert codes(database) == [("error", "app-table-not-owned", "public.reflections")]


def test_preflight_reports_langfuse_table_of_another_owner(database: Database) -> None:
    migrations.upgrade(database.url, LINKS)
    database.execute("ALTER TABLE langfuse_scores OWNER TO supabase_admin", SUPERUSER)
    assert codes(database) == [("error", "table-not-owned", "public.langfuse_scores")]


@pytest.mark.parametrize(
    ("revoked", "expected"),
    [
        ("REVOKE REFERENCES ON auth.users FROM postgres", "auth.users"),
        (
            "REVOKE ALL ON SCHEMA auth FROM postgres, anon, authenticated, service_role",
            "auth",
        ),
        ("ALTER SCHEMA public OWNER TO supabase_admin", "public"),
    ],
)
def test_preflight_reports_missing_privilege(
    database: Database, revoked: str, expected: str
) -> None:
    database.execute(revoked, SUPERUSER)
    # pg_read_all_data includes USAGE on all schemas.
    with not_member(database, "pg_read_all_data"):
        assert codes(database) == [("error", "privilege-missing", expected)]


def test_preflight_reports_server_below_oldest_version(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requirements, "OLDEST_SERVER", 99)
    found = migrations.preflight_report(migrations.config_for(database.url))
    (finding,) = found.findings
    assert (finding.code, finding.expected) == ("server-too-old", "PostgreSQL 99 or newer")


def test_preflight_reports_missing_schema_public(database: Database) -> None:
    database.execute("ALTER SCHEMA public RENAME TO elsewhere", SUPERUSER)
    found = {code for _, code, _ in codes(database)}
    assert found == {"schema-missing", "app-table-missing"}


def test_preflight_reports_single_existing_langfuse_table(database: Database) -> None:
    migrations.upgrade(database.url, CORE)
    database.execute("DROP TABLE langfuse_scores, langfuse_traces, rate_limit_logs")
    migrations.stamp(database.url, "base")
    assert codes(database) == [("error", "name-taken", "public.langfuse_batch_runs")]


def test_preflight_accepts_child_of_another_owner_if_no_column_is_added(
    database: Database,
) -> None:
    migrations.upgrade(database.url, CORE)
    database.execute("CREATE TABLE kid () INHERITS (rate_limit_logs)", SUPERUSER)
    assert codes(database) == []
    migrations.upgrade(database.url)
