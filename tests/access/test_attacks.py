"""A signed-in user runs SQL; docs/reference/permissions.md lists the remaining possibilities."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from langfuse_schema import migrations
from tests.helpers.databases import AOI, BEN, POLICIES, TRACE, Database, insert_example_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

OWN, OTHERS, UNKNOWN = TRACE.format(1), TRACE.format(2), TRACE.format(9)
SCORE = "INSERT INTO public.langfuse_scores (trace_id, score_name, value{}) VALUES ('{}', {}{})"
PRIVILEGE = "42501"


def score(
    trace: str, columns: str = "", values: str = "", given: str = "'user_feedback', 1"
) -> str:
    return SCORE.format(columns, trace, given, values)


class Attacker:
    """A session as PostgREST would open it; each statement is rolled back."""

    def __init__(self, database: Database) -> None:
        url = database.as_user("authenticator").set(drivername="postgresql")
        self.connection = psycopg2.connect(url.render_as_string(hide_password=False))
        self.connection.autocommit = True

    def run(
        self, *statements: str, settings: dict[str, str] | None = None, role: str = "authenticated"
    ) -> list[tuple[Any, ...]]:
        """Run statements as a role under these settings; the rows of the last."""
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
        """Run statements that must fail; SQLSTATE and message."""
        with pytest.raises(psycopg2.Error) as refused:
            self.run(*statements, **options)
        return refused.value.pgcode, str(refused.value)


@pytest.fixture
def filled(legacy_database: Database) -> Database:
    """In the world that grants more by default."""
    migrations.upgrade(legacy_database.url)
    insert_example_rows(legacy_database)
    return legacy_database


@pytest.fixture
def attacker(filled: Database) -> Iterator[Attacker]:
    opened = Attacker(filled)
    yield opened
    opened.connection.close()


REFUSED = (
    score(OTHERS),
    score(OTHERS) + " RETURNING *",
    score(OWN, ", status", ", 'sent'"),
    score(OWN, ", sent_at", ", now()"),
    score(OWN, ", created_at", ", now()"),
    "UPDATE public.langfuse_scores SET status = 'sent'",
    "UPDATE public.langfuse_scores SET value = 0 RETURNING *",
    "DELETE FROM public.langfuse_scores RETURNING *",
    "SELECT * FROM public.langfuse_scores FOR UPDATE",
    score(OWN) + " ON CONFLICT (id) DO UPDATE SET value = 0 RETURNING *",
    "TRUNCATE public.langfuse_traces CASCADE",
    "LOCK TABLE public.langfuse_traces IN ACCESS EXCLUSIVE MODE",
    "ALTER TABLE public.langfuse_traces DISABLE ROW LEVEL SECURITY",
    'DROP POLICY "Users can view their own traces" ON public.langfuse_traces',
    "CREATE POLICY mine ON public.langfuse_traces USING (true)",
    "CREATE TRIGGER t BEFORE INSERT ON public.langfuse_scores EXECUTE FUNCTION now()",
    # Not fewer rows, but none at all.
    "SET LOCAL row_security = off; SELECT * FROM public.langfuse_scores",
    "SELECT * FROM langfuse_migrations.alembic_version",
    "INSERT INTO auth.users (id) VALUES (gen_random_uuid())",
)


def test_forbidden_statement_of_user_is_refused(attacker: Attacker) -> None:
    outcomes = {statement: attacker.refusal(statement)[0] for statement in REFUSED}
    assert outcomes == dict.fromkeys(REFUSED, PRIVILEGE)


def test_api_roles_lack_references_and_trigger_privileges(filled: Database) -> None:
    allowed = filled.execute(
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
    # The older setting comes first, and then it alone counts.
    (
        {"request.jwt.claim.sub": BEN, "request.jwt.claims": f'{{"sub": "{AOI}"}}'},
        {BEN},
    ),
)
"""Settings of a session, and whose rows they show; None if every question is an error."""


def test_claims_give_access_to_rows_of_at_most_one_user(attacker: Attacker) -> None:
    for settings, owners in CLAIMS:
        shown(attacker, settings, owners)


def shown(attacker: Attacker, settings: dict[str, str], owners: set[str] | None) -> None:
    traces = "SELECT DISTINCT user_id::text FROM public.langfuse_traces"
    scores = "SELECT DISTINCT trace_id::text FROM public.langfuse_scores"
    if owners is None:
        for question in (traces, scores, score(OWN)):
            code, _ = attacker.refusal(question, settings=settings)
            assert code in ("22P02", "22023")
        return
    trace_of = {AOI: OWN, BEN: OTHERS}
    assert {row[0] for row in attacker.run(traces, settings=settings)} == owners
    assert {row[0] for row in attacker.run(scores, settings=settings)} == {
        trace_of[owner] for owner in owners
    }
    for user, trace in trace_of.items():
        if user in owners:
            attacker.run(score(trace), settings=settings)
        else:
            assert attacker.refusal(score(trace), settings=settings)[0] == PRIVILEGE


def test_leaky_function_receives_own_rows_only(filled: Database) -> None:
    """PostgreSQL asks the policy first, however cheap a user declares a function of theirs."""
    filled.execute("CREATE TABLE public.leaked (line text); GRANT ALL ON leaked TO authenticated")
    attacker = Attacker(filled)
    leaked = attacker.run(
        "CREATE FUNCTION pg_temp.leak(line text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001"
        " AS $$ BEGIN INSERT INTO public.leaked VALUES (line); RETURN true; END $$",
        "SELECT * FROM public.langfuse_scores WHERE pg_temp.leak(trace_id::text)",
        "SELECT * FROM public.langfuse_traces WHERE pg_temp.leak(trace_id::text)",
        "SELECT DISTINCT line FROM public.leaked",
    )
    attacker.connection.close()
    assert leaked == [(OWN,)]


def test_pg_stats_shows_no_values_to_user(filled: Database, attacker: Attacker) -> None:
    filled.execute("ANALYZE langfuse_traces; ANALYZE langfuse_scores")
    found = "SELECT count(*) FROM pg_stats WHERE tablename LIKE 'langfuse%%'"
    assert attacker.run(found.replace("%%", "%")) == [(0,)]


def test_insert_returning_returns_new_row_only(attacker: Attacker) -> None:
    added = attacker.run(score(OWN) + " RETURNING trace_id::text, status, sent_at")
    assert added == [(OWN, "pending", None)]


def test_score_on_trace_of_other_user_fails_like_score_on_unknown_trace(attacker: Attacker) -> None:
    """The policy is asked before the foreign key, so that its error tells nothing."""
    assert attacker.refusal(score(OTHERS)) == attacker.refusal(score(UNKNOWN))
    invalid = {"given": "'user_feedback', 7"}
    assert attacker.refusal(score(OTHERS, **invalid)) == attacker.refusal(score(UNKNOWN, **invalid))


def test_user_can_probe_id_of_score_of_other_user(filled: Database, attacker: Attacker) -> None:
    """Remains possible: who knows the random id learns that it is taken, and nothing more."""
    ((taken,),) = filled.execute(
        f"SELECT id::text FROM langfuse_scores WHERE trace_id = '{OTHERS}'"
    )
    code, message = attacker.refusal(score(OWN, ", id", f", '{taken}'"))
    assert code == "23505"
    assert OTHERS not in message
    kept = attacker.run(score(OWN, ", id", f", '{taken}'") + " ON CONFLICT DO NOTHING RETURNING *")
    assert kept == []


COUNTING = " AS 'SELECT count(*) FROM public.langfuse_scores'"


@pytest.mark.parametrize(
    ("made", "seen"),
    [
        ("VIEW public.v AS SELECT trace_id FROM public.langfuse_scores", 2),
        (
            "VIEW public.v WITH (security_invoker = true) AS SELECT trace_id FROM langfuse_scores",
            1,
        ),
        ("MATERIALIZED VIEW public.v AS SELECT trace_id FROM public.langfuse_scores", 2),
        ("FUNCTION f() RETURNS bigint LANGUAGE sql SECURITY DEFINER" + COUNTING, 2),
        ("FUNCTION f() RETURNS bigint LANGUAGE sql" + COUNTING, 1),
    ],
)
def test_granted_view_or_function_of_owner_shows_all_rows_unless_invoker(
    filled: Database, attacker: Attacker, made: str, seen: int
) -> None:
    """Remains possible: a view or function of a role that no policy applies to shows all rows."""
    if "security_invoker" in made and filled.execute("SHOW server_version_num") < [("150000",)]:
        pytest.skip("security_invoker exists from PostgreSQL 15 on")
    filled.execute(f"CREATE {made}")
    if "FUNCTION" in made:
        filled.execute("GRANT EXECUTE ON FUNCTION f() TO authenticated")
    else:
        filled.execute("GRANT SELECT ON v TO authenticated")
    question = "SELECT public.f()" if "FUNCTION" in made else "SELECT count(*) FROM public.v"
    assert attacker.run(question) == [(seen,)]


def test_view_of_role_without_bypassrls_shows_own_rows(
    filled: Database, attacker: Attacker
) -> None:
    """The policy is asked for the view's owner, and auth.uid() still names who asks."""
    filled.execute(
        "GRANT CREATE ON SCHEMA public TO authenticated; SET ROLE authenticated;"
        "CREATE VIEW public.v AS SELECT trace_id FROM public.langfuse_scores; RESET ROLE;"
        "REVOKE CREATE ON SCHEMA public FROM authenticated"
    )
    assert attacker.run("SELECT count(*) FROM public.v") == [(1,)]


def test_user_cannot_create_objects_in_any_schema(attacker: Attacker) -> None:
    for schema in ("public", "auth", "langfuse_migrations"):
        assert attacker.refusal(f"CREATE VIEW {schema}.v AS SELECT 1")[0] == PRIVILEGE


def test_user_can_insert_status_at_last_revision_of_plan(database: Database) -> None:
    """The attack succeeds before the access is hardened, so the test can fail."""
    migrations.upgrade(database.url, POLICIES)
    insert_example_rows(database)
    attacker = Attacker(database)
    attacker.run(score(OWN, ", status", ", 'sent'"))
    attacker.connection.close()
