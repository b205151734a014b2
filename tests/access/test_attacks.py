"""Attacks of a signed-in user who can run SQL.

docs/reference/permissions.md lists the remaining possibilities.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from langfuse_schema import migrations
from tests.helpers.databases import AOI, BEN, POLICIES, TRACE, Database, insert_example_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

OWN_TRACE, OTHER_TRACE, UNKNOWN_TRACE = TRACE.format(1), TRACE.format(2), TRACE.format(9)
INSERT_SCORE = (
    "INSERT INTO public.langfuse_scores (trace_id, score_name, value{}) VALUES ('{}', {}{})"
)
INSUFFICIENT_PRIVILEGE = "42501"


def score_sql(
    trace: str, columns: str = "", values: str = "", name_and_value: str = "'user_feedback', 1"
) -> str:
    return INSERT_SCORE.format(columns, trace, name_and_value, values)


class Attacker:
    """A session like one of PostgREST. Each call rolls its statements back."""

    def __init__(self, database: Database) -> None:
        url = database.as_user("authenticator").set(drivername="postgresql")
        self.connection = psycopg2.connect(url.render_as_string(hide_password=False))
        self.connection.autocommit = True

    def run(
        self, *statements: str, settings: dict[str, str] | None = None, role: str = "authenticated"
    ) -> list[tuple[Any, ...]]:
        """Run statements as a role with these settings, and return the rows of the last one."""
        if settings is None:
            settings = {"request.jwt.claims": json.dumps({"sub": AOI})}
        cursor = self.connection.cursor()
        cursor.execute("BEGIN")
        try:
            cursor.execute(f"SET LOCAL ROLE {role}")
            for name, value in settings.items():
                cursor.execute("SELECT set_config(%s, %s, true)", (name, value))
            for statement in statements:
                cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
        finally:
            cursor.execute("ROLLBACK")

    def refusal(self, *statements: str, **options: Any) -> tuple[str | None, str]:
        """Run statements that must fail, and return the SQLSTATE and the message."""
        with pytest.raises(psycopg2.Error) as refused:
            self.run(*statements, **options)
        return refused.value.pgcode, str(refused.value)


@pytest.fixture
def migrated(legacy_database: Database) -> Database:
    """Return a migrated database whose default privileges open tables to the API roles."""
    migrations.upgrade(legacy_database.url)
    insert_example_rows(legacy_database)
    return legacy_database


@pytest.fixture
def attacker(migrated: Database) -> Iterator[Attacker]:
    session = Attacker(migrated)
    yield session
    session.connection.close()


REFUSED_STATEMENTS = (
    score_sql(OTHER_TRACE),
    score_sql(OTHER_TRACE) + " RETURNING *",
    score_sql(OWN_TRACE, ", status", ", 'sent'"),
    score_sql(OWN_TRACE, ", sent_at", ", now()"),
    score_sql(OWN_TRACE, ", created_at", ", now()"),
    "UPDATE public.langfuse_scores SET status = 'sent'",
    "UPDATE public.langfuse_scores SET value = 0 RETURNING *",
    "DELETE FROM public.langfuse_scores RETURNING *",
    "SELECT * FROM public.langfuse_scores FOR UPDATE",
    score_sql(OWN_TRACE) + " ON CONFLICT (id) DO UPDATE SET value = 0 RETURNING *",
    "TRUNCATE public.langfuse_traces CASCADE",
    "LOCK TABLE public.langfuse_traces IN ACCESS EXCLUSIVE MODE",
    "ALTER TABLE public.langfuse_traces DISABLE ROW LEVEL SECURITY",
    'DROP POLICY "Users can view their own traces" ON public.langfuse_traces',
    "CREATE POLICY mine ON public.langfuse_traces USING (true)",
    "CREATE TRIGGER t BEFORE INSERT ON public.langfuse_scores EXECUTE FUNCTION now()",
    # With row_security off, PostgreSQL raises an error instead of hiding rows.
    "SET LOCAL row_security = off; SELECT * FROM public.langfuse_scores",
    "SELECT * FROM langfuse_migrations.alembic_version",
    "INSERT INTO auth.users (id) VALUES (gen_random_uuid())",
)


def test_forbidden_statement_of_user_is_refused(attacker: Attacker) -> None:
    outcomes = {statement: attacker.refusal(statement)[0] for statement in REFUSED_STATEMENTS}
    assert outcomes == dict.fromkeys(REFUSED_STATEMENTS, INSUFFICIENT_PRIVILEGE)


def test_api_roles_lack_references_and_trigger_privileges(migrated: Database) -> None:
    allowed = migrated.execute(
        """
        SELECT role, name, privilege
        FROM unnest(ARRAY['anon', 'authenticated', 'service_role', 'authenticator']) AS role,
          unnest(ARRAY['langfuse_traces', 'langfuse_scores', 'langfuse_batch_runs',
            'rate_limit_logs', 'langfuse_migrations.alembic_version']) AS name,
          unnest(ARRAY['REFERENCES', 'TRIGGER']) AS privilege
        WHERE has_table_privilege(role, name, privilege)
          OR privilege = 'REFERENCES' AND has_any_column_privilege(role, name, privilege)
        """
    )
    assert allowed == []


CLAIMS: tuple[tuple[dict[str, str], set[str] | None], ...] = (
    ({}, set()),
    ({"request.jwt.claims": ""}, set()),
    ({"request.jwt.claims": "{}"}, set()),
    ({"request.jwt.claims": '{"sub": ""}', "request.jwt.claim.sub": ""}, None),
    ({"request.jwt.claims": '{"sub": null}'}, set()),
    ({"request.jwt.claims": '{"sub": "x\' OR true --"}'}, None),
    ({"request.jwt.claims": f'{{"sub": ["{AOI}"]}}'}, None),
    ({"request.jwt.claims": "not json"}, None),
    ({"request.jwt.claims": f'{{"sub": "{AOI}"}}'}, {AOI}),
    # If the older setting has a value, auth.uid() ignores the newer one.
    (
        {"request.jwt.claim.sub": BEN, "request.jwt.claims": f'{{"sub": "{AOI}"}}'},
        {BEN},
    ),
)
"""Settings of a session, with the owners of the visible rows. None if every query fails."""


def test_claims_give_access_to_rows_of_at_most_one_user(attacker: Attacker) -> None:
    for settings, owners in CLAIMS:
        assert_visible_rows(attacker, settings, owners)


def assert_visible_rows(
    attacker: Attacker, settings: dict[str, str], owners: set[str] | None
) -> None:
    traces = "SELECT DISTINCT user_id::text FROM public.langfuse_traces"
    scores = "SELECT DISTINCT trace_id::text FROM public.langfuse_scores"
    if owners is None:
        for query in (traces, scores, score_sql(OWN_TRACE)):
            code, _ = attacker.refusal(query, settings=settings)
            assert code in ("22P02", "22023")
        return
    trace_of = {AOI: OWN_TRACE, BEN: OTHER_TRACE}
    assert {row[0] for row in attacker.run(traces, settings=settings)} == owners
    assert {row[0] for row in attacker.run(scores, settings=settings)} == {
        trace_of[owner] for owner in owners
    }
    for user, trace in trace_of.items():
        if user in owners:
            attacker.run(score_sql(trace), settings=settings)
        else:
            assert (
                attacker.refusal(score_sql(trace), settings=settings)[0] == INSUFFICIENT_PRIVILEGE
            )


def test_leaky_function_receives_own_rows_only(migrated: Database) -> None:
    # PostgreSQL evaluates the policy first, even if a user declares a cheap function.
    migrated.execute("CREATE TABLE public.leaked (line text); GRANT ALL ON leaked TO authenticated")
    attacker = Attacker(migrated)
    leaked = attacker.run(
        "CREATE FUNCTION pg_temp.leak(line text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001"
        " AS $$ BEGIN INSERT INTO public.leaked VALUES (line); RETURN true; END $$",
        "SELECT * FROM public.langfuse_scores WHERE pg_temp.leak(trace_id::text)",
        "SELECT * FROM public.langfuse_traces WHERE pg_temp.leak(trace_id::text)",
        "SELECT DISTINCT line FROM public.leaked",
    )
    attacker.connection.close()
    assert leaked == [(OWN_TRACE,)]


def test_pg_stats_shows_no_values_to_user(migrated: Database, attacker: Attacker) -> None:
    migrated.execute("ANALYZE langfuse_traces; ANALYZE langfuse_scores")
    query = "SELECT count(*) FROM pg_stats WHERE tablename LIKE 'langfuse%%'"
    assert attacker.run(query.replace("%%", "%")) == [(0,)]


def test_insert_returning_returns_new_row_only(attacker: Attacker) -> None:
    added = attacker.run(score_sql(OWN_TRACE) + " RETURNING trace_id::text, status, sent_at")
    assert added == [(OWN_TRACE, "pending", None)]


def test_score_on_trace_of_other_user_fails_like_score_on_unknown_trace(attacker: Attacker) -> None:
    # PostgreSQL checks the policy first, so the error does not reveal whether the trace exists.
    assert attacker.refusal(score_sql(OTHER_TRACE)) == attacker.refusal(score_sql(UNKNOWN_TRACE))
    invalid = {"name_and_value": "'user_feedback', 7"}
    assert attacker.refusal(score_sql(OTHER_TRACE, **invalid)) == attacker.refusal(
        score_sql(UNKNOWN_TRACE, **invalid)
    )


def test_user_can_probe_id_of_score_of_other_user(migrated: Database, attacker: Attacker) -> None:
    # A user who knows a random id can still learn that it exists.
    ((existing,),) = migrated.execute(
        f"SELECT id::text FROM langfuse_scores WHERE trace_id = '{OTHER_TRACE}'"
    )
    code, message = attacker.refusal(score_sql(OWN_TRACE, ", id", f", '{existing}'"))
    assert code == "23505"
    assert OTHER_TRACE not in message
    inserted = attacker.run(
        score_sql(OWN_TRACE, ", id", f", '{existing}'") + " ON CONFLICT DO NOTHING RETURNING *"
    )
    assert inserted == []


COUNT_SCORES = " AS 'SELECT count(*) FROM public.langfuse_scores'"


@pytest.mark.parametrize(
    ("definition", "count"),
    [
        ("VIEW public.v AS SELECT trace_id FROM public.langfuse_scores", 2),
        (
            "VIEW public.v WITH (security_invoker = true) AS SELECT trace_id FROM langfuse_scores",
            1,
        ),
        ("MATERIALIZED VIEW public.v AS SELECT trace_id FROM public.langfuse_scores", 2),
        ("FUNCTION f() RETURNS bigint LANGUAGE sql SECURITY DEFINER" + COUNT_SCORES, 2),
        ("FUNCTION f() RETURNS bigint LANGUAGE sql" + COUNT_SCORES, 1),
    ],
)
def test_granted_view_or_function_of_owner_shows_all_rows_unless_invoker(
    migrated: Database, attacker: Attacker, definition: str, count: int
) -> None:
    # This remains possible, because no policy applies to the owner of the tables.
    if "security_invoker" in definition and migrated.execute("SHOW server_version_num") < [
        ("150000",)
    ]:
        pytest.skip("security_invoker needs PostgreSQL 15")
    migrated.execute(f"CREATE {definition}")
    if "FUNCTION" in definition:
        migrated.execute("GRANT EXECUTE ON FUNCTION f() TO authenticated")
    else:
        migrated.execute("GRANT SELECT ON v TO authenticated")
    query = "SELECT public.f()" if "FUNCTION" in definition else "SELECT count(*) FROM public.v"
    assert attacker.run(query) == [(count,)]


def test_view_of_role_without_bypassrls_shows_own_rows(
    migrated: Database, attacker: Attacker
) -> None:
    # PostgreSQL applies the policy of the view's owner, and auth.uid() returns the calling user.
    migrated.execute(
        "GRANT CREATE ON SCHEMA public TO authenticated; SET ROLE authenticated;"
        "CREATE VIEW public.v AS SELECT trace_id FROM public.langfuse_scores; RESET ROLE;"
        "REVOKE CREATE ON SCHEMA public FROM authenticated"
    )
    assert attacker.run("SELECT count(*) FROM public.v") == [(1,)]


def test_user_cannot_create_objects_in_any_schema(attacker: Attacker) -> None:
    for schema in ("public", "auth", "langfuse_migrations"):
        assert attacker.refusal(f"CREATE VIEW {schema}.v AS SELECT 1")[0] == INSUFFICIENT_PRIVILEGE


def test_user_can_insert_status_at_last_revision_of_plan(database: Database) -> None:
    # The attack succeeds before the hardening, so its later refusal proves the hardening.
    migrations.upgrade(database.url, POLICIES)
    insert_example_rows(database)
    attacker = Attacker(database)
    attacker.run(score_sql(OWN_TRACE, ", status", ", 'sent'"))
    attacker.connection.close()
