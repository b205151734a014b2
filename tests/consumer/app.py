"""Code of an app that uses langfuse-schema, which the tests check with mypy and pyright."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa
from alembic import context
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from typing_extensions import assert_type

from langfuse_schema import (
    EntityType,
    ScoreName,
    ScoreStatus,
    copy_tables,
    create_all,
    include_object,
    langfuse_batch_runs,
    langfuse_scores,
    langfuse_trace_id_column,
    langfuse_traces,
    process_revision_directives,
    rate_limit_logs,
)
from langfuse_schema.migrations import Finding, downgrade, stamp, upgrade
from langfuse_schema.testing import as_user
from langfuse_schema.verify import verify

if TYPE_CHECKING:
    from uuid import UUID

    from sqlalchemy.ext.asyncio import AsyncConnection

metadata = sa.MetaData()
assert_type(copy_tables(metadata), dict[str, sa.Table])
reflections = sa.Table(
    "reflections",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    langfuse_trace_id_column(),
)
column: sa.Column[UUID | None] = langfuse_trace_id_column()


class Base(DeclarativeBase):
    """The declarative base of the app."""


class Linked:
    """A mixin with the link column."""

    langfuse_trace_id: Mapped[UUID | None] = langfuse_trace_id_column()


class Reflection(Linked, Base):
    """A mapped class of the app."""

    __tablename__ = "reflections"
    id: Mapped[UUID] = mapped_column(primary_key=True)


assert_type(Reflection().langfuse_trace_id, "UUID | None")

for table in (langfuse_traces, langfuse_scores, langfuse_batch_runs, rate_limit_logs):
    assert_type(table, sa.Table)

kind: str = EntityType.REFLECTION
assert_type(ScoreStatus("pending"), ScoreStatus)
names: list[str] = list(ScoreName)


def migrate(url: str, engine: sa.Engine, connection: sa.Connection) -> list[str]:
    """Migrate and verify through a URL, a parsed URL, an engine and a connection."""
    upgrade(url)
    upgrade(sa.make_url(url), "head", lock_timeout=0.5, lock_deadline=600.0)
    downgrade(engine, "-1")
    stamp(engine, "head")
    create_all(connection)
    found = verify(engine)
    found += verify(url, "head")
    found += verify(connection, revision="head")
    assert_type(found, list[Finding])
    return [f"{finding.code} {finding.object}: {finding.fix}" for finding in found]


def configure(connection: sa.Connection) -> None:
    """Configure Alembic as the env.py of the app does."""
    context.configure(
        connection=connection,
        target_metadata=metadata,
        include_object=include_object,
        process_revision_directives=process_revision_directives,
    )


def pending(connection: sa.Connection) -> list[UUID]:
    """Return the ids of the pending scores."""
    query = sa.select(langfuse_scores.c.id).where(
        langfuse_scores.c.status == ScoreStatus.PENDING.value
    )
    return list(connection.scalars(query))


async def sign_in(connection: sa.Connection, other: AsyncConnection, user: UUID) -> None:
    """Act as a user, as a test of the app does."""
    as_user(connection, user)
    await as_user(other, None, claims={"email": "aoi@example.com"})
