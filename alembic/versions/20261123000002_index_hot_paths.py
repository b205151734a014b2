"""Add indexes for frequent queries.

Why: beyond the plan. idx_langfuse_scores_pending is for the job that sends scores with
    WHERE status = 'pending' ORDER BY created_at LIMIT n FOR UPDATE SKIP LOCKED.
    The job reads the oldest rows from the index without sorting the backlog. ORDER BY
    created_at, id works too. idx_langfuse_traces_user_id_created_at is for a user's latest
    traces, WHERE user_id = … ORDER BY created_at DESC LIMIT n, with and without row level
    security. Under the policy, the planner has no value for the user, and would sort all traces
    of a user with many. idx_langfuse_traces_user_id_trace_id is for the policies on scores.
    They list the user's own traces, or find one of them, without reading the table.
Locks: SHARE UPDATE EXCLUSIVE on langfuse_scores, then on langfuse_traces, never on both. The
    indexes are built CONCURRENTLY, so reads and writes continue.
Duration: it grows with the rows of both tables. Each build also waits for transactions that
    were open at its start.
Reversible: yes, without loss of data. The downgrade drops the indexes in one transaction, under
    ACCESS EXCLUSIVE on the two tables for milliseconds.
If interrupted: the completed indexes are kept, and one index can be INVALID. Run the same
    command again. It keeps the completed indexes and builds the missing ones.

Revision ID: 20261123000002
Revises: 20261123000001
"""

from alembic import op

from langfuse_schema import operations

revision = "20261123000002"
down_revision = "20261123000001"
branch_labels = None
depends_on = None

INDEXES = (
    (
        "idx_langfuse_scores_pending",
        "langfuse_scores",
        ["created_at", "id"],
        "status = 'pending'::text",
    ),
    (
        "idx_langfuse_traces_user_id_created_at",
        "langfuse_traces",
        ["user_id", "created_at"],
        None,
    ),
    (
        "idx_langfuse_traces_user_id_trace_id",
        "langfuse_traces",
        ["user_id", "trace_id"],
        None,
    ),
)

LOCKED = {f"public.{table}": "ACCESS EXCLUSIVE" for _, table, *_ in INDEXES}


def upgrade() -> None:
    for name, table, columns, where in INDEXES:
        operations.create_index_online(name, table, columns, where=where)


def downgrade() -> None:
    operations.lock_tables(LOCKED)
    for name, table, *_ in reversed(INDEXES):
        op.drop_index(name, table, schema="public", if_exists=True)


def discard_partial_upgrade() -> None:
    condition = " OR ".join(is_built(name, table) for name, table, *_ in INDEXES)
    operations.lock_tables(LOCKED, condition=condition)
    for name, table, *_ in reversed(INDEXES):
        op.execute(
            f"""
DO $$
BEGIN
  IF {is_built(name, table)} THEN
    DROP INDEX public.{name};
  END IF;
END $$"""
        )


def is_built(name: str, table: str) -> str:
    # An index of that name on another table belongs to the app.
    return f"""EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass('public.{name}')
             AND indrelid = to_regclass('public.{table}'))"""
