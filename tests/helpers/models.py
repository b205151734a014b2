"""ORM models of the three app tables, which share a declarative mixin."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID  # noqa: TC003 - SQLAlchemy reads the annotations

from sqlalchemy.orm import Mapped, mapped_column

from langfuse_schema import langfuse_trace_id_column

if TYPE_CHECKING:
    from sqlalchemy.orm import DeclarativeBase


class Linked:
    """The columns that all three tables have."""

    id: Mapped[UUID] = mapped_column(primary_key=True)
    body: Mapped[str]
    langfuse_trace_id: Mapped[UUID | None] = langfuse_trace_id_column()


def declare_linked_classes(base: type[DeclarativeBase]) -> None:
    for name in ("ai_coach_messages", "encouragement_messages", "reflections"):
        type(name, (Linked, base), {"__tablename__": name})
