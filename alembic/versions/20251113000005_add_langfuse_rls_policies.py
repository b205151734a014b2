"""Add row level security to traces and scores.

Why: the plan's マイグレーション3: users read their own traces, read the scores of their own traces,
    and add scores to them. The policies say which rows; the grants made here let authenticated
    in at all, and no other role, whatever the default privileges say.
Locks: ACCESS EXCLUSIVE on langfuse_traces and langfuse_scores, waited for at most one
    lock_timeout together and held for milliseconds.
Duration: milliseconds; it grows with nothing.
Reversible: yes; nothing is lost. The downgrade takes the grants of authenticated away with the
    policies, so that no row is open to more people than before.
If interrupted: nothing stays behind, upwards or downwards; run the same command again.

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

# The subquery of the policies on scores reads traces as the user, hence SELECT there.
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
    operations.lock_tables({f"public.{table}": "ACCESS EXCLUSIVE" for table in USERS})
