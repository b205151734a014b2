"""Add row level security to traces and scores.

Why: the plan's マイグレーション3. Users can read their own traces and the scores of these traces,
    and add scores to them. The policies limit the rows. The grants give access to authenticated
    and service_role only, under all default privileges.
Locks: ACCESS EXCLUSIVE on langfuse_traces and langfuse_scores. Both waits together are at most
    one lock_timeout, and the locks are held for milliseconds. Before them, SHARE UPDATE EXCLUSIVE,
    which no read or write waits for, cancels an autovacuum.
    If supautils.policy_grants lists the role, supautils locks the listed tables at each policy
    statement, as hosted Supabase does. They are then locked in the same budget, auth.users first.
Duration: milliseconds, independent of the number of rows.
Reversible: yes, without loss of data. The downgrade revokes the grants of authenticated together
    with the policies, so that it opens no row to more users.
If interrupted: the transaction is rolled back, for an upgrade and a downgrade. Run the same
    command again.

Revision ID: 20251113000005
Revises: 20251113000004
"""

from alembic import op

from langfuse_schema import operations

revision = "20251113000005"
down_revision = "20251113000004"
branch_labels = None
depends_on = None
of_plan = True

SERVICE = {"service_role": "SELECT, INSERT, UPDATE, DELETE"}

# The policies on scores read traces with the privileges of the user, which must include SELECT.
USERS = {
    "langfuse_traces": {"authenticated": "SELECT"},
    "langfuse_scores": {"authenticated": "SELECT, INSERT"},
}

OWN_TRACE = """EXISTS (
    SELECT 1 FROM public.langfuse_traces
    WHERE langfuse_traces.trace_id = langfuse_scores.trace_id
    AND langfuse_traces.user_id = auth.uid()
  )"""

POLICIES = (
    (
        "Users can view their own traces",
        "langfuse_traces",
        "FOR SELECT\nUSING (auth.uid() = user_id)",
    ),
    (
        "Users can view scores for their traces",
        "langfuse_scores",
        f"FOR SELECT\nUSING (\n  {OWN_TRACE}\n)",
    ),
    (
        "Users can insert scores for their traces",
        "langfuse_scores",
        f"FOR INSERT\nWITH CHECK (\n  {OWN_TRACE}\n)",
    ),
)


def upgrade() -> None:
    lock_tables()
    for table in USERS:
        op.execute(f"ALTER TABLE public.{table} ENABLE ROW LEVEL SECURITY")
    for name, table, rule in POLICIES:
        op.execute(f'CREATE POLICY "{name}"\nON public.{table} {rule}')
    for table, grants in USERS.items():
        operations.set_table_access(f"public.{table}", {**SERVICE, **grants})


def downgrade() -> None:
    lock_tables()
    for table in reversed(USERS):
        operations.set_table_access(f"public.{table}", SERVICE)
    for name, table, _ in reversed(POLICIES):
        op.execute(f'DROP POLICY "{name}" ON public.{table}')
    for table in reversed(USERS):
        op.execute(f"ALTER TABLE public.{table} DISABLE ROW LEVEL SECURITY")


def lock_tables() -> None:
    operations.lock_tables(
        {f"public.{table}": "ACCESS EXCLUSIVE" for table in USERS}, policies=True
    )
