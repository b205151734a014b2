"""Harden access to the Langfuse tables, and speed up the policies.

Why: beyond the plan. The plan's policies are correct, but they call auth.uid() once per row and
    read all of langfuse_scores for every query. Two tables have no row level security. A user
    can write the status and the times of a score, which only the server must set. The policies
    keep their names and the same visible rows. The grants are repeated, so that a database on
    which the plan was run by hand has the same grants afterwards.
    No form of the policy for reading scores is the fastest for every query. This form lists the
    user's own traces, and uses the list with the index on langfuse_scores.trace_id, which EXISTS
    and IN do not. The list is also built to read the scores of one trace.
    docs/explanation/rls.md has the measurements.
Locks: ACCESS EXCLUSIVE on the four tables. All waits together are at most one lock_timeout, and
    the locks are held for milliseconds. Before them, SHARE UPDATE EXCLUSIVE, which no read or write
    waits for, cancels an autovacuum.
    If supautils.policy_grants lists the role, supautils locks the listed tables at each policy
    statement, as hosted Supabase does. They are then locked in the same budget, auth.users first.
Duration: milliseconds, independent of the number of rows.
Reversible: yes, without loss of data. The downgrade restores the policies and the grants of
    20251113000005.
If interrupted: the transaction is rolled back, for an upgrade and a downgrade. Run the same
    command again.

Revision ID: 20261123000001
Revises: 20251113000005
"""

from alembic import op

from langfuse_schema import operations

revision = "20261123000001"
down_revision = "20251113000005"
branch_labels = None
depends_on = None

# The order of the locks. Under the policies, a query on scores locks langfuse_traces second.
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

# Name, table, rule of the plan, rule of this revision.
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
    operations.lock_tables(
        {f"public.{table}": "ACCESS EXCLUSIVE" for table in TABLES}, policies=True
    )
