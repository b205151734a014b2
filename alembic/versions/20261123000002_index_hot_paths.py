"""Add indexes for the questions that are asked all the time.

Why: beyond the plan. idx_langfuse_scores_pending serves the job that sends scores:
    WHERE status = 'pending' ORDER BY created_at LIMIT n FOR UPDATE SKIP LOCKED
    takes the oldest straight from it, without sorting the backlog; ORDER BY created_at, id too.
    idx_langfuse_traces_user_id_created_at serves a user's latest traces,
    WHERE user_id = … ORDER BY created_at DESC LIMIT n, with and without row level security:
    under the policy PostgreSQL cannot know beforehand who asks, and would sort all the traces
    of a user who has many. idx_langfuse_traces_user_id_trace_id serves the policies on scores:
    they list the user's own traces, or look one up, without reading the traces themselves.
Locks: SHARE UPDATE EXCLUSIVE on langfuse_scores, then on langfuse_traces, never both, while the
    indexes are built CONCURRENTLY: reads and writes go on.
Duration: grows with the rows of both tables; each build also waits for transactions that were
    open when it began.
Reversible: yes; nothing is lost. The downgrade drops the indexes in one transaction, under
    ACCESS EXCLUSIVE on the two tables for milliseconds.
If interrupted: an index stays, finished or INVALID. Run the same command again: it keeps what
    is finished and builds the rest.

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


def upgrade() -> None:
    for name, table, columns, where in INDEXES:
        operations.create_index_online(name, table, columns, where=where)


def downgrade() -> None:
    operations.lock_tables({f"public.{table}": "ACCESS EXCLUSIVE" for _, table, *_ in INDEXES})
    for name, table, *_ in reversed(INDEXES):
        op.drop_index(name, table, schema="public", if_exists=True)


def discard_partial_upgrade() -> None:
    downgrade()
