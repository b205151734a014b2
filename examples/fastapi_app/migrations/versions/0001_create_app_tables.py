"""Create the app tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

TABLES = ("ai_coach_messages", "encouragement_messages", "reflections")


def upgrade() -> None:
    """Create the tables, and grant access to the server's role only."""
    for name in TABLES:
        op.create_table(
            name,
            sa.Column("id", sa.Uuid, primary_key=True),
            sa.Column("user_id", sa.Uuid, nullable=False),
            sa.Column("body", sa.Text, nullable=False),
        )
        op.execute(f"ALTER TABLE {name} ENABLE ROW LEVEL SECURITY")
        op.execute(f"GRANT SELECT, INSERT ON {name} TO service_role")


def downgrade() -> None:
    """Drop the tables."""
    for name in TABLES:
        op.drop_table(name)
