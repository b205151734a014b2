"""The examples `record_trace` and `rate_limit`, and the tables through asyncpg."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
import rate_limit
import record_trace
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from langfuse_schema import (
    ScoreName,
    create_all,
    langfuse_scores,
    langfuse_traces,
    migrations,
    rate_limit_logs,
)
from tests.helpers.databases import AOI, BEN, TRACE, Database, insert_example_rows

HOUR = timedelta(hours=1)


@pytest.fixture
def engine(database: Database) -> sa.Engine:
    migrations.upgrade(database.url)
    return sa.create_engine(database.url, poolclass=sa.NullPool)


def test_record_answer_stores_message_with_its_trace(engine: sa.Engine) -> None:
    trace_id = uuid4().hex
    message = record_trace.record_answer(
        engine, user_id=UUID(AOI), question="How are you?", answer="Well.", trace_id=trace_id
    )
    with engine.connect() as connection:
        found = connection.execute(
            sa.select(langfuse_traces.c.trace_id, langfuse_traces.c.entity_id)
            .join(record_trace.messages, sa.true())
            .where(record_trace.messages.c.langfuse_trace_id == langfuse_traces.c.trace_id)
        ).one()
    assert (found.trace_id.hex, found.entity_id) == (trace_id, message)


def test_record_answer_rolls_back_trace_when_message_fails(engine: sa.Engine) -> None:
    arguments = {"user_id": UUID(AOI), "question": "?", "trace_id": uuid4().hex}
    with pytest.raises(IntegrityError):
        record_trace.record_answer(engine, **arguments, answer=None)  # type: ignore[arg-type]
    with engine.connect() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(langfuse_traces)) == 0


def test_rate_limit_allows_exact_limit_with_eight_concurrent_clients(engine: sa.Engine) -> None:
    def call(_: int) -> bool:
        with engine.begin() as connection:
            return rate_limit.allow(connection, UUID(AOI), "/chat", limit=50, window=HOUR)

    with ThreadPoolExecutor(8) as clients:
        allowed = list(clients.map(call, range(100)))
    assert sum(allowed) == 50
    with engine.connect() as connection:
        assert connection.scalars(sa.select(rate_limit_logs.c.request_count)).all() == [50]


def test_rate_limit_counts_windows_users_and_endpoints_separately(engine: sa.Engine) -> None:
    with engine.begin() as connection:

        def allow_request(user: str = AOI, endpoint: str = "/chat", limit: int = 1) -> bool:
            return rate_limit.allow(
                connection, UUID(user), endpoint, limit=limit, window=timedelta(days=3650)
            )

        assert [
            allow_request(),
            allow_request(),
            allow_request(BEN),
            allow_request(endpoint="/other"),
            allow_request(limit=0),
        ] == [
            True,
            False,
            True,
            True,
            False,
        ]
        connection.execute(
            sa.update(rate_limit_logs)
            .where(rate_limit_logs.c.user_id == UUID(AOI))
            .values(window_start=rate_limit_logs.c.window_start - timedelta(days=3650))
        )
        assert allow_request()
        assert rate_limit.delete_old_counters(connection, older_than=timedelta(days=3650)) >= 2


async def sign_in(connection: AsyncConnection, user: str) -> None:
    """Sign a user in for the rest of the transaction, as PostgREST does."""
    await connection.execute(sa.text("SET LOCAL ROLE authenticated"))
    claims = json.dumps({"sub": user, "role": "authenticated"})
    await connection.execute(
        sa.text("SELECT set_config('request.jwt.claims', :claims, true)"), {"claims": claims}
    )


def test_signed_in_user_reads_and_inserts_own_rows_through_asyncpg(database: Database) -> None:
    async def scenario() -> None:
        url = database.as_user("authenticator").set(drivername="postgresql+asyncpg")
        users = create_async_engine(url, poolclass=sa.NullPool)
        async with users.connect() as connection:
            await sign_in(connection, AOI)
            traces = (await connection.execute(sa.select(langfuse_traces))).all()
            assert [trace.user_id for trace in traces] == [UUID(AOI)]
            new = {"score_name": ScoreName.USER_FEEDBACK.value, "value": 1, "comment": "good"}
            own = {"trace_id": UUID(TRACE.format(1)), **new}
            await connection.execute(sa.insert(langfuse_scores).values(own))
            scores = (await connection.execute(sa.select(langfuse_scores.c.comment))).scalars()
            assert list(scores) == [None, "good"]
            for refused in (
                {"trace_id": UUID(TRACE.format(2)), **new},
                {**own, "status": "sent"},
            ):
                savepoint = await connection.begin_nested()
                with pytest.raises(DBAPIError, match=r"permission denied|row-level security"):
                    await connection.execute(sa.insert(langfuse_scores).values(refused))
                await savepoint.rollback()

    migrations.upgrade(database.url)
    insert_example_rows(database)
    asyncio.run(scenario())


def test_create_all_twice_through_asyncpg_creates_tables(database: Database) -> None:
    async def scenario() -> None:
        url = database.url.set(drivername="postgresql+asyncpg")
        async with create_async_engine(url, poolclass=sa.NullPool).begin() as connection:
            await connection.run_sync(create_all)
            await connection.run_sync(create_all)

    asyncio.run(scenario())
    migrations.stamp(database.url, "head")
    with sa.create_engine(database.url).connect() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(langfuse_traces)) == 0
