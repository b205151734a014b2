"""${message}

Why:
Locks:
Duration:
Reversible:
If interrupted:

Revision ID: ${up_revision}
Revises: ${down_revision | comma,n}
"""

# Every lock of a transaction is taken first, by operations.lock_tables, the most used table last.
# New tables are closed by operations.set_table_access, and existing ones get indexes by
# operations.create_index_online. A revision that is not one transaction is idempotent step by
# step, and defines discard_partial_upgrade(), which drops what an interrupted upgrade leaves.

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
