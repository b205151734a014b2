"""${message}

Why:
Locks:
Duration:
Reversible:
If interrupted:

Revision ID: ${up_revision}
Revises: ${down_revision | comma,n}
"""

# Take all locks of a transaction first, with operations.lock_tables, the most used table last.
# Set the access to each new table with operations.set_table_access. Build each index on an existing
# table with operations.create_index_online. If the revision is not one transaction, make each step
# idempotent, and define discard_partial_upgrade(). It drops the leftovers of an interrupted upgrade.

from alembic import op
${imports if imports else ""}
from langfuse_schema import operations

revision = "${up_revision}"
down_revision = "${down_revision}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
