"""The tests of the app."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from app import connect, vote
from sqlalchemy import Connection

from langfuse_schema import EntityType, langfuse_scores, langfuse_traces
from langfuse_schema.testing import as_user


@pytest.fixture
def connection(langfuse_database_url: str):  # noqa: ANN201 - an iterator of Connection
    """Yield a connection to the database of the test."""
    with connect(langfuse_database_url) as connection:
        yield connection


@pytest.fixture
def trace(connection: Connection) -> tuple[UUID, UUID]:
    """Insert a user and a trace, and return both ids."""
    user, trace = uuid4(), uuid4()
    connection.execute(sa.text("INSERT INTO auth.users (id) VALUES (:id)"), {"id": user})
    new = {"trace_id": trace, "entity_type": EntityType.REFLECTION.value, "entity_id": uuid4()}
    connection.execute(
        sa.insert(langfuse_traces).values(**new, user_id=user, input="Why?", output="Because.")
    )
    connection.commit()
    return user, trace


def test_vote_on_own_trace_is_stored(connection: Connection, trace: tuple[UUID, UUID]) -> None:
    user, trace_id = trace
    as_user(connection, user)
    assert vote(connection, trace_id, good=True)
    connection.commit()
    assert connection.scalars(sa.select(langfuse_scores.c.value)).all() == [1]


def test_vote_on_trace_of_other_user_is_refused(
    connection: Connection, trace: tuple[UUID, UUID]
) -> None:
    as_user(connection, uuid4())
    assert not vote(connection, trace[1], good=True)
