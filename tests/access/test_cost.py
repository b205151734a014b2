"""The cost of a query depends on the user's own rows only, by the plans of PostgreSQL.

benchmarks/rls.py measures the times.
"""

from __future__ import annotations

import json

import pytest

from langfuse_schema import migrations
from tests.helpers.databases import HARDENED, POLICIES, Database

FILL = """
INSERT INTO auth.users SELECT md5('user' || n)::uuid FROM generate_series(0, 199) AS n;
INSERT INTO langfuse_traces
  (trace_id, entity_type, entity_id, user_id, input, output, created_at)
SELECT md5('trace' || n)::uuid, 'reflection', gen_random_uuid(), md5('user' || n % 200)::uuid,
  repeat('in ', 30), repeat('out ', 50), now() - n * interval '1 second'
FROM generate_series(1, 20000) AS n;
INSERT INTO langfuse_scores (trace_id, score_name, value, status, created_at)
SELECT trace_id, 'user_feedback', 1,
  CASE WHEN created_at > now() - interval '2000 seconds' THEN 'pending' ELSE 'sent' END, created_at
FROM langfuse_traces;
"""

SCORES = "SELECT * FROM public.langfuse_scores"
TRACES = "SELECT * FROM public.langfuse_traces"
LATEST = " ORDER BY created_at DESC LIMIT 20"
ONE_TRACE = " WHERE trace_id = md5('trace1')::uuid"
JOINED = f"{SCORES} JOIN public.langfuse_traces USING (trace_id)"
COUNT = "SELECT count(*) FROM public.langfuse_scores"
INSERT = (
    "INSERT INTO public.langfuse_scores (trace_id, score_name, value)"
    " VALUES (md5('trace1')::uuid, 'user_feedback', 1)"
)

CLAIM = "SELECT id FROM public.langfuse_scores WHERE status = 'pending' ORDER BY {} LIMIT 100"


@pytest.fixture
def filled(database: Database) -> Database:
    migrations.upgrade(database.url, POLICIES)
    database.execute(FILL)
    return database


def plan_of(database: Database, statement: str, role: str = "authenticated") -> str:
    """Return PostgreSQL's plan of a statement of user 1, or of another role."""
    claims = json.dumps({"sub": "c7b83d51-6e7b-e8c7-a8a7-7c3e1c7b6b7e"})
    with database.connect("authenticator") as connection:
        connection.exec_driver_sql(f"SET ROLE {role}")
        connection.exec_driver_sql(f"SELECT set_config('request.jwt.claims', '{claims}', false)")
        rows = connection.exec_driver_sql(f"EXPLAIN (COSTS OFF) {statement}").scalars()
        return "\n".join(rows)


def analyze(database: Database) -> None:
    for table in ("langfuse_traces", "langfuse_scores"):
        database.execute(f"VACUUM ANALYZE {table}")


@pytest.mark.parametrize("revision", [HARDENED, "head"])
def test_query_of_user_uses_no_sequential_scan(filled: Database, revision: str) -> None:
    analyze(filled)
    assert "Seq Scan on langfuse_scores" in plan_of(filled, SCORES), (
        "the plan's policy needs no sequential scan"
    )
    migrations.upgrade(filled.url, revision)
    analyze(filled)
    queries = (
        SCORES,
        SCORES + ONE_TRACE,
        SCORES + LATEST,
        JOINED,
        COUNT,
        INSERT,
        TRACES,
        TRACES + ONE_TRACE,
    )
    plans = {query: plan_of(filled, query) for query in queries}
    assert {query: plan for query, plan in plans.items() if "Seq Scan" in plan} == {}


def test_query_for_latest_traces_needs_no_sort(filled: Database) -> None:
    migrations.upgrade(filled.url)
    analyze(filled)
    plan = plan_of(filled, TRACES + LATEST)
    assert "Backward using idx_langfuse_traces_user_id_created_at" in plan
    assert "Sort" not in plan


@pytest.mark.parametrize("order", ["created_at", "created_at, id"])
def test_query_for_oldest_pending_scores_reads_partial_index_only(
    filled: Database, order: str
) -> None:
    migrations.upgrade(filled.url)
    analyze(filled)
    claim = CLAIM.format(order) + " FOR UPDATE SKIP LOCKED"
    plan = plan_of(filled, claim, "service_role")
    assert "using idx_langfuse_scores_pending on langfuse_scores" in plan
    assert plan.count("Scan") == 1
    assert "Sort" not in plan
