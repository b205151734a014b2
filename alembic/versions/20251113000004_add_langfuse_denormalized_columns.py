"""Add langfuse_trace_id to the app's three tables.

Why: the plan's マイグレーション2: from a message or a reflection straight to its trace, without a
    join by entity_type and entity_id. Deleting a trace keeps the row and clears the link.
Locks: for each app table by itself, never two at once: SHARE ROW EXCLUSIVE on langfuse_traces,
    then ACCESS EXCLUSIVE on the app table, waited for at most one lock_timeout together and held
    for milliseconds: the column has no default and the foreign key needs no scan. The index is
    built CONCURRENTLY, under SHARE UPDATE EXCLUSIVE: reads and writes go on.
Duration: the index build grows with the rows of the app table, and waits for transactions that
    were open when it began.
Reversible: yes; the downgrade drops the columns, with the links they hold, in one transaction.
    It takes ACCESS EXCLUSIVE on the three tables and langfuse_traces for milliseconds.
If interrupted: the columns and indexes made so far stay, perhaps one index INVALID. Run
    the same command again: it goes on where it stopped, and builds such an index anew.

Revision ID: 20251113000004
Revises: 20251113000003
"""

import sqlalchemy as sa
from alembic import op

from langfuse_schema import operations

revision = "20251113000004"
down_revision = "20251113000003"
branch_labels = None
depends_on = None
of_plan = True

APP_TABLES = ("ai_coach_messages", "encouragement_messages", "reflections")


def upgrade() -> None:
    for table in APP_TABLES:
        if not operations.has_column(table, "langfuse_trace_id"):
            add_column(table)
        operations.create_index_online(
            f"idx_{table}_langfuse_trace_id", table, ["langfuse_trace_id"]
        )


def downgrade() -> None:
    locked = ("langfuse_traces", *APP_TABLES)
    operations.lock_tables({f"public.{table}": "ACCESS EXCLUSIVE" for table in locked})
    for table in reversed(APP_TABLES):
        op.drop_column(table, "langfuse_trace_id", schema="public", if_exists=True)


def discard_partial_upgrade() -> None:
    downgrade()


def add_column(table: str) -> None:
    operations.lock_tables(
        {"public.langfuse_traces": "SHARE ROW EXCLUSIVE", f"public.{table}": "ACCESS EXCLUSIVE"}
    )
    # Inline, PostgreSQL knows that a new empty column needs no scan to be validated.
    op.add_column(
        table,
        sa.Column(
            "langfuse_trace_id",
            sa.Uuid(),
            sa.ForeignKey(
                "public.langfuse_traces.trace_id",
                name=f"{table}_langfuse_trace_id_fkey",
                ondelete="SET NULL",
            ),
        ),
        schema="public",
        if_not_exists=True,
        inline_references=True,
    )
