"""The ORM examples with sync sessions, async sessions and SQLModel."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any
from uuid import UUID

import models
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from langfuse_schema import langfuse_trace_id_column, migrations
from langfuse_schema.verify import verify
from tests.helpers.databases import AOI, CHECKOUT, Database

LINKED = ("ai_coach_messages", "encouragement_messages", "reflections")


def test_sync_session_stores_message_with_trace_and_loads_relationships(
    database: Database,
) -> None:
    migrations.upgrade(database.url)
    with Session(sa.create_engine(database.url, poolclass=sa.NullPool)) as session:
        message = models.record_answer(session, user_id=UUID(AOI), question="?", answer="One two.")
        session.commit()
        assert message.trace is not None
        assert message.trace.trace_id == message.langfuse_trace_id
        assert message.trace.details == {"words": 2}
        assert models.count_words(session, UUID(AOI)) == 2
        message.trace.scores.append(models.Score(score_name="user_feedback", value=1))
        session.commit()
        (score,) = session.scalars(sa.select(models.Score))
        assert (score.trace, score.status) == (message.trace, "pending")

        session.delete(score.trace)
        session.commit()
        assert session.scalars(sa.select(models.Score)).all() == []
        # ON DELETE SET NULL keeps the message.
        assert (message.body, message.langfuse_trace_id) == ("One two.", None)


def test_async_session_loads_pending_traces_with_scores(database: Database) -> None:
    migrations.upgrade(database.url)

    async def scenario() -> None:
        url = database.url.set(drivername="postgresql+asyncpg")
        async with AsyncSession(create_async_engine(url, poolclass=sa.NullPool)) as session:
            arguments: dict[str, Any] = {"user_id": UUID(AOI), "question": "?", "answer": "Yes."}
            rated = await session.run_sync(models.record_answer, **arguments)
            await session.run_sync(models.record_answer, **arguments)
            assert rated.langfuse_trace_id is not None
            await models.rate(session, rated.langfuse_trace_id, helpful=True)
            await session.commit()
            (trace,) = await models.pending_traces(session)
            assert [score.value for score in trace.scores] == [1]

    asyncio.run(scenario())


def test_sqlmodel_base_links_each_table_once() -> None:
    import models_sqlmodel

    metadata = models_sqlmodel.SQLModel.metadata
    assert {name for name, table in metadata.tables.items() if "body" in table.c} == set(LINKED)
    for name in LINKED:
        declared, expected = metadata.tables[name], models.Base.metadata.tables[name]
        (key,), (expected_key,) = declared.foreign_key_constraints, expected.foreign_key_constraints
        assert (key.name, key.ondelete) == (expected_key.name, expected_key.ondelete)
        assert key.referred_table.name == "langfuse_traces"
        assert [one.name for one in declared.indexes] == [one.name for one in expected.indexes]


def test_column_in_sqlmodel_base_is_refused_for_second_table() -> None:
    from sqlmodel import Field, SQLModel

    class Base(SQLModel):
        metadata = sa.MetaData()
        id: int = Field(primary_key=True)
        langfuse_trace_id: UUID | None = Field(sa_column=langfuse_trace_id_column())

    type("First", (Base,), {"__module__": __name__}, table=True)
    with pytest.raises(sa.exc.InvalidRequestError, match=r"base class of SQLModel.*models\.md"):
        type("Second", (Base,), {"__module__": __name__}, table=True)


@pytest.mark.slow
@pytest.mark.parametrize("module", ["models", "models_sqlmodel"])
def test_create_all_of_models_equals_upgrade(database: Database, module: str) -> None:
    database.execute(f"DROP TABLE {', '.join(LINKED)}")
    base = "models.Base" if module == "models" else "models_sqlmodel.SQLModel"
    program = (
        f"import sys, {module}, sqlalchemy as sa;"
        f" {base}.metadata.create_all(sa.create_engine(sys.argv[1]))"
    )
    command = [sys.executable, "-c", program, database.text]
    subprocess.run(command, cwd=CHECKOUT / "examples", check=True)
    migrations.stamp(database.url, "head")
    assert verify(database.url) == []
