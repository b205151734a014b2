"""Each mistake a user can make: one clear message, an exit code, an untouched database."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from langfuse_schema import environment, migrations, tables
from langfuse_schema.verify import verify
from tests.support import (
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
    plan_sql,
)

if TYPE_CHECKING:
    from pathlib import Path


def refused(database: Database, *told: str, url: str | None = None) -> None:
    """`upgrade head` fails, tells all of `told`, and leaves the catalog of all schemas alone."""
    before = database.catalog()
    outcome = langfuse_schema(None, "upgrade", "head", DATABASE_URL=url or database.text)
    assert_told(outcome, *told)
    assert database.catalog() == before


def assert_told(outcome: Outcome, *told: str) -> None:
    assert outcome.code != 0, outcome
    assert "Traceback" not in outcome.stderr + outcome.stdout
    for text in (*told, "found:", "expected:", "remedy:"):
        assert text in outcome.stderr, outcome.stderr


class TestServer:
    def test_nobody_listens(self, database: Database) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            url = f"postgresql://postgres:secret@127.0.0.1:{unused.getsockname()[1]}/postgres"
            refused(database, "server-unreachable", "Connection refused", url=url)

    def test_no_password_is_ever_shown(self) -> None:
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
    def test_no_password_is_shown_wherever_it_stands(self, url: str) -> None:
        outcome = langfuse_schema(None, "upgrade", "head", DATABASE_URL=url)
        assert "hunter2" not in outcome.stderr + outcome.stdout
        assert outcome.code != 0

    def test_a_password_with_an_at_sign(self) -> None:
        url = "postgresql://u:p@ss@127.0.0.1:1/x"
        outcome = langfuse_schema(None, "upgrade", "head", DATABASE_URL=url)
        assert_told(outcome, "url-invalid", "a password with an @ in it", "%40")

    def test_a_parameter_with_a_wrong_value(self) -> None:
        url = "postgresql://u@127.0.0.1:1/x?sslmode=nonsense"
        outcome = langfuse_schema(None, "upgrade", "head", DATABASE_URL=url)
        assert_told(outcome, "url-invalid", "nonsense", "correct the parameter")

    def test_unknown_host(self, database: Database) -> None:
        url = "postgresql://postgres@db.invalid/postgres"
        refused(database, "server-unreachable", "db.invalid", url=url)

    def test_missing_database(self, database: Database) -> None:
        url = database.url.set(database="nowhere").render_as_string()
        refused(database, "database-missing", 'createdb "nowhere"', url=url)

    def test_unknown_role(self, database: Database) -> None:
        url = database.as_user("stranger").render_as_string()
        refused(database, 'role "stranger" does not exist', url=url)

    def test_read_only_session(self, database: Database) -> None:
        name = database.url.database
        database.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        refused(database, "session-read-only", "connect to the primary server")


class TestUrl:
    @pytest.mark.parametrize("url", ["", "nonsense", "postgresql:/half", "postgresql://h:port/x"])
    def test_no_url_at_all(self, database: Database, url: str) -> None:
        before = database.catalog()
        outcome = langfuse_schema(None, "upgrade", "head", DATABASE_URL=url)
        assert_told(outcome, "url-invalid", "DATABASE_URL", "postgresql://user:password@host")
        assert database.catalog() == before

    def test_another_kind_of_database(self, database: Database) -> None:
        refused(database, "url-not-postgresql", "a mysql URL", url="mysql://u:p@host/db")

    def test_a_single_percent_sign_in_the_ini(self, database: Database, tmp_path: Path) -> None:
        before = database.catalog()
        ini = tmp_path / "alembic.ini"
        ini.write_text(
            f"[alembic]\nscript_location = {environment.config_file().parent / 'alembic'}\n"
            "sqlalchemy.url = postgresql://u:50%off@localhost/x\n"
        )
        outcome = alembic(None, "-c", str(ini), "upgrade", "head")
        assert outcome.code != 0
        assert "%% for each %" in outcome.stderr + outcome.stdout
        assert database.catalog() == before

    @pytest.mark.parametrize(
        ("option", "told"),
        [
            ("lock_timeout=500", "a time above zero with its unit"),
            ("lock_timeout=0s", "a time above zero with its unit"),
            ("lock_timeuot=1s", "one of url, embedded, lock_timeout, lock_deadline"),
            ("embedded=yes", "true or false"),
        ],
    )
    def test_a_wrong_option(self, database: Database, option: str, told: str) -> None:
        before = database.catalog()
        outcome = langfuse_schema(database, "-x", option, "upgrade", "head")
        assert_told(outcome, option.partition("=")[0], told)
        assert database.catalog() == before


class TestUsers:
    def test_no_users_table(self, database: Database) -> None:
        database.execute("DROP TABLE auth.users CASCADE", SUPERUSER)
        refused(database, "users-table-missing", "auth.users", "connect to the Supabase database")

    def test_no_schema_auth(self, database: Database) -> None:
        database.execute("DROP SCHEMA auth CASCADE", SUPERUSER)
        refused(database, "users-table-missing", "uid-function-missing")

    def test_users_with_another_kind_of_id(self, database: Database) -> None:
        database.execute("DROP TABLE auth.users CASCADE", SUPERUSER)
        database.execute("CREATE TABLE auth.users (id bigint PRIMARY KEY)", SUPERUSER)
        refused(database, "users-table-differs", "id bigint, a key")

    def test_users_whose_id_is_no_key(self, database: Database) -> None:
        database.execute("DROP TABLE auth.users CASCADE", SUPERUSER)
        database.execute("CREATE TABLE auth.users (id uuid)", SUPERUSER)
        refused(database, "users-table-differs", "id uuid, not a key")

    def test_users_without_id(self, database: Database) -> None:
        database.execute("DROP TABLE auth.users CASCADE", SUPERUSER)
        database.execute("CREATE TABLE auth.users (uid uuid PRIMARY KEY)", SUPERUSER)
        refused(database, "users-table-differs", "id missing")

    def test_users_that_are_a_view(self, database: Database) -> None:
        database.execute("DROP TABLE auth.users CASCADE", SUPERUSER)
        database.execute("CREATE VIEW auth.users AS SELECT gen_random_uuid() AS id", SUPERUSER)
        refused(database, "users-table-differs", "a view")

    def test_no_right_to_refer_to_users(self, database: Database) -> None:
        database.execute("REVOKE ALL ON auth.users FROM postgres", SUPERUSER)
        refused(
            database,
            "privilege-missing",
            'GRANT REFERENCES (id) ON TABLE auth.users TO "postgres"',
        )

    def test_no_right_to_enter_schema_auth(self, database: Database) -> None:
        # The API roles too: postgres is a member of theirs.
        database.execute(
            "REVOKE ALL ON SCHEMA auth FROM postgres, anon, authenticated, service_role", SUPERUSER
        )
        refused(database, "privilege-missing", 'GRANT USAGE ON SCHEMA auth TO "postgres"')

    def test_no_function_that_says_who_is_signed_in(self, database: Database) -> None:
        database.execute("DROP FUNCTION auth.uid CASCADE", SUPERUSER)
        refused(database, "uid-function-missing", "auth.uid()")


class TestAppTables:
    def test_one_is_missing(self, database: Database) -> None:
        database.execute("DROP TABLE reflections")
        refused(database, "app-table-missing", "public.reflections")

    def test_one_is_a_view(self, database: Database) -> None:
        database.execute("ALTER TABLE reflections RENAME TO reflections_before")
        database.execute("CREATE VIEW reflections AS SELECT * FROM reflections_before")
        refused(database, "app-table-differs", "public.reflections", "a view")

    def test_one_is_partitioned(self, database: Database) -> None:
        database.execute("DROP TABLE reflections")
        database.execute("CREATE TABLE reflections (id uuid) PARTITION BY HASH (id)")
        refused(database, "app-table-differs", "a partitioned table")

    def test_one_belongs_to_another_role(self, database: Database) -> None:
        database.execute("ALTER TABLE reflections OWNER TO supabase_auth_admin", SUPERUSER)
        refused(
            database,
            "app-table-not-owned",
            "owned by supabase_auth_admin",
            'GRANT "supabase_auth_admin" TO "postgres"',
        )

    def test_the_column_is_there_in_another_shape(self, database: Database) -> None:
        database.execute("ALTER TABLE reflections ADD langfuse_trace_id text")
        remedy = (
            "ALTER TABLE public.reflections RENAME COLUMN langfuse_trace_id"
            " TO langfuse_trace_id_before"
        )
        refused(database, "name-taken", "public.reflections.langfuse_trace_id", "text", remedy)
        database.execute(remedy)
        assert langfuse_schema(database, "upgrade", "head").code == 0

    def test_the_column_is_there_without_its_foreign_key(self, database: Database) -> None:
        migrations.upgrade(database.url, CORE)
        database.execute("ALTER TABLE reflections ADD langfuse_trace_id uuid")
        refused(
            database,
            "constraint-missing",
            "public.reflections: reflections_langfuse_trace_id_fkey",
            "ALTER TABLE public.reflections ADD CONSTRAINT",
        )

    def test_the_name_of_the_index_is_taken(self, database: Database) -> None:
        database.execute("CREATE INDEX idx_reflections_langfuse_trace_id ON reflections (body)")
        refused(database, "name-taken", "public.idx_reflections_langfuse_trace_id", "(body)")

    def test_everything_that_is_wrong_is_told_at_once(self, database: Database) -> None:
        database.execute("DROP TABLE reflections")
        database.execute("DROP FUNCTION auth.uid CASCADE", SUPERUSER)
        database.execute("REVOKE ALL ON auth.users FROM postgres", SUPERUSER)
        refused(database, "app-table-missing", "uid-function-missing", "privilege-missing")


class TestOursAlreadyThere:
    def test_a_table_of_our_name(self, database: Database) -> None:
        database.execute("CREATE TABLE langfuse_scores (id bigint)")
        refused(database, "column-differs", "public.langfuse_scores.id", "bigint", "uuid NOT NULL")

    def test_a_view_of_our_name(self, database: Database) -> None:
        database.execute("CREATE VIEW rate_limit_logs AS SELECT 1 AS one")
        refused(database, "table-differs", "public.rate_limit_logs", "a view")

    def test_an_index_of_our_name_on_another_table(self, database: Database) -> None:
        database.execute("CREATE INDEX idx_langfuse_scores_status ON reflections (body)")
        refused(
            database,
            "name-taken",
            "public.idx_langfuse_scores_status",
            "an index of public.reflections",
        )

    def test_a_check_with_one_more_value(self, database: Database) -> None:
        database.execute(plan_sql(*PLAN_REVISIONS).replace("'failed'", "'failed', 'lost'"))
        refused(
            database,
            "revision-missing",
            "other than in 1 of its parts",
            "constraint-differs",
            "public.langfuse_scores: langfuse_scores_status_check",
            "'lost'",
            f"langfuse-schema stamp {POLICIES} && langfuse-schema upgrade head",
        )

    def test_a_policy_of_another_rule(self, database: Database) -> None:
        sql = plan_sql(*PLAN_REVISIONS).replace("auth.uid() = user_id", "true")
        database.execute(sql)
        refused(database, "revision-missing", f"langfuse-schema stamp {POLICIES}")
        refused(database, "policy-differs", "Users can view their own traces", "USING true")

    def test_a_policy_that_waits_for_its_revision(self, database: Database) -> None:
        migrations.upgrade(database.url, LINKS)
        database.execute(
            'CREATE POLICY "Users can view their own traces" ON langfuse_traces USING (true)'
        )
        refused(database, "name-taken", 'DROP POLICY "Users can view their own traces"')

    def test_tables_of_a_later_revision_without_any(self, database: Database) -> None:
        """As exported files, or a restore of schema public, leave it."""
        migrations.upgrade(database.url)
        undisturbed = database.catalog()
        database.execute("DROP SCHEMA langfuse_migrations CASCADE")
        stamp = f"langfuse-schema stamp {HEAD} && langfuse-schema upgrade head"
        refused(database, "revision-missing", "but no revision", stamp)
        assert langfuse_schema(database, "stamp", HEAD).code == 0
        assert langfuse_schema(database, "upgrade", "head").code == 0
        assert database.catalog() == undisturbed

    def test_tables_of_a_later_revision_without_any_and_with_a_difference(
        self, database: Database
    ) -> None:
        migrations.upgrade(database.url)
        undisturbed = database.catalog()
        database.execute("DROP SCHEMA langfuse_migrations CASCADE")
        database.execute("DROP INDEX idx_langfuse_traces_entity")
        stamp = f"langfuse-schema stamp {HEAD} && langfuse-schema upgrade head"
        refused(database, "revision-missing", "index-missing", "mend what is named below", stamp)
        *mended, last = verify(database.url)
        assert [finding.code for finding in mended] == ["index-missing"]
        database.execute(mended[0].remedy)
        assert last.remedy == f"langfuse-schema stamp {HEAD}"
        assert langfuse_schema(database, "stamp", HEAD).code == 0
        assert database.catalog() == undisturbed

    @pytest.mark.parametrize("noted", [LINKS, POLICIES])
    def test_tables_further_than_their_revision(self, database: Database, noted: str) -> None:
        migrations.upgrade(database.url)
        database.execute(f"UPDATE langfuse_migrations.alembic_version SET version_num = '{noted}'")
        refused(database, "revision-behind", f"langfuse-schema stamp --purge {HEAD}")

    @pytest.mark.parametrize(
        "type_of_our_name",
        [
            "TYPE rate_limit_logs AS ENUM ('a')",
            "TYPE rate_limit_logs AS (a int)",
            "DOMAIN rate_limit_logs AS text",
        ],
    )
    def test_a_type_of_our_name(self, database: Database, type_of_our_name: str) -> None:
        database.execute(f"CREATE {type_of_our_name}")
        remedy = "ALTER TYPE public.rate_limit_logs RENAME TO rate_limit_logs_before"
        refused(database, "name-taken", "a type", remedy)
        database.execute(remedy)
        assert langfuse_schema(database, "upgrade", "head").code == 0

    def test_a_foreign_key_of_our_name(self, database: Database) -> None:
        name = "reflections_langfuse_trace_id_fkey"
        database.execute(
            "ALTER TABLE reflections ADD other uuid,"
            f" ADD CONSTRAINT {name} FOREIGN KEY (other) REFERENCES auth.users (id)"
        )
        remedy = f"ALTER TABLE public.reflections RENAME CONSTRAINT {name} TO {name}_before"
        refused(database, "name-taken", f"public.reflections: {name}", remedy)
        database.execute(remedy)
        assert langfuse_schema(database, "upgrade", "head").code == 0
        assert verify(database.url) == []

    @pytest.mark.parametrize("revision", PLAN_REVISIONS)
    def test_the_plan_run_by_hand_names_the_stamp(self, database: Database, revision: str) -> None:
        database.execute(plan_sql(*PLAN_REVISIONS[: PLAN_REVISIONS.index(revision) + 1]))
        refused(
            database,
            "plan-already-run",
            f"langfuse-schema stamp {revision} && langfuse-schema upgrade head",
        )

    def test_the_named_stamp_adopts_it(self, database: Database) -> None:
        database.execute(plan_sql(*PLAN_REVISIONS))
        assert alembic(database, "stamp", POLICIES).code == 0
        assert alembic(database, "upgrade", "head").code == 0


class TestVersionTable:
    def test_tables_gone_after_a_reset(self, database: Database) -> None:
        migrations.upgrade(database.url)
        before = database.execute("SELECT version_num FROM langfuse_migrations.alembic_version")
        database.execute(f"DROP TABLE {', '.join(langfuse_tables())} CASCADE")
        refused(
            database, "revision-without-tables", f"revision {before[0][0]}", "langfuse-schema stamp"
        )

    def test_the_named_stamp_heals_a_reset(self, database: Database) -> None:
        migrations.upgrade(database.url)
        undisturbed = database.catalog()
        database.execute(f"DROP TABLE {', '.join(langfuse_tables())} CASCADE")
        assert alembic(database, "stamp", "base").code == 0
        for table in tables.APP_TABLES:
            remedy = f"ALTER TABLE public.{table} DROP COLUMN langfuse_trace_id"
            refused(database, "column-unexpected", f"public.{table}.langfuse_trace_id", remedy)
            database.execute(remedy)
        assert alembic(database, "upgrade", "head").code == 0
        assert database.catalog() == undisturbed

    def test_one_table_gone_after_a_partial_restore(self, database: Database) -> None:
        migrations.upgrade(database.url)
        database.execute("DROP TABLE rate_limit_logs")
        refused(database, "revision-without-tables", "public.rate_limit_logs", "backup")

    def test_an_unknown_revision(self, database: Database) -> None:
        migrations.upgrade(database.url)
        database.execute("UPDATE langfuse_migrations.alembic_version SET version_num = '20990101'")
        refused(database, "revision-unknown", "20990101", "pip install --upgrade langfuse-schema")

    @pytest.mark.parametrize("command", ["upgrade", "preflight", "downgrade"])
    def test_several_revisions(self, database: Database, command: str) -> None:
        migrations.upgrade(database.url, POLICIES)
        database.execute("INSERT INTO langfuse_migrations.alembic_version VALUES ('x')")
        arguments = {"upgrade": ["head"], "preflight": [], "downgrade": ["-1"]}[command]
        outcome = langfuse_schema(database, command, *arguments)
        assert outcome.code != 0
        assert f"several: {POLICIES}, x" in outcome.stderr + outcome.stdout
        assert "stamp --purge" in outcome.stderr + outcome.stdout

    def test_stamping_two_revisions(self, database: Database) -> None:
        migrations.upgrade(database.url, POLICIES)
        before = database.execute("TABLE langfuse_migrations.alembic_version")
        outcome = langfuse_schema(database, "stamp", CORE, LINKS)
        assert_told(outcome, "one revision", f"langfuse-schema stamp {LINKS}")
        assert database.execute("TABLE langfuse_migrations.alembic_version") == before

    @pytest.mark.parametrize("command", [("current",), ("check",), ("downgrade", "-1")])
    def test_an_unknown_revision_stops_the_other_commands_too(
        self, database: Database, command: tuple[str, ...]
    ) -> None:
        migrations.upgrade(database.url)
        database.execute("UPDATE langfuse_migrations.alembic_version SET version_num = '20990101'")
        before = database.catalog()
        outcome = langfuse_schema(database, *command)
        assert_told(outcome, "revision-unknown", "20990101")
        assert database.catalog() == before

    def test_an_unknown_target(self, database: Database) -> None:
        before = database.catalog()
        outcome = langfuse_schema(database, "upgrade", "20990101")
        assert outcome.code != 0
        assert "20990101" in outcome.stderr
        assert "langfuse-schema history" in outcome.stderr
        assert "Traceback" not in outcome.stderr
        assert database.catalog() == before


class TestPrivileges:
    def test_no_right_to_make_the_schema_of_the_version_table(self, database: Database) -> None:
        name = database.url.database
        database.execute(f'ALTER DATABASE "{name}" OWNER TO supabase_admin', SUPERUSER)
        database.execute("GRANT CREATE ON SCHEMA public TO postgres", SUPERUSER)
        grant = f'GRANT CREATE ON DATABASE "{name}" TO "postgres"'
        refused(database, "privilege-missing", grant)

    def test_no_right_to_make_tables(self, database: Database) -> None:
        database.execute("ALTER SCHEMA public OWNER TO supabase_admin", SUPERUSER)
        refused(database, "privilege-missing", 'GRANT CREATE ON SCHEMA public TO "postgres"')

    def test_no_right_to_make_indexes(self, database: Database) -> None:
        migrations.upgrade(database.url, CORE)
        database.execute(
            "ALTER SCHEMA public OWNER TO supabase_admin;"
            " REVOKE CREATE ON SCHEMA public FROM postgres, PUBLIC",
            SUPERUSER,
        )
        refused(database, "privilege-missing", 'GRANT CREATE ON SCHEMA public TO "postgres"')

    def test_a_version_table_that_may_only_be_read(self, database: Database) -> None:
        migrations.upgrade(database.url, HARDENED)
        table = "langfuse_migrations.alembic_version"
        database.execute(
            f"ALTER TABLE {table} OWNER TO supabase_admin; GRANT SELECT ON {table} TO postgres",
            SUPERUSER,
        )
        grant = f'GRANT SELECT, INSERT, UPDATE, DELETE ON TABLE {table} TO "postgres"'
        refused(database, "privilege-missing", grant)

    def test_a_schema_in_which_the_version_table_cannot_be_made(self, database: Database) -> None:
        database.execute(
            "CREATE SCHEMA langfuse_migrations;"
            " GRANT USAGE ON SCHEMA langfuse_migrations TO postgres",
            SUPERUSER,
        )
        grant = 'GRANT USAGE, CREATE ON SCHEMA langfuse_migrations TO "postgres"'
        refused(database, "privilege-missing", grant)

    def test_a_role_that_owns_nothing(self, database: Database) -> None:
        url = database.as_user("authenticator").render_as_string()
        refused(database, "privilege-missing", "app-table-not-owned", url=url)


def test_alembic_itself_shows_the_same_message(database: Database) -> None:
    database.execute("DROP TABLE reflections")
    outcome = alembic(database, "upgrade", "head")
    assert_told(outcome, "app-table-missing", "public.reflections")


def test_an_object_that_depends_on_ours_stops_the_downgrade(database: Database) -> None:
    migrations.upgrade(database.url)
    database.execute("CREATE VIEW mine AS SELECT langfuse_trace_id FROM reflections")
    outcome = langfuse_schema(database, "downgrade", "base")
    assert_told(outcome, "2BP01", "view mine depends on")
    # The revisions above it are taken back; the one that failed is whole.
    assert "20251113000004" in langfuse_schema(database, "current").stdout


def test_wrong_password(database: Database, password_role: str) -> None:
    url = database.url.set(username=password_role, password="guessed")
    outcome = langfuse_schema(
        None, "upgrade", "head", DATABASE_URL=url.render_as_string(hide_password=False)
    )
    assert_told(outcome, "login-refused", "password authentication failed")
    assert "guessed" not in outcome.stderr
