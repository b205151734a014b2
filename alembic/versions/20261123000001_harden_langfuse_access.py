"""Harden who may reach the Langfuse tables, and let the cost follow the user's own rows.

Why: beyond the plan. Its policies say the right thing, but ask auth.uid() once per row and read
    all of langfuse_scores for every question; two tables have no row level security; and a user
    may write the status and the times of a score, which are the server's to set. Names and
    visibility of the policies stay. The grants are stated again, so that a database on which
    the plan was run by hand ends in the same place.
    No form of the policy on reading scores is best for every question. A list of the user's own
    traces becomes a condition of the index on langfuse_scores.trace_id, which EXISTS and IN do
    not; but the list is made first, even to look up one trace. Medians in ms at 2 M traces and
    2 M scores, the plan's policies to ours with the indexes of 20261123000002, on PostgreSQL 18
    and, in brackets, 16 (benchmarks/rls.py). A user with 20 traces: all scores 130 to 0.63 (166
    to 0.42), one trace's scores 0.21 to 0.15 (0.22 to 0.17). A user with 50,000: all scores 583
    to 488 (669 to 469), a count 265 to 51 (285 to 56), and on the other side one trace's scores
    0.33 to 6.9 (0.33 to 7.3), the latest 20 scores 94 to 107 (93 to 120). To add a score, EXISTS
    looks up one trace: 0.14 (0.20) as a prepared statement, without any policy 0.10 (0.17).
Locks: ACCESS EXCLUSIVE on the four tables, waited for at most one lock_timeout together and
    held for milliseconds.
Duration: milliseconds; it grows with nothing.
Reversible: yes; nothing is lost. The downgrade restores the policies and the grants of
    20251113000005.
If interrupted: nothing stays behind, upwards or downwards; run the same command again.

Revision ID: 20261123000001
Revises: 20251113000005
"""

from alembic import op

from langfuse_schema import operations

revision = "20261123000001"
down_revision = "20251113000005"
branch_labels = None
depends_on = None

# In the order in which they are locked: a reader of scores goes on to traces.
TABLES = ("langfuse_batch_runs", "rate_limit_logs", "langfuse_scores", "langfuse_traces")

LEFT_OPEN = ("langfuse_batch_runs", "rate_limit_logs")

SERVICE = {"service_role": "SELECT, INSERT, UPDATE, DELETE"}

USERS_BEFORE = {
    "langfuse_traces": {"authenticated": "SELECT"},
    "langfuse_scores": {"authenticated": "SELECT, INSERT"},
}

USERS = {
    "langfuse_traces": {"authenticated": "SELECT"},
    "langfuse_scores": {
        "authenticated": "SELECT, INSERT (id, trace_id, score_name, value, comment, metadata)"
    },
}

# Name, table, the plan's rule, and ours.
POLICIES = (
    (
        "Users can view their own traces",
        "langfuse_traces",
        "USING (auth.uid() = user_id)",
        "USING ((SELECT auth.uid()) = user_id)",
    ),
    (
        "Users can view scores for their traces",
        "langfuse_scores",
        """USING (
  EXISTS (
    SELECT 1 FROM public.langfuse_traces
    WHERE langfuse_traces.trace_id = langfuse_scores.trace_id
    AND langfuse_traces.user_id = auth.uid()
  )
)""",
        """USING (
  trace_id = ANY (ARRAY(
    SELECT langfuse_traces.trace_id FROM public.langfuse_traces
    WHERE langfuse_traces.user_id = (SELECT auth.uid())
  ))
)""",
    ),
    (
        "Users can insert scores for their traces",
        "langfuse_scores",
        """WITH CHECK (
  EXISTS (
    SELECT 1 FROM public.langfuse_traces
    WHERE langfuse_traces.trace_id = langfuse_scores.trace_id
    AND langfuse_traces.user_id = auth.uid()
  )
)""",
        """WITH CHECK (
  EXISTS (
    SELECT 1 FROM public.langfuse_traces
    WHERE langfuse_traces.trace_id = langfuse_scores.trace_id
    AND langfuse_traces.user_id = (SELECT auth.uid())
  )
)""",
    ),
)


def upgrade() -> None:
    lock_tables()
    for table in LEFT_OPEN:
        op.execute(f"ALTER TABLE public.{table} ENABLE ROW LEVEL SECURITY")
    for name, table, _, rule in POLICIES:
        op.execute(f'ALTER POLICY "{name}"\nON public.{table} {rule}')
    for table in TABLES:
        operations.set_table_access(f"public.{table}", {**SERVICE, **USERS.get(table, {})})


def downgrade() -> None:
    lock_tables()
    for table in reversed(TABLES):
        operations.set_table_access(f"public.{table}", {**SERVICE, **USERS_BEFORE.get(table, {})})
    for name, table, rule, _ in reversed(POLICIES):
        op.execute(f'ALTER POLICY "{name}"\nON public.{table} {rule}')
    for table in reversed(LEFT_OPEN):
        op.execute(f"ALTER TABLE public.{table} DISABLE ROW LEVEL SECURITY")


def lock_tables() -> None:
    operations.lock_tables({f"public.{table}": "ACCESS EXCLUSIVE" for table in TABLES})
