"""Map the Langfuse tables and the app's linked tables to classes, for sync and async sessions.

Set `target_metadata = Base.metadata` in the env.py of your app, and add the two functions of
docs/how-to/app-alembic.md.
"""

from __future__ import annotations

import datetime as dt  # noqa: TC003 - SQLAlchemy reads the annotations
import decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from sqlalchemy import func, select
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    column_property,
    declared_attr,
    mapped_column,
    relationship,
    selectinload,
)

from langfuse_schema import (
    EntityType,
    ScoreName,
    ScoreStatus,
    copy_tables,
    langfuse_trace_id_column,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session


class Base(DeclarativeBase):
    """The base class of the app's models."""


tables = copy_tables(Base.metadata)


class Trace(Base):
    """A call of a language model. Only the attribute `details` has another name than its column."""

    __table__ = tables["langfuse_traces"]

    id: Mapped[UUID]
    trace_id: Mapped[UUID]
    entity_type: Mapped[str]
    entity_id: Mapped[UUID]
    user_id: Mapped[UUID]
    input: Mapped[str]
    output: Mapped[str]
    # Declarative reserves the name `metadata`.
    details: Mapped[dict[str, Any] | None] = column_property(__table__.c.metadata)
    tags: Mapped[list[str] | None]
    created_at: Mapped[dt.datetime]

    # PostgreSQL itself deletes the scores of a deleted trace, so no query has to load them.
    scores: Mapped[list[Score]] = relationship(
        back_populates="trace", cascade="all, delete-orphan", passive_deletes=True
    )


class Score(Base):
    """An answer, 0 or 1, to a question about a trace."""

    __table__ = tables["langfuse_scores"]

    id: Mapped[UUID]
    trace_id: Mapped[UUID]
    score_name: Mapped[str]
    value: Mapped[decimal.Decimal]
    comment: Mapped[str | None]
    details: Mapped[dict[str, Any] | None] = column_property(__table__.c.metadata)
    status: Mapped[str]
    sent_at: Mapped[dt.datetime | None]
    created_at: Mapped[dt.datetime]

    trace: Mapped[Trace] = relationship(back_populates="scores")


class Linked:
    """A mixin for the app's tables with a link to a trace."""

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    user_id: Mapped[UUID]
    body: Mapped[str]
    langfuse_trace_id: Mapped[UUID | None] = langfuse_trace_id_column()

    @declared_attr
    def trace(self) -> Mapped[Trace | None]:
        """Return the relationship to the trace."""
        return relationship(Trace)


class CoachMessage(Linked, Base):
    """A message of the coach to a user."""

    __tablename__ = "ai_coach_messages"


class EncouragementMessage(Linked, Base):
    """An encouragement for a user."""

    __tablename__ = "encouragement_messages"


class Reflection(Linked, Base):
    """A reflection by a user."""

    __tablename__ = "reflections"


def record_answer(session: Session, *, user_id: UUID, question: str, answer: str) -> CoachMessage:
    """Add a message with its trace. Commit the session afterwards.

    Arguments:
        session: a session of the server's role. Users can read traces, but not write them.
        user_id: the user of the trace. If the user is deleted, the trace is deleted.
        question: the input of the model.
        answer: the output of the model.

    Returns:
        The message, with the ids of both rows.
    """
    message = CoachMessage(id=uuid4(), user_id=user_id, body=answer)
    message.trace = Trace(
        trace_id=uuid4(),
        entity_type=EntityType.AI_COACH_MESSAGE.value,
        entity_id=message.id,
        user_id=user_id,
        input=question,
        output=answer,
        details={"words": len(answer.split())},
    )
    session.add(message)
    session.flush()
    return message


async def rate(session: AsyncSession, trace_id: UUID, *, helpful: bool) -> Score:
    """Add a score to a trace in an async session. Commit the session afterwards.

    Arguments:
        session: a session of the server's role.
        trace_id: the id of the trace in Langfuse.
        helpful: the answer of the user.

    Returns:
        The new score.
    """
    score = Score(
        trace_id=trace_id,
        score_name=ScoreName.USER_FEEDBACK.value,
        value=decimal.Decimal(helpful),
    )
    session.add(score)
    await session.flush()
    return score


async def pending_traces(session: AsyncSession) -> Sequence[Trace]:
    """Return the traces that have unsent scores, with all their scores.

    An async session cannot load a relationship on access, so the query loads it.

    Arguments:
        session: a session of the server's role.
    """
    pending = select(Score.trace_id).where(Score.status == ScoreStatus.PENDING.value)
    query = (
        select(Trace)
        .where(Trace.trace_id.in_(pending))
        .order_by(Trace.created_at)
        .options(selectinload(Trace.scores))
    )
    return (await session.scalars(query)).all()


def count_words(session: Session, user_id: UUID) -> int:
    """Return the number of words in all answers to a user, as recorded in `metadata`.

    Arguments:
        session: a session of the server's role.
        user_id: the user of the traces.
    """
    words = func.sum(Trace.details["words"].as_integer())
    return session.scalar(select(words).where(Trace.user_id == user_id)) or 0
