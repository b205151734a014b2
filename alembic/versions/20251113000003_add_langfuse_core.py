"""Add the Langfuse core tables.

Why: the plan's マイグレーション1. It creates four tables: traces of model calls, their scores,
    runs of the batch job, and counters of the rate limit. From the start,
    anon and authenticated have no access, under all default privileges. service_role can read
    and write.
Locks: SHARE ROW EXCLUSIVE on auth.users. The wait is at most one lock_timeout, and the lock is
    held for a few milliseconds. Reads continue. Sign-ups and other writes wait that long.
    Before it, SHARE UPDATE EXCLUSIVE, which no read or write waits for, cancels an autovacuum.
Duration: milliseconds, independent of the number of rows.
Reversible: yes. The downgrade drops the four tables with all their rows. It takes ACCESS
    EXCLUSIVE on them and, last, on auth.users. If an interrupted upgrade of the next revision
    left columns, it drops them first, under ACCESS EXCLUSIVE on langfuse_traces and the app's
    three tables.
If interrupted: the transaction is rolled back, for an upgrade and a downgrade. Run the same
    command again.

Revision ID: 20251113000003
Revises:
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from langfuse_schema import operations

revision = "20251113000003"
down_revision = None
branch_labels = None
depends_on = None
of_plan = True

TABLES = ("langfuse_traces", "langfuse_scores", "langfuse_batch_runs", "rate_limit_logs")

INDEXES = (
    ("idx_langfuse_traces_entity", "langfuse_traces", ["entity_type", "entity_id"]),
    ("idx_langfuse_traces_user_id", "langfuse_traces", ["user_id"]),
    ("idx_langfuse_traces_created_at", "langfuse_traces", ["created_at"]),
    ("idx_langfuse_scores_trace_id", "langfuse_scores", ["trace_id"]),
    ("idx_langfuse_scores_status", "langfuse_scores", ["status"]),
    ("idx_langfuse_scores_created_at", "langfuse_scores", ["created_at"]),
    ("idx_langfuse_batch_runs_batch_name", "langfuse_batch_runs", ["batch_name"]),
    ("idx_langfuse_batch_runs_created_at", "langfuse_batch_runs", ["created_at"]),
    ("idx_rate_limit_logs_user_id", "rate_limit_logs", ["user_id"]),
)


def upgrade() -> None:
    operations.lock_tables({"auth.users": "SHARE ROW EXCLUSIVE"})
    create_traces()
    create_scores()
    create_batch_runs()
    create_rate_limit_logs()
    for name, table, columns in INDEXES:
        op.create_index(name, table, columns, schema="public")
    op.create_index(
        "idx_rate_limit_logs_unique",
        "rate_limit_logs",
        ["user_id", "endpoint", "window_start"],
        schema="public",
        unique=True,
    )
    for table in TABLES:
        operations.set_table_access(
            f"public.{table}", {"service_role": "SELECT, INSERT, UPDATE, DELETE"}
        )


def downgrade() -> None:
    operations.report_rows(TABLES)
    locked = (*(f"public.{table}" for table in TABLES), "auth.users")
    operations.lock_tables(dict.fromkeys(locked, "ACCESS EXCLUSIVE"))
    for table in reversed(TABLES):
        op.drop_table(table, schema="public")


def create_traces() -> None:
    op.create_table(
        "langfuse_traces",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("trace_id", sa.Uuid(), nullable=False),
        sa.Column("entity_type", sa.Text(), nullable=False),
        sa.Column("entity_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("input", sa.Text(), nullable=False),
        sa.Column("output", sa.Text(), nullable=False),
        sa.Column("metadata", postgresql.JSONB()),
        sa.Column("tags", sa.ARRAY(sa.Text())),
        created_at(),
        sa.PrimaryKeyConstraint("id", name="langfuse_traces_pkey"),
        sa.UniqueConstraint("trace_id", name="langfuse_traces_trace_id_key"),
        sa.CheckConstraint(
            "entity_type IN ('ai_coach_message', 'encouragement_message',"
            " 'daily_status', 'reflection')",
            name="langfuse_traces_entity_type_check",
        ),
        sa.ForeignKeyConstraint(
            ["user_id"],
            ["auth.users.id"],
            name="langfuse_traces_user_id_fkey",
            ondelete="CASCADE",
        ),
        schema="public",
    )


def create_scores() -> None:
    op.create_table(
        "langfuse_scores",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("trace_id", sa.Uuid(), nullable=False),
        sa.Column("score_name", sa.Text(), nullable=False),
        sa.Column("value", sa.Numeric(), nullable=False),
        sa.Column("comment", sa.Text()),
        sa.Column("metadata", postgresql.JSONB()),
        sa.Column("status", sa.Text(), server_default=sa.text("'pending'"), nullable=False),
        sa.Column("sent_at", sa.DateTime(timezone=True)),
        created_at(),
        sa.PrimaryKeyConstraint("id", name="langfuse_scores_pkey"),
        sa.ForeignKeyConstraint(
            ["trace_id"],
            ["public.langfuse_traces.trace_id"],
            name="langfuse_scores_trace_id_fkey",
            ondelete="CASCADE",
        ),
        sa.CheckConstraint(
            "score_name IN ('user_feedback', 'mission_completed',"
            " 'next_day_activity', 'weekly_completion_rate')",
            name="langfuse_scores_score_name_check",
        ),
        sa.CheckConstraint("value IN (0, 1)", name="langfuse_scores_value_check"),
        sa.CheckConstraint(
            "status IN ('pending', 'sent', 'failed')", name="langfuse_scores_status_check"
        ),
        schema="public",
    )


def create_batch_runs() -> None:
    op.create_table(
        "langfuse_batch_runs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("batch_name", sa.Text(), nullable=False),
        sa.Column("scores_created", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("scores_sent", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("errors", postgresql.JSONB()),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("completed_at", sa.DateTime(timezone=True)),
        created_at(),
        sa.PrimaryKeyConstraint("id", name="langfuse_batch_runs_pkey"),
        schema="public",
    )


def create_rate_limit_logs() -> None:
    op.create_table(
        "rate_limit_logs",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("window_start", sa.DateTime(timezone=True), nullable=False),
        sa.Column("request_count", sa.Integer(), server_default=sa.text("1"), nullable=False),
        created_at(),
        sa.PrimaryKeyConstraint("id", name="rate_limit_logs_pkey"),
        sa.ForeignKeyConstraint(
            ["user_id"],
            ["auth.users.id"],
            name="rate_limit_logs_user_id_fkey",
            ondelete="CASCADE",
        ),
        schema="public",
    )


def created_at() -> sa.Column[object]:
    return sa.Column(
        "created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
    )
