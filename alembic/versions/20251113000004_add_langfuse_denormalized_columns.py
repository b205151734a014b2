"""Add langfuse_trace_id to the app's three tables.

Why: the plan's マイグレーション2. A message or a reflection refers directly to its trace, without
    a join by entity_type and entity_id. Deleting a trace keeps the row and clears the link.
Locks: for one app table at a time, SHARE ROW EXCLUSIVE on langfuse_traces, then ACCESS EXCLUSIVE
    on the app table. Both waits together are at most one lock_timeout. The locks are held for
    milliseconds, because the column has no default and the foreign key needs no scan. The index
    is built CONCURRENTLY under SHARE UPDATE EXCLUSIVE, so reads and writes continue. Before the
    column, the same mode on both tables cancels an autovacuum.
Duration: the index build grows with the rows of the app table. It waits for transactions that
    were open at its start.
Reversible: yes. The downgrade drops the columns and their links in one transaction. It takes
    ACCESS EXCLUSIVE on langfuse_traces and the three tables for milliseconds.
If interrupted: the completed columns and indexes are kept, and one index can be INVALID. Run
    the same command again. It resumes and rebuilds an INVALID index. An interrupted downgrade
    is rolled back.

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

LOCKED = {f"public.{table}": "ACCESS EXCLUSIVE" for table in ("langfuse_traces", *APP_TABLES)}


def upgrade() -> None:
    for table in APP_TABLES:
        if not operations.has_column(table, "langfuse_trace_id"):
            add_column(table)
        operations.create_index_online(
            f"idx_{table}_langfuse_trace_id", table, ["langfuse_trace_id"]
        )


def downgrade() -> None:
    operations.lock_tables(LOCKED)
    for table in reversed(APP_TABLES):
        # The app can have dropped its table before.
        op.execute(f"ALTER TABLE IF EXISTS public.{table} DROP COLUMN IF EXISTS langfuse_trace_id")


def discard_partial_upgrade() -> None:
    operations.lock_tables(LOCKED, condition=" OR ".join(map(is_linked, APP_TABLES)))
    for table in reversed(APP_TABLES):
        op.execute(
            f"""
DO $$
BEGIN
  IF {is_linked(table)} THEN
    ALTER TABLE public.{table} DROP COLUMN langfuse_trace_id;
  END IF;
END $$"""
        )


def is_linked(table: str) -> str:
    # The column comes with its foreign key. A column without it belongs to the app.
    return f"""EXISTS (SELECT FROM pg_constraint WHERE conrelid = to_regclass('public.{table}')
             AND conname = '{table}_langfuse_trace_id_fkey'
             AND confrelid = to_regclass('public.langfuse_traces'))"""


def add_column(table: str) -> None:
    operations.lock_tables(
        {"public.langfuse_traces": "SHARE ROW EXCLUSIVE", f"public.{table}": "ACCESS EXCLUSIVE"}
    )
    # An inline reference lets PostgreSQL add the foreign key of the new column without a scan.
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
