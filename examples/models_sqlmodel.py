"""Link SQLModel tables to traces, with one base class for all of them.

SQLModel passes the same Column object to every table of a base class. So the base class declares a
plain field, and `__table_args__` adds the foreign key and the index. Their names are those of the
revisions. In a class without a base class, use `Field(sa_column=langfuse_trace_id_column())`.

pyright must ignore the table names, because SQLModel declares another type for them.
"""

from __future__ import annotations

from uuid import UUID, uuid4

from sqlalchemy import ForeignKeyConstraint, Index
from sqlalchemy.orm import declared_attr
from sqlmodel import Field, SQLModel

from langfuse_schema import copy_tables

copy_tables(SQLModel.metadata)


class Linked(SQLModel):
    """The base class of tables with a link to a trace."""

    id: UUID = Field(default_factory=uuid4, primary_key=True)
    user_id: UUID
    body: str
    langfuse_trace_id: UUID | None = None

    @declared_attr.directive
    def __table_args__(cls) -> tuple[ForeignKeyConstraint, Index]:  # noqa: N805 - a class method
        """Return the foreign key and the index of the link column."""
        name = cls.__tablename__
        return (
            ForeignKeyConstraint(
                ["langfuse_trace_id"],
                ["langfuse_traces.trace_id"],
                name=f"{name}_langfuse_trace_id_fkey",
                ondelete="SET NULL",
            ),
            Index(f"idx_{name}_langfuse_trace_id", "langfuse_trace_id"),
        )


class CoachMessage(Linked, table=True):
    """A message of the coach to a user."""

    __tablename__ = "ai_coach_messages"  # pyright: ignore[reportAssignmentType]


class EncouragementMessage(Linked, table=True):
    """An encouragement for a user."""

    __tablename__ = "encouragement_messages"  # pyright: ignore[reportAssignmentType]


class Reflection(Linked, table=True):
    """A reflection by a user."""

    __tablename__ = "reflections"  # pyright: ignore[reportAssignmentType]
