"""${message}

Why: which question or promise this serves.
Locks: which tables, how strong, how long. Whoever waits behind us waits that long.
Duration: what it grows with.
Reversible: what a downgrade loses.
If interrupted: what stays behind, and that the same command again heals it.

A revision is frozen history: it imports alembic, sqlalchemy, the standard library and
langfuse_schema.operations, never tables or access. Indexes on tables that may hold rows are
built by operations.create_index_online; a transaction takes all its locks first, by
operations.lock_tables; a downgrade is one transaction and begins by dropping, IF EXISTS, what an
interrupted upgrade of the next revision may have left.

Revision ID: ${up_revision}
Revises: ${down_revision | comma,n}
"""

from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
