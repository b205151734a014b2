"""`verify`: its findings, its output and the privileges that it needs."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from langfuse_schema import migrations, tables
from langfuse_schema._postgres import catalog
from langfuse_schema._postgres.findings import SchemaError
from langfuse_schema._runtime.target import Target
from langfuse_schema.verify import as_text, report, verify
from tests.helpers.databases import (
    CORE,
    HEAD,
    HISTORY,
    LINKS,
    PLAN_REVISIONS,
    POLICIES,
    REVISIONS,
    SUPERUSER,
    Database,
    alembic,
    insert_example_rows,
    langfuse_schema,
    langfuse_tables,
    plan_sql,
)

if TYPE_CHECKING:
    from collections.abc import Callable

VERSION = "langfuse_migrations.alembic_version"


def codes(database: Database, revision: str = "head") -> set[tuple[str, str]]:
    return {(finding.code, finding.object) for finding in verify(database.url, revision)}


def test_verify_reports_no_difference_at_head_with_rows(any_world: Database) -> None:
    migrations.upgrade(any_world.url)
    insert_example_rows(any_world)
    assert verify(any_world.url) == []


@pytest.mark.parametrize("revision", REVISIONS)
def test_verify_reports_no_difference_at_each_revision(database: Database, revision: str) -> None:
    migrations.upgrade(database.url, revision)
    assert verify(database.url, revision) == []
    if revision != HEAD:
        assert codes(database) == {("revision-behind", VERSION)}


def test_verify_reports_no_difference_after_adopted_plan_is_upgraded(any_world: Database) -> None:
    any_world.execute(plan_sql(*PLAN_REVISIONS))
    migrations.stamp(any_world.url, POLICIES)
    migrations.upgrade(any_world.url)
    assert verify(any_world.url) == []


def test_verify_of_plan_run_by_hand_reports_stamp_command(legacy_database: Database) -> None:
    legacy_database.execute(plan_sql(*PLAN_REVISIONS))
    access, last = verify(legacy_database.url)
    # The SQL sets the grants of the plan's revision, so it comes before the upgrade.
    assert access.code == "access-differs"
    assert (last.code, last.object) == ("version-table-missing", VERSION)
    assert last.fix == (f"langfuse-schema stamp {POLICIES}", f"langfuse-schema upgrade {HEAD}")


def test_verify_text_begins_with_checklist_of_plan(database: Database) -> None:
    migrations.upgrade(database.url, POLICIES)
    outcome = langfuse_schema(database, "verify", "--revision", POLICIES)
    assert outcome.code == 0
    assert outcome.stdout.splitlines()[:8] == [
        "[x] langfuse_traces exists … 10 columns, 4 constraints, 5 indexes",
        "[x] langfuse_scores exists … 9 columns, 5 constraints, 4 indexes",
        "[x] langfuse_batch_runs exists … 8 columns, 1 constraint, 3 indexes",
        "[x] rate_limit_logs exists … 6 columns, 2 constraints, 3 indexes",
        "[x] app tables have langfuse_trace_id … 3 columns",
        "[x] RLS policies are right … 3 policies, 2 tables with row level security",
        "[x] indexes exist … 18 indexes",
        "[x] foreign keys are right … 6 foreign keys",
    ]
    assert outcome.stdout.splitlines()[-1] == "0 differences"


def test_verify_text_prints_difference_with_its_fix(database: Database) -> None:
    migrations.upgrade(database.url)
    database.execute("DROP INDEX public.idx_langfuse_scores_status")
    outcome = langfuse_schema(database, "verify")
    assert outcome.code == 1
    lines = outcome.stdout.splitlines()
    index = "idx_langfuse_scores_status ON public.langfuse_scores USING btree (status)"
    start = lines.index(
        "error[index-missing]: the index public.idx_langfuse_scores_status is missing"
    )
    assert lines[start + 1 : start + 6] == [
        "  found:    nothing",
        f"  expected: CREATE INDEX {index}",
        "  fix:      Run:",
        f"              CREATE INDEX CONCURRENTLY {index};",
        "  docs:     docs/reference/errors.md#index-missing",
    ]
    unticked = [line for line in lines if line.startswith("[ ]")]
    assert unticked == [line for line in lines if line.startswith("[ ] indexes exist … ")] != []
    assert lines[-1] == "1 difference"


def test_verify_json_has_stable_fields(
    database: Database, record_property: Callable[[str, object], None]
) -> None:
    migrations.upgrade(database.url)
    database.execute("CREATE INDEX mine ON langfuse_traces (tags)")
    database.execute("GRANT SELECT ON langfuse_batch_runs TO authenticator")
    outcome = langfuse_schema(database, "verify", "--format", "json")
    report = json.loads(outcome.stdout)
    assert outcome.code == 0
    assert report.keys() == {"ok", "revision", "facts", "findings"}
    assert (report["ok"], report["revision"], report["findings"]) == (True, HEAD, [])
    facts = report["facts"]
    assert facts["extra_indexes"] == ["public.mine"]
    assert facts["other_grants"] == ["public.langfuse_batch_runs: authenticator"]
    assert facts["api_roles"] == ["anon", "authenticated", "service_role"]
    assert {check["ok"] for check in facts["checks"]} == {True}
    record_property("ms to read a database (fact of verify)", facts["elapsed_milliseconds"])

    database.execute("ALTER TABLE langfuse_traces DISABLE ROW LEVEL SECURITY")
    outcome = langfuse_schema(database, "verify", "--format", "json")
    assert outcome.code == 1
    assert json.loads(outcome.stdout)["findings"] == [
        {
            "code": "row-level-security-differs",
            "object": "public.langfuse_traces",
            "found": "row level security disabled",
            "expected": "row level security enabled",
            "message": "row level security of public.langfuse_traces differs",
            "severity": "error",
            "cause": None,
            "state": None,
            "advice": "Run:",
            "fix": ["ALTER TABLE public.langfuse_traces ENABLE ROW LEVEL SECURITY;"],
            "sqlstate": None,
            "docs": "docs/reference/errors.md#row-level-security-differs",
        }
    ]


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE langfuse_batch_runs DROP errors, ADD errors jsonb",
        """ALTER TABLE langfuse_batch_runs DROP batch_name, ADD batch_name text NOT NULL;
        CREATE INDEX idx_langfuse_batch_runs_batch_name ON langfuse_batch_runs (batch_name)""",
    ],
)
def test_verify_reports_column_order_as_fact(database: Database, change: str) -> None:
    migrations.upgrade(database.url)
    database.execute(change)
    outcome = langfuse_schema(database, "verify", "--format", "json")
    assert outcome.code == 0
    facts = json.loads(outcome.stdout)["facts"]
    assert facts["column_order"] == ["public.langfuse_batch_runs"]
    assert {check["ok"] for check in facts["checks"]} == {True}


def test_verify_ticks_no_line_without_comparison(database: Database) -> None:
    checks = checklist_marks(database)
    assert set(checks.values()) == {"[ ]", "[-]"}
    assert checks["one owner"] == checks["grants are right"] == "[-]"

    migrations.upgrade(database.url)
    database.execute(f"UPDATE {VERSION} SET version_num = '20991231000001'")
    database.execute("DROP TABLE rate_limit_logs")
    checks = checklist_marks(database)
    assert checks.pop("revision") == "[ ]"
    assert set(checks.values()) == {"[-]"}


def checklist_marks(database: Database) -> dict[str, str]:
    """Return the mark of each line of the checklist by its title."""
    lines = langfuse_schema(database, "verify", "--verbose").stdout.splitlines()
    return {line[4:].partition(" … ")[0]: line[:3] for line in lines if line.startswith("[")}


@pytest.mark.parametrize("downgraded", [False, True])
def test_verify_before_first_upgrade_prints_one_line(database: Database, downgraded: bool) -> None:
    if downgraded:
        migrations.upgrade(database.url, CORE)
        migrations.downgrade(database.url, "base")
    before = database.catalog()
    name = database.url.database
    assert report_text(database) == (
        f"error[not-migrated]: the database {name} was never migrated;"
        f" run `langfuse-schema upgrade {HEAD}`"
    )
    (finding,) = verify(database.url)
    assert finding.fix == (f"langfuse-schema upgrade {HEAD}",)
    text = report_text(database, verbose=True)
    assert text.count("error[table-missing]") == len(langfuse_tables())
    assert text.count("error[column-missing]") == len(tables.APP_TABLES)
    assert database.catalog() == before
    migrations.upgrade(database.url, HEAD)
    assert verify(database.url) == []


def report_text(database: Database, *, verbose: bool = False) -> str:
    """Return the text that the command prints."""
    target = Target.of(database.url)
    return as_text(report(target, HISTORY, "head", verbose=verbose))


@pytest.mark.parametrize(
    "table",
    [
        "TABLE langfuse_traces (id bigint PRIMARY KEY, note text, user_id text)",
        "VIEW langfuse_traces AS SELECT 1 AS trace_id",
        "MATERIALIZED VIEW langfuse_traces AS SELECT 1 AS trace_id",
    ],
)
def test_verify_reports_another_table_with_langfuse_name_once(
    database: Database, table: str
) -> None:
    migrations.upgrade(database.url)
    database.execute("DROP TABLE langfuse_traces CASCADE")
    database.execute(f"CREATE {table}")
    if table.startswith("TABLE"):
        database.execute("GRANT ALL ON langfuse_traces TO anon")
    (finding,) = verify(database.url)
    assert (finding.code, finding.object) == ("name-taken", "public.langfuse_traces")
    text = report_text(database, verbose=True)
    number = len(re.findall(r"^error\[", text, re.MULTILINE))
    assert number > 5
    # Privileges on several tables are one of the listed findings.
    counted = re.search(r"with (\d+) differences", str(finding.found))
    assert counted
    assert number <= int(counted[1])
    for _ in range(2):
        for statement in [one for found in verify(database.url) for one in found.fix]:
            database.execute(statement)
    assert verify(database.url) == []
    assert database.execute("SELECT to_regclass('langfuse_traces_before') IS NULL") == [(False,)]
    anon = "SELECT has_table_privilege('anon', 'public.langfuse_traces', 'SELECT')"
    assert database.execute(anon) == [(False,)]


def test_verify_compares_earlier_revision_with_snapshot_of_that_revision(
    database: Database,
) -> None:
    migrations.upgrade(database.url, LINKS)
    database.execute("DROP INDEX idx_langfuse_traces_entity")
    assert codes(database) == {
        ("revision-behind", VERSION),
        ("index-missing", "public.idx_langfuse_traces_entity"),
    }


def test_verify_reports_recorded_revision_ahead_of_requested_one(database: Database) -> None:
    migrations.upgrade(database.url)
    (finding,) = verify(database.url, POLICIES)
    assert finding.code == "revision-ahead"
    assert finding.fix == (f"langfuse-schema downgrade {POLICIES}",)


def test_verify_skips_tables_at_unknown_revision(database: Database) -> None:
    # The fixes would undo the changes of a newer release.
    migrations.upgrade(database.url)
    database.execute(f"UPDATE {VERSION} SET version_num = '20991231000001'")
    database.execute("DROP INDEX idx_langfuse_traces_entity")
    assert codes(database) == {("revision-unknown", VERSION)}


def test_verify_needs_connect_privilege_only(database: Database) -> None:
    migrations.upgrade(database.url)
    url = database.as_user("authenticator")
    assert verify(url) == []
    outcome = langfuse_schema(Database(url), "verify", "--format", "json")
    report = json.loads(outcome.stdout)
    assert (outcome.code, report["revision"]) == (0, None)
    assert report["facts"]["revision_readable"] is False
    outcome = langfuse_schema(Database(url), "verify")
    assert "revision not readable" in outcome.stdout


@pytest.mark.parametrize("role", ["postgres", "authenticator"])
def test_verify_writes_nothing_and_ignores_search_path(database: Database, role: str) -> None:
    migrations.upgrade(database.url)
    engine = sa.create_engine(database.as_user(role), poolclass=sa.NullPool)

    @sa.event.listens_for(engine, "connect")
    def set_up(connection: sa.PoolProxiedConnection, _record: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET search_path TO auth, public; SET transaction_read_only = on")
        connection.commit()

    with engine.connect() as connection:
        assert verify(connection) == []
        assert connection.exec_driver_sql("SHOW search_path").scalar() == "auth, public"


@pytest.mark.parametrize("driver", ["postgresql+psycopg2", "postgresql+psycopg"])
@pytest.mark.parametrize("isolation", ["AUTOCOMMIT", "SERIALIZABLE"])
def test_verify_accepts_engine_of_any_driver_and_isolation_level(
    database: Database, driver: str, isolation: str
) -> None:
    migrations.upgrade(database.url)
    url = database.url.set(drivername=driver)
    engine = sa.create_engine(url, isolation_level=isolation, poolclass=sa.NullPool)
    assert verify(engine) == []
    database.execute("DROP INDEX idx_langfuse_traces_entity")
    assert [finding.code for finding in verify(engine)] == ["index-missing"]
    with engine.connect() as connection:
        assert [finding.code for finding in verify(connection)] == ["index-missing"]
        assert connection.exec_driver_sql("SHOW transaction_read_only").scalar() == "off"


PARTITIONED_USERS = """
    ALTER TABLE ai_coach_messages DROP CONSTRAINT ai_coach_messages_user_id_fkey;
    ALTER TABLE encouragement_messages DROP CONSTRAINT encouragement_messages_user_id_fkey;
    ALTER TABLE reflections DROP CONSTRAINT reflections_user_id_fkey;
    DROP TABLE auth.users;
    CREATE TABLE auth.users (id uuid PRIMARY KEY, email text) PARTITION BY HASH (id);
    CREATE TABLE auth.users_0 PARTITION OF auth.users FOR VALUES WITH (MODULUS 2, REMAINDER 0);
    CREATE TABLE auth.users_1 PARTITION OF auth.users FOR VALUES WITH (MODULUS 2, REMAINDER 1);
    GRANT ALL ON auth.users TO postgres
"""


def test_upgrade_and_verify_accept_partitioned_users_table(database: Database) -> None:
    database.execute(PARTITIONED_USERS, SUPERUSER)
    assert migrations.preflight(database.url).findings == ()
    migrations.upgrade(database.url)
    assert verify(database.url) == []


def test_commands_accept_quote_all_identifiers(database: Database) -> None:
    name = database.url.database
    database.execute(f'ALTER DATABASE "{name}" SET quote_all_identifiers = on')
    assert migrations.preflight(database.url).findings == ()
    migrations.upgrade(database.url, POLICIES)
    assert migrations.preflight(database.url).findings == ()
    migrations.upgrade(database.url)
    assert verify(database.url) == []
    with sa.create_engine(database.url, poolclass=sa.NullPool).connect() as connection:
        assert verify(connection) == []
        assert connection.exec_driver_sql("SHOW quote_all_identifiers").scalar() == "on"


def test_verify_reports_database_busy_when_table_is_locked(database: Database) -> None:
    migrations.upgrade(database.url)
    with database.connect() as connection:
        connection.exec_driver_sql("BEGIN")
        connection.exec_driver_sql("LOCK TABLE langfuse_scores IN ACCESS EXCLUSIVE MODE")
        outcome = langfuse_schema(database, "-x", "lock_timeout=100ms", "verify")
        assert outcome.code == 2
        assert "database-busy" in outcome.stderr
        with pytest.raises(
            SchemaError, match=r"is locked by another session:\n *pid \d+ \(postgres, "
        ):
            verify(database.url)
        connection.exec_driver_sql("ROLLBACK")


def test_verify_exits_2_for_invalid_revision_or_unreachable_server(database: Database) -> None:
    outcome = langfuse_schema(database, "verify", "--revision", "nonsense")
    assert outcome.code == 2
    assert "nonsense" in outcome.stderr
    outcome = langfuse_schema(database, "verify", "--revision", "base")
    assert outcome.code == 2
    assert "verify compares with a revision" in outcome.stderr
    outcome = langfuse_schema(None, "verify", DATABASE_URL="postgresql://nobody@/none?host=/no")
    assert outcome.code == 2


def test_alembic_command_line_has_no_verify(database: Database) -> None:
    assert alembic(database, "verify").code == 2


def test_catalog_omits_index_dropped_during_read(database: Database) -> None:
    migrations.upgrade(database.url)
    engine = sa.create_engine(database.url, isolation_level="REPEATABLE READ")
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1 FROM pg_class LIMIT 1")
        database.execute("DROP INDEX public.idx_langfuse_scores_status")
        found = catalog.read(connection)["public.langfuse_scores"]
    engine.dispose()
    assert found.index("idx_langfuse_scores_status") is None
    assert found.index("idx_langfuse_scores_trace_id") is not None
