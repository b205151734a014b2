"""The tests of the app."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest
import sqlalchemy as sa
from app import engine_url, messages, sync_engine
from fastapi.testclient import TestClient
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import create_async_engine

from langfuse_schema import langfuse_traces
from langfuse_schema.testing import as_user


def test_answer_stores_message_with_its_trace(
    client: TestClient, users: list[UUID], langfuse_database_url: str
) -> None:
    response = client.post("/answers?question=Why", headers={"X-User": str(users[0])})
    assert response.status_code == 200
    with sync_engine(langfuse_database_url).connect() as connection:
        stored = connection.execute(sa.select(messages)).one()
    assert str(stored.langfuse_trace_id) == response.json()["trace"]


def test_user_reads_own_trace_only(
    client: TestClient, users: list[UUID], langfuse_database_url: str
) -> None:
    for user in users:
        client.post("/answers?question=Why", headers={"X-User": str(user)})
    owners = sa.select(langfuse_traces.c.user_id)
    with sync_engine(langfuse_database_url).connect() as connection:
        assert len(connection.scalars(owners).all()) == 2
        as_user(connection, users[0])
        assert connection.scalars(owners).all() == [users[0]]


def test_visitor_reads_no_trace(langfuse_database_url: str) -> None:
    async def read() -> None:
        engine = create_async_engine(engine_url(langfuse_database_url, "asyncpg"))
        try:
            async with engine.connect() as connection:
                await as_user(connection, None)
                await connection.execute(sa.select(langfuse_traces))
        finally:
            await engine.dispose()

    with pytest.raises(ProgrammingError, match="permission denied"):
        asyncio.run(read())
