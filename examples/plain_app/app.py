"""An app without a framework. It stores the vote of a user on an answer.

pip install langfuse-schema
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import sqlalchemy as sa

from langfuse_schema import ScoreName, langfuse_scores, langfuse_traces

if TYPE_CHECKING:
    from sqlalchemy import Connection


def connect(database_url: str) -> Connection:
    """Connect to a database.

    `postgresql://` means psycopg 3 in SQLAlchemy 2.1 and psycopg2 in 2.0, and no version accepts
    `postgres://`. So the driver is named. libpq rejects the parameters of other clients, which URLs
    of Supabase and Prisma can have.
    """
    url = sa.make_url(database_url).set(drivername="postgresql+psycopg2")
    url = url.difference_update_query(["pgbouncer", "connection_limit", "pool_timeout", "schema"])
    return sa.create_engine(url, poolclass=sa.NullPool).connect()


def vote(connection: Connection, trace_id: UUID, *, good: bool) -> bool:
    """Store a vote. Return False if the connected user cannot read the trace."""
    visible = sa.select(langfuse_traces.c.trace_id).where(langfuse_traces.c.trace_id == trace_id)
    if connection.scalar(visible) is None:
        return False
    new = {"trace_id": trace_id, "score_name": ScoreName.USER_FEEDBACK.value, "value": int(good)}
    connection.execute(sa.insert(langfuse_scores).values(new))
    return True
