"""A FastAPI app with its own migrations. It records a trace with each answer.

pip install fastapi asyncpg greenlet psycopg2-binary langfuse-schema
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated
from uuid import UUID, uuid4

import sqlalchemy as sa
from fastapi import Depends, FastAPI, Header, Request
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from langfuse_schema import EntityType, copy_tables, langfuse_trace_id_column, langfuse_traces

metadata = sa.MetaData()
copy_tables(metadata)
messages, encouragements, reflections = (
    sa.Table(
        name,
        metadata,
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        langfuse_trace_id_column(),
    )
    for name in ("ai_coach_messages", "encouragement_messages", "reflections")
)


def engine_url(database_url: str, driver: str) -> sa.URL:
    """Return the URL for SQLAlchemy.

    `postgresql://` means psycopg 3 in SQLAlchemy 2.1 and psycopg2 in 2.0, and no version accepts
    `postgres://`. So the driver is named. The drivers reject the parameters of other clients, which
    URLs of Supabase and Prisma can have.
    """
    url = sa.make_url(database_url).set(drivername=f"postgresql+{driver}")
    return url.difference_update_query(["pgbouncer", "connection_limit", "pool_timeout", "schema"])


def sync_engine(database_url: str) -> sa.Engine:
    """Return a synchronous engine, for migrations and tests."""
    return sa.create_engine(engine_url(database_url, "psycopg2"), poolclass=sa.NullPool)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the engine when the app starts, and close it when the app stops."""
    app.state.engine = create_async_engine(engine_url(os.environ["DATABASE_URL"], "asyncpg"))
    yield
    await app.state.engine.dispose()


app = FastAPI(lifespan=lifespan)


async def transaction(request: Request) -> AsyncIterator[AsyncConnection]:
    """Yield a connection in a transaction for one request."""
    async with request.app.state.engine.begin() as connection:
        yield connection


Transaction = Annotated[AsyncConnection, Depends(transaction)]
User = Annotated[UUID, Header(alias="X-User")]  # A real app reads it from the verified token.


@app.post("/answers")
async def answer(question: str, user: User, connection: Transaction) -> dict[str, UUID]:
    """Answer a question, and store the message with its trace."""
    message, trace = uuid4(), uuid4()
    text = f"You asked: {question}"
    await connection.execute(
        sa.insert(langfuse_traces).values(
            trace_id=trace,
            entity_type=EntityType.AI_COACH_MESSAGE.value,
            entity_id=message,
            user_id=user,
            input=question,
            output=text,
        )
    )
    await connection.execute(
        sa.insert(messages).values(id=message, user_id=user, body=text, langfuse_trace_id=trace)
    )
    return {"message": message, "trace": trace}
