"""Commands refuse each mistake of a user with one message, and change no database."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from langfuse_schema import migrations, tables
from langfuse_schema._history.chain import config_file
from langfuse_schema._postgres.findings import SchemaError
from langfuse_schema._postgres.urls import parse_url, shown
from langfuse_schema.verify import verify
from tests.helpers.databases import (
    CORE,
    HARDENED,
    HEAD,
    LINKS,
    PLAN_REVISIONS,
    POLICIES,
    SUPERUSER,
    Database,
    Outcome,
    alembic,
    langfuse_schema,
    langfuse_tables,
    not_member,
    plan_sql,
)

if TYPE_CHECKING:
    from pathlib import Path


def assert_refused(database: Database, *expected: str, url: str | None = None) -> None:
    """Assert that `upgrade head` fails, prints `expected`, and leaves the catalog unchanged."""
    before = database.catalog()
    with pytest.raises(SchemaError) as error:
        migrations.upgrade(url or database.url)
    assert_reported(Outcome(1, "", str(error.value)), *expected)
    assert database.catalog() == before


def assert_reported(outcome: Outcome, *expected: str) -> None:
    """Assert that a command fails, and prints a fix, a link and `expected`."""
    assert outcome.code != 0, outcome
    assert "Traceback" not in outcome.stderr + outcome.stdout
    for text in (*expected, "  fix:", "  docs:"):
        assert text in outcome.stderr, outcome.stderr


class TestServer:
    def test_upgrade_reports_unreachable_server(self, database: Database) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            url = f"postgresql://postgres:secret@127.0.0.1:{unused.getsockname()[1]}/postgres"
            assert_refused(database, "server-unreachable", "Connection refused", url=url)

    def test_upgrade_error_omits_password_of_url(self) -> None:
        outcome = langfuse_schema(
            None, "upgrade", "head", DATABASE_URL="postgresql://u:hunter2@127.0.0.1:1/x"
        )
        assert "hunter2" not in outcome.stderr + outcome.stdout
        assert outcome.code != 0

    @pytest.mark.parametrize(
        "url",
        [
            "postgresql://127.0.0.1:1/x?user=u&password=hunter2",
            "postgresql://127.0.0.1:1/x?sslpassword=hunter2",
            "postgresql://u:p@hunter2@127.0.0.1:1/x",
        ],
    )
    def test_upgrade_error_omits_password_in_any_part_of_url(self, url: str) -> None:
        outcome = langfuse_schema(None, "upgrade", "head", DATABASE_URL=url)
        assert "hunter2" not in outcome.stderr + outcome.stdout
        assert outcome.code != 0

    def test_unescaped_at_sign_in_password_is_reported(self) -> None:
        url = "postgresql://u:p@ss@127.0.0.1:1/x"
        outcome = langfuse_schema(None, "upgrade", "head", DATABASE_URL=url)
        assert_reported(outcome, "url-invalid", "a password with an @ in it", "%40")

    def test_invalid_value_of_url_parameter_is_reported(self) -> None:
        url = "postgresql://u@127.0.0.1:1/x?sslmode=nonsense"
        outcome = langfuse_schema(None, "upgrade", "head", DATABASE_URL=url)
        assert_reported(outcome, "url-invalid", "nonsense", "Correct it.")

    def test_upgrade_reports_unknown_host(self, database: Database) -> None:
        url = "postgresql://postgres@db.invalid/postgres"
        assert_refused(database, "server-unreachable", "db.invalid", url=url)

    def test_missing_database_is_reported_without_command_for_another_host(
        self, database: Database
    ) -> None:
        url = database.url.set(database="nowhere")
        with pytest.raises(migrations.SchemaError) as error:
            migrations.preflight(url)
        (finding,) = error.value.findings
        assert (finding.code, finding.fix) == ("database-missing", ())
        assert finding.advice == "Correct the name of the database in the URL."
        assert shown(parse_url(url, "the URL")) in finding.message

    def test_upgrade_reports_unknown_role(self, database: Database) -> None:
        url = database.as_user("unknown").render_as_string()
        assert_refused(database, 'role "unknown" does not exist', url=url)

    def test_upgrade_refuses_read_only_session(self, database: Database) -> None:
        name = database.url.database
        database.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        assert_refused(database, "session-read-only", "Connect to the primary server")


class TestUrl:
    @pytest.mark.parametrize("url", ["", "nonsense", "postgresql:/half", "postgresql://h:port/x"])
    def test_empty_or_malformed_url_is_refused_with_example(
        self, database: Database, url: str
    ) -> None:
        before = database.catalog()
        outcome = langfuse_schema(None, "upgrade", "head", DATABASE_URL=url)
        assert_reported(outcome, "url-invalid", "DATABASE_URL", "postgresql://USER:PASSWORD@HOST")
        assert database.catalog() == before

    def test_mysql_url_is_refused(self, database: Database) -> None:
        assert_refused(database, "url-not-postgresql", "a mysql URL", url="mysql://u:p@host/db")

    def test_single_percent_sign_in_ini_url_is_refused(
        self, database: Database, tmp_path: Path
    ) -> None:
        before = database.catalog()
        ini = tmp_path / "alembic.ini"
        ini.write_text(
            f"[alembic]\nscript_location = {config_file().parent / 'alembic'}\n"
            "sqlalchemy.url = postgresql://u:50%off@localhost/x\n"
        )
        outcome = alembic(None, "-c", str(ini), "upgrade", "head")
        assert outcome.code != 0
        assert "%% for each %" in outcome.stderr + outcome.stdout
        assert database.catalog() == before

    @pytest.mark.parametrize(
        ("option", "expected"),
        [
            ("lock_timeout=500", "a time above zero with its unit"),
            ("lock_timeuot=1s", "one of url, embedded, lock_timeout, lock_deadline"),
            *(
                pytest.param(option, expected, marks=pytest.mark.slow)
                for option, expected in (
                    ("lock_timeout=0s", "a time above zero with its unit"),
                    ("lock_timeuot=1s", "-x lock_timeout=VALUE"),
                    ("conect_timeout=1s", "-x connect_timeout=VALUE"),
                    ("embedded=yes", "true or false"),
                )
            ),
        ],
    )
    def test_invalid_x_option_is_refused_with_valid_form(
        self, database: Database, option: str, expected: str
    ) -> None:
        before = database.catalog()
        outcome = langfuse_schema(database, "-x", option, "upgrade", "head")
        assert_reported(outcome, option.partition("=")[0], expected)
        assert database.catalog() == before


class TestUsersTable:
    def test_missing_users_table_is_reported(self, database: Database) -> None:
        database.execute("DROP TABLE auth.users CASCADE", SUPERUSER)
        assert_refused(
            database, "users-table-missing", "auth.users", "Connect to the app's Supabase database"
        )

    def test_missing_auth_schema_is_reported(self, database: Database) -> None:
        database.execute("DROP SCHEMA auth CASCADE", SUPERUSER)
        assert_refused(database, "users-table-missing", "uid-function-missing")

    def test_users_table_with_bigint_id_is_refused(self, database: Database) -> None:
        database.execute("DROP TABLE auth.users CASCADE", SUPERUSER)
        database.execute("CREATE TABLE auth.users (id bigint PRIMARY KEY)", SUPERUSER)
        assert_refused(database, "users-table-differs", "id bigint, a key")

    def test_users_table_without_key_on_id_is_refused(self, database: Database) -> None:
        database.execute("DROP TABLE auth.users CASCADE", SUPERUSER)
        database.execute("CREATE TABLE auth.users (id uuid)", SUPERUSER)
        assert_refused(database, "users-table-differs", "id uuid, not a key")

    def test_users_table_without_id_is_refused(self, database: Database) -> None:
        database.execute("DROP TABLE auth.users CASCADE", SUPERUSER)
        database.execute("CREATE TABLE auth.users (uid uuid PRIMARY KEY)", SUPERUSER)
        assert_refused(database, "users-table-differs", "id missing")

    def test_users_view_is_refused(self, database: Database) -> None:
        database.execute("DROP TABLE auth.users CASCADE", SUPERUSER)
        database.execute("CREATE VIEW auth.users AS SELECT gen_random_uuid() AS id", SUPERUSER)
        assert_refused(database, "users-table-differs", "a view")

    def test_missing_references_privilege_on_users_is_reported(self, database: Database) -> None:
        database.execute("REVOKE ALL ON auth.users FROM postgres", SUPERUSER)
        assert_refused(
            database,
            "privilege-missing",
            "GRANT REFERENCES (id) ON TABLE auth.users TO postgres",
        )

    def test_missing_usage_privilege_on_auth_schema_is_reported(self, database: Database) -> None:
        # postgres is a member of the API roles, and inherits their privileges.
        database.execute(
            "REVOKE ALL ON SCHEMA auth FROM postgres, anon, authenticated, service_role", SUPERUSER
        )
        with not_member(database, "pg_read_all_data"):
            assert_refused(database, "privilege-missing", "GRANT USAGE ON SCHEMA auth TO postgres")

    def test_missing_auth_uid_function_is_reported(self, database: Database) -> None:
        database.execute("DROP FUNCTION auth.uid CASCADE", SUPERUSER)
        assert_refused(database, "uid-function-missing", "auth.uid()")


class TestAppTables:
    def test_missing_app_table_is_reported(self, database: Database) -> None:
        database.execute("DROP TABLE reflections")
        assert_refused(database, "app-table-missing", "public.reflections")

    def test_view_in_place_of_app_table_is_refused(self, database: Database) -> None:
        database.execute("ALTER TABLE reflections RENAME TO reflections_before")
        database.execute("CREATE VIEW reflections AS SELECT * FROM reflections_before")
        assert_refused(database, "app-table-differs", "public.reflections", "a view")

    def test_partitioned_app_table_is_refused(self, database: Database) -> None:
        database.execute("DROP TABLE reflections")
        database.execute("CREATE TABLE reflections (id uuid) PARTITION BY HASH (id)")
        assert_refused(database, "app-table-differs", "a partitioned table")

    def test_app_table_of_another_owner_is_reported_with_owner(self, database: Database) -> None:
        database.execute("ALTER TABLE reflections OWNER TO supabase_auth_admin", SUPERUSER)
        assert_refused(
            database,
            "app-table-not-owned",
            "owned by supabase_auth_admin",
            "Connect as supabase_auth_admin",
        )

    def test_link_column_of_another_type_conflicts_until_renamed(self, database: Database) -> None:
        database.execute("ALTER TABLE reflections ADD langfuse_trace_id text")
        fix = (
            "ALTER TABLE public.reflections RENAME COLUMN langfuse_trace_id"
            " TO langfuse_trace_id_before"
        )
        assert_refused(database, "name-taken", "public.reflections.langfuse_trace_id", "text", fix)
        database.execute(fix)
        assert langfuse_schema(database, "upgrade", "head").code == 0

    def test_link_column_without_foreign_key_is_reported(self, database: Database) -> None:
        migrations.upgrade(database.url, CORE)
        database.execute("ALTER TABLE reflections ADD langfuse_trace_id uuid")
        assert_refused(
            database,
            "constraint-missing",
            "public.reflections: reflections_langfuse_trace_id_fkey",
            "ALTER TABLE public.reflections ADD CONSTRAINT",
        )

    def test_index_of_app_with_name_of_link_index_conflicts(self, database: Database) -> None:
        database.execute("CREATE INDEX idx_reflections_langfuse_trace_id ON reflections (body)")
        assert_refused(database, "name-taken", "public.idx_reflections_langfuse_trace_id", "(body)")

    def test_upgrade_reports_all_problems_at_once(self, database: Database) -> None:
        database.execute("DROP TABLE reflections")
        database.execute("DROP FUNCTION auth.uid CASCADE", SUPERUSER)
        database.execute("REVOKE ALL ON auth.users FROM postgres", SUPERUSER)
        assert_refused(database, "app-table-missing", "uid-function-missing", "privilege-missing")


class TestExistingTables:
    def test_existing_table_with_other_columns_is_reported(self, database: Database) -> None:
        database.execute("CREATE TABLE langfuse_scores (id bigint)")
        rename = "ALTER TABLE public.langfuse_scores RENAME TO langfuse_scores_before"
        assert_refused(database, "name-taken", "public.langfuse_scores", "a table", rename)
        database.execute(rename)
        assert langfuse_schema(database, "upgrade", "head").code == 0

    def test_view_with_name_of_langfuse_table_is_reported(self, database: Database) -> None:
        database.execute("CREATE VIEW rate_limit_logs AS SELECT 1 AS one")
        assert_refused(database, "name-taken", "public.rate_limit_logs", "a view")

    def test_index_on_app_table_with_name_of_langfuse_index_conflicts(
        self, database: Database
    ) -> None:
        database.execute("CREATE INDEX idx_langfuse_scores_status ON reflections (body)")
        assert_refused(
            database,
            "name-taken",
            "public.idx_langfuse_scores_status",
            "an index of public.reflections",
        )

    def test_plan_schema_with_changed_check_is_reported_with_stamp(
        self, database: Database
    ) -> None:
        database.execute(plan_sql(*PLAN_REVISIONS).replace("'failed'", "'failed', 'lost'"))
        assert_refused(
            database,
            "plan-already-run",
            "1 difference from revision",
            "constraint-differs",
            "public.langfuse_scores: langfuse_scores_status_check",
            "'lost'",
            f"langfuse-schema stamp {POLICIES}",
        )

    def test_plan_schema_with_changed_policy_is_reported_with_stamp(
        self, database: Database
    ) -> None:
        sql = plan_sql(*PLAN_REVISIONS).replace("auth.uid() = user_id", "true")
        database.execute(sql)
        assert_refused(database, "plan-already-run", f"langfuse-schema stamp {POLICIES}")
        assert_refused(database, "policy-differs", "Users can view their own traces", "USING true")

    @pytest.mark.parametrize("recorded", [False, True])
    def test_plan_with_missing_policy_is_described_as_plan(
        self, database: Database, recorded: bool
    ) -> None:
        database.execute(plan_sql(*PLAN_REVISIONS))
        database.execute('DROP POLICY "Users can view their own traces" ON langfuse_traces')
        description = "the plan's SQL was run up to"
        if recorded:
            migrations.stamp(database.url, POLICIES)
            description = "Restore it as the plan's SQL creates it:"
        with pytest.raises(SchemaError, match=description) as refusal:
            migrations.upgrade(database.url)
        assert "revisions" not in str(refusal.value)
        (missing,) = (one for one in refusal.value.findings if one.code == "policy-missing")
        for statement in missing.fix:
            database.execute(statement)
        if not recorded:
            migrations.stamp(database.url, POLICIES)
        migrations.upgrade(database.url)
        assert verify(database.url) == []

    def test_existing_policy_with_name_of_later_revision_conflicts(
        self, database: Database
    ) -> None:
        migrations.upgrade(database.url, LINKS)
        database.execute(
            'CREATE POLICY "Users can view their own traces" ON langfuse_traces USING (true)'
        )
        assert_refused(database, "name-taken", 'DROP POLICY "Users can view their own traces"')

    def test_head_schema_without_revision_is_adopted_by_stamp(self, database: Database) -> None:
        """Exported files and a restore of schema public create such a database."""
        migrations.upgrade(database.url)
        before = database.catalog()
        database.execute("DROP SCHEMA langfuse_migrations CASCADE")
        stamp = f"langfuse-schema stamp {HEAD}"
        assert_refused(database, "revision-missing", "no revision is recorded", stamp)
        assert langfuse_schema(database, "stamp", HEAD).code == 0
        assert langfuse_schema(database, "upgrade", "head").code == 0
        assert database.catalog() == before

    def test_head_schema_without_revision_and_index_is_repaired_then_stamped(
        self, database: Database
    ) -> None:
        migrations.upgrade(database.url)
        before = database.catalog()
        database.execute("DROP SCHEMA langfuse_migrations CASCADE")
        database.execute("DROP INDEX idx_langfuse_traces_entity")
        stamp = f"langfuse-schema stamp {HEAD}"
        assert_refused(database, "revision-missing", "index-missing", "1 difference from", stamp)
        *differences, last = verify(database.url)
        assert [finding.code for finding in differences] == ["index-missing"]
        for statement in differences[0].fix:
            database.execute(statement)
        assert last.fix == (f"langfuse-schema stamp {HEAD}",)
        assert langfuse_schema(database, "stamp", HEAD).code == 0
        assert database.catalog() == before

    def test_partial_restore_without_revision_offers_repairs_not_renames(
        self, database: Database
    ) -> None:
        migrations.upgrade(database.url)
        before = database.catalog()
        database.execute("DROP SCHEMA langfuse_migrations CASCADE; DROP TABLE langfuse_scores")
        outcome = langfuse_schema(database, "upgrade", "head")
        assert_reported(outcome, "revision-missing", "table-missing", "CREATE TABLE")
        assert "RENAME" not in outcome.stderr
        assert "langfuse_scores FROM PUBLIC, anon, authenticated, service_role;" in outcome.stderr
        for finding in verify(database.url):
            for command in finding.fix:
                if command.startswith("langfuse-schema "):
                    assert langfuse_schema(database, *command.split()[1:]).code == 0
                else:
                    database.execute(command)
        assert verify(database.url) == []
        assert database.catalog().tables == before.tables

    @pytest.mark.parametrize("recorded", [LINKS, POLICIES])
    def test_recorded_revision_behind_tables_is_reported_with_stamp(
        self, database: Database, recorded: str
    ) -> None:
        migrations.upgrade(database.url)
        database.execute(
            f"UPDATE langfuse_migrations.alembic_version SET version_num = '{recorded}'"
        )
        assert_refused(database, "revision-behind", f"langfuse-schema stamp --purge {HEAD}")

    @pytest.mark.parametrize(
        "type_definition",
        [
            "TYPE rate_limit_logs AS ENUM ('a')",
            pytest.param("TYPE rate_limit_logs AS (a int)", marks=pytest.mark.slow),
            pytest.param("DOMAIN rate_limit_logs AS text", marks=pytest.mark.slow),
        ],
    )
    def test_type_with_name_of_langfuse_table_conflicts_until_renamed(
        self, database: Database, type_definition: str
    ) -> None:
        database.execute(f"CREATE {type_definition}")
        fix = "ALTER TYPE public.rate_limit_logs RENAME TO rate_limit_logs_before"
        assert_refused(database, "name-taken", "a type", fix)
        database.execute(fix)
        assert langfuse_schema(database, "upgrade", "head").code == 0

    def test_foreign_key_with_name_of_link_conflicts_until_renamed(
        self, database: Database
    ) -> None:
        name = "reflections_langfuse_trace_id_fkey"
        database.execute(
            "ALTER TABLE reflections ADD other uuid,"
            f" ADD CONSTRAINT {name} FOREIGN KEY (other) REFERENCES auth.users (id)"
        )
        fix = f"ALTER TABLE public.reflections RENAME CONSTRAINT {name} TO {name}_before"
        assert_refused(database, "name-taken", f"public.reflections: {name}", fix)
        database.execute(fix)
        assert langfuse_schema(database, "upgrade", "head").code == 0
        assert verify(database.url) == []

    @pytest.mark.parametrize("revision", PLAN_REVISIONS)
    def test_plan_run_by_hand_is_refused_with_stamp_command(
        self, database: Database, revision: str
    ) -> None:
        database.execute(plan_sql(*PLAN_REVISIONS[: PLAN_REVISIONS.index(revision) + 1]))
        assert_refused(
            database,
            "plan-already-run",
            f"langfuse-schema stamp {revision}",
        )

    def test_stamp_adopts_plan_run_by_hand(self, database: Database) -> None:
        database.execute(plan_sql(*PLAN_REVISIONS))
        assert alembic(database, "stamp", POLICIES).code == 0
        assert alembic(database, "upgrade", "head").code == 0


class TestVersionTable:
    def test_recorded_revision_without_tables_is_refused(self, database: Database) -> None:
        migrations.upgrade(database.url)
        before = database.execute("SELECT version_num FROM langfuse_migrations.alembic_version")
        database.execute(f"DROP TABLE {', '.join(langfuse_tables())} CASCADE")
        assert_refused(
            database, "revision-without-tables", f"revision {before[0][0]}", "langfuse-schema stamp"
        )

    def test_stamp_base_and_upgrade_repair_dropped_tables(self, database: Database) -> None:
        migrations.upgrade(database.url)
        before = database.catalog()
        database.execute(f"DROP TABLE {', '.join(langfuse_tables())} CASCADE")
        assert alembic(database, "stamp", "base").code == 0
        for table in tables.APP_TABLES:
            rename = (
                f"ALTER TABLE public.{table} RENAME COLUMN langfuse_trace_id"
                " TO langfuse_trace_id_before"
            )
            assert_refused(database, "name-taken", f"public.{table}.langfuse_trace_id", rename)
            database.execute(f"ALTER TABLE public.{table} DROP COLUMN langfuse_trace_id")
        assert alembic(database, "upgrade", "head").code == 0
        assert database.catalog() == before

    def test_one_missing_table_at_head_is_refused_with_backup_advice(
        self, database: Database
    ) -> None:
        migrations.upgrade(database.url)
        database.execute("DROP TABLE rate_limit_logs")
        assert_refused(database, "revision-without-tables", "public.rate_limit_logs", "backup")

    def test_upgrade_refuses_unknown_recorded_revision(self, database: Database) -> None:
        migrations.upgrade(database.url)
        database.execute("UPDATE langfuse_migrations.alembic_version SET version_num = '20990101'")
        assert_refused(database, "revision-unknown", "20990101", "Install that release")

    @pytest.mark.parametrize("command", ["upgrade", "preflight", "downgrade"])
    def test_command_refuses_several_recorded_revisions(
        self, database: Database, command: str
    ) -> None:
        migrations.upgrade(database.url, POLICIES)
        database.execute("INSERT INTO langfuse_migrations.alembic_version VALUES ('x')")
        arguments = {"upgrade": ["head"], "preflight": [], "downgrade": ["-1"]}[command]
        outcome = langfuse_schema(database, command, *arguments)
        assert outcome.code != 0
        assert f"several: {POLICIES}, x" in outcome.stderr + outcome.stdout
        assert "stamp --purge" in outcome.stderr + outcome.stdout

    def test_stamp_refuses_two_revisions(self, database: Database) -> None:
        migrations.upgrade(database.url, POLICIES)
        before = database.execute("TABLE langfuse_migrations.alembic_version")
        outcome = langfuse_schema(database, "stamp", CORE, LINKS)
        assert_reported(outcome, "one revision", "Name the newest one only.")
        assert database.execute("TABLE langfuse_migrations.alembic_version") == before

    @pytest.mark.parametrize("command", [("current",), ("check",), ("downgrade", "-1")])
    def test_other_command_refuses_unknown_recorded_revision(
        self, database: Database, command: tuple[str, ...]
    ) -> None:
        migrations.upgrade(database.url)
        database.execute("UPDATE langfuse_migrations.alembic_version SET version_num = '20990101'")
        before = database.catalog()
        outcome = langfuse_schema(database, *command)
        assert_reported(outcome, "revision-unknown", "20990101")
        assert database.catalog() == before

    def test_upgrade_refuses_unknown_target_revision(self, database: Database) -> None:
        before = database.catalog()
        outcome = langfuse_schema(database, "upgrade", "20990101")
        assert outcome.code != 0
        assert "20990101" in outcome.stderr
        assert "langfuse-schema history" in outcome.stderr
        assert "Traceback" not in outcome.stderr
        assert database.catalog() == before


class TestPrivileges:
    def test_missing_create_privilege_on_database_is_reported(self, database: Database) -> None:
        name = database.url.database
        database.execute(f'ALTER DATABASE "{name}" OWNER TO supabase_admin', SUPERUSER)
        database.execute("GRANT CREATE ON SCHEMA public TO postgres", SUPERUSER)
        grant = f"GRANT CREATE ON DATABASE {name} TO postgres"
        assert_refused(database, "privilege-missing", grant)

    def test_missing_create_privilege_on_schema_public_is_reported(
        self, database: Database
    ) -> None:
        database.execute("ALTER SCHEMA public OWNER TO supabase_admin", SUPERUSER)
        assert_refused(database, "privilege-missing", "GRANT CREATE ON SCHEMA public TO postgres")

    def test_missing_create_privilege_for_index_is_reported(self, database: Database) -> None:
        migrations.upgrade(database.url, CORE)
        database.execute(
            "ALTER SCHEMA public OWNER TO supabase_admin;"
            " REVOKE CREATE ON SCHEMA public FROM postgres, PUBLIC",
            SUPERUSER,
        )
        assert_refused(database, "privilege-missing", "GRANT CREATE ON SCHEMA public TO postgres")

    def test_missing_write_privilege_on_version_table_is_reported(self, database: Database) -> None:
        migrations.upgrade(database.url, HARDENED)
        table = "langfuse_migrations.alembic_version"
        database.execute(
            f"ALTER TABLE {table} OWNER TO supabase_admin; GRANT SELECT ON {table} TO postgres",
            SUPERUSER,
        )
        grant = f"GRANT SELECT, INSERT, UPDATE, DELETE ON TABLE {table} TO postgres"
        assert_refused(database, "privilege-missing", grant)

    def test_missing_create_privilege_on_version_schema_is_reported(
        self, database: Database
    ) -> None:
        database.execute(
            "CREATE SCHEMA langfuse_migrations;"
            " GRANT USAGE ON SCHEMA langfuse_migrations TO postgres",
            SUPERUSER,
        )
        grant = "GRANT USAGE, CREATE ON SCHEMA langfuse_migrations TO postgres"
        assert_refused(database, "privilege-missing", grant)

    def test_role_that_owns_no_app_table_is_refused(self, database: Database) -> None:
        url = database.as_user("authenticator").render_as_string()
        assert_refused(database, "privilege-missing", "app-table-not-owned", url=url)


def test_alembic_command_prints_finding_once(database: Database) -> None:
    database.execute("DROP TABLE reflections")
    outcome = alembic(database, "upgrade", "head")
    assert outcome.code != 0
    assert (outcome.stdout + outcome.stderr).count("error[app-table-missing]") == 1


def test_downgrade_stops_at_dependent_view(database: Database) -> None:
    migrations.upgrade(database.url)
    database.execute("CREATE VIEW mine AS SELECT langfuse_trace_id FROM reflections")
    outcome = langfuse_schema(database, "downgrade", "base")
    assert_reported(outcome, "2BP01", "view mine depends on")
    # The revisions above it are downgraded, and the failed downgrade is rolled back.
    assert LINKS in langfuse_schema(database, "current").stdout


def test_wrong_password_is_reported_without_password(
    database: Database, password_role: str
) -> None:
    url = database.url.set(username=password_role, password="guessed")
    outcome = langfuse_schema(
        None, "upgrade", "head", DATABASE_URL=url.render_as_string(hide_password=False)
    )
    assert_reported(outcome, "login-refused", "password authentication failed")
    assert "guessed" not in outcome.stderr
