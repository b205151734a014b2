"""Declare the Langfuse tables of today as SQLAlchemy Core tables.

Constraints and indexes have the names that PostgreSQL gives them when it runs the plan's SQL. The
text of each CHECK and default is the text that PostgreSQL prints.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from sqlalchemy import (
    ARRAY,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    Numeric,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    event,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.schema import conv

if TYPE_CHECKING:
    from uuid import UUID

APP_TABLES = ("ai_coach_messages", "encouragement_messages", "reflections")
"""The app's own tables that carry `langfuse_trace_id` (plan, マイグレーション2)."""

API_ROLES = ("anon", "authenticated", "service_role")
"""The roles of Supabase's Data API. Other PostgreSQL servers can lack them."""

LINK_COLUMN = "langfuse_trace_id"
"""The column of the app's tables that points to a trace."""

NOT_OURS = {"langfuse_schema": "external"}
"""`Table.info` of a table that belongs to Supabase or the app. Foreign keys refer to it."""


class _TextEnum(str, Enum):
    """An enumeration whose members are the stored text."""

    def __str__(self) -> str:
        return str(self.value)


class EntityType(_TextEnum):
    """The kind of app text that a trace belongs to."""

    AI_COACH_MESSAGE = "ai_coach_message"
    ENCOURAGEMENT_MESSAGE = "encouragement_message"
    DAILY_STATUS = "daily_status"
    REFLECTION = "reflection"


class ScoreName(_TextEnum):
    """The question about a trace that a score answers."""

    USER_FEEDBACK = "user_feedback"
    MISSION_COMPLETED = "mission_completed"
    NEXT_DAY_ACTIVITY = "next_day_activity"
    WEEKLY_COMPLETION_RATE = "weekly_completion_rate"


class ScoreStatus(_TextEnum):
    """The state of sending a score to Langfuse."""

    PENDING = "pending"
    SENT = "sent"
    FAILED = "failed"


def _one_of(column: str, values: type[_TextEnum]) -> str:
    literals = ", ".join(f"'{member.value}'::text" for member in values)
    return f"{column} = ANY (ARRAY[{literals}])"


metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
    }
)
"""The four Langfuse tables, and a stub of `auth.users` for their foreign keys."""

auth_users = Table("users", metadata, Column("id", Uuid, primary_key=True), schema="auth")
auth_users.info.update(NOT_OURS)


def _random_id() -> Column[UUID]:
    return Column("id", Uuid, primary_key=True, server_default=text("gen_random_uuid()"))


def _created_at() -> Column[object]:
    now = text("now()")
    return Column("created_at", DateTime(timezone=True), nullable=False, server_default=now)


def _parent(name: str, key: Column[UUID]) -> Column[UUID]:
    """Return a column that refers to a row, and is deleted with that row."""
    return Column(name, Uuid, ForeignKey(key, ondelete="CASCADE"), nullable=False)


langfuse_traces = Table(
    "langfuse_traces",
    metadata,
    _random_id(),
    Column("trace_id", Uuid, nullable=False),
    Column("entity_type", Text, nullable=False),
    Column("entity_id", Uuid, nullable=False),
    _parent("user_id", auth_users.c.id),
    Column("input", Text, nullable=False),
    Column("output", Text, nullable=False),
    Column("metadata", JSONB),
    Column("tags", ARRAY(Text)),
    _created_at(),
    UniqueConstraint("trace_id"),
    CheckConstraint(_one_of("entity_type", EntityType), name="entity_type"),
    Index("idx_langfuse_traces_entity", "entity_type", "entity_id"),
    Index("idx_langfuse_traces_user_id", "user_id"),
    Index("idx_langfuse_traces_created_at", "created_at"),
    Index("idx_langfuse_traces_user_id_created_at", "user_id", "created_at"),
    Index("idx_langfuse_traces_user_id_trace_id", "user_id", "trace_id"),
)
"""One call of a model, with its input and output, for one user and one text of the app.

The app's server writes a row for each call, and its user has the privilege to read it. Deleting
the user deletes the row. `trace_id` is the id of the trace in Langfuse.
"""

langfuse_scores = Table(
    "langfuse_scores",
    metadata,
    _random_id(),
    _parent("trace_id", langfuse_traces.c.trace_id),
    Column("score_name", Text, nullable=False),
    Column("value", Numeric, nullable=False),
    Column("comment", Text),
    Column("metadata", JSONB),
    Column("status", Text, nullable=False, server_default=text("'pending'::text")),
    Column("sent_at", DateTime(timezone=True)),
    _created_at(),
    CheckConstraint(_one_of("score_name", ScoreName), name="score_name"),
    CheckConstraint("value = ANY (ARRAY[(0)::numeric, (1)::numeric])", name="value"),
    CheckConstraint(_one_of("status", ScoreStatus), name="status"),
    Index("idx_langfuse_scores_trace_id", "trace_id"),
    Index("idx_langfuse_scores_status", "status"),
    Index("idx_langfuse_scores_created_at", "created_at"),
    Index(
        "idx_langfuse_scores_pending",
        "created_at",
        "id",
        postgresql_where=text("status = 'pending'::text"),
    ),
)
"""One answer, 0 or 1, to one question about a trace. The rows are the queue for Langfuse.

The app's server and the user of the trace add rows, and that user can read them. A batch job
sends pending rows and sets `status` and `sent_at`.
"""

langfuse_batch_runs = Table(
    "langfuse_batch_runs",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("batch_name", Text, nullable=False),
    Column("scores_created", Integer, nullable=False, server_default=text("0")),
    Column("scores_sent", Integer, nullable=False, server_default=text("0")),
    Column("errors", JSONB),
    Column("started_at", DateTime(timezone=True), nullable=False),
    Column("completed_at", DateTime(timezone=True)),
    _created_at(),
    Index("idx_langfuse_batch_runs_batch_name", "batch_name"),
    Index("idx_langfuse_batch_runs_created_at", "created_at"),
)
"""One run of a batch job, with its times, counts of scores and errors. The job chooses the id."""

rate_limit_logs = Table(
    "rate_limit_logs",
    metadata,
    _random_id(),
    _parent("user_id", auth_users.c.id),
    Column("endpoint", Text, nullable=False),
    Column("window_start", DateTime(timezone=True), nullable=False),
    Column("request_count", Integer, nullable=False, server_default=text("1")),
    _created_at(),
    Index("idx_rate_limit_logs_unique", "user_id", "endpoint", "window_start", unique=True),
    Index("idx_rate_limit_logs_user_id", "user_id"),
)
"""The number of calls of one user to one endpoint within one window of time.

The app's server counts with `INSERT … ON CONFLICT (user_id, endpoint, window_start)`, and reads
the count to refuse a request. Users have no privilege on this table.
"""


def langfuse_trace_id_column() -> Column[UUID | None]:
    """Return a new column that links a row of the app to its trace.

    Put it into a `Table` of the app. The foreign key (ON DELETE SET NULL) and the index are added
    to that table under the names of the revisions. Call `copy_tables` on the app's MetaData first.

    Returns:
        A nullable UUID column `langfuse_trace_id` (plan, マイグレーション2).
    """
    column: Column[UUID | None] = Column(LINK_COLUMN, Uuid, nullable=True)
    event.listen(column, "after_parent_attach", _link_to_traces)
    return column


def _link_to_traces(column: Column[UUID | None], table: Table) -> None:
    table.append_constraint(
        ForeignKeyConstraint(
            [column],
            ["langfuse_traces.trace_id"],
            name=conv(f"{table.name}_{LINK_COLUMN}_fkey"),
            ondelete="SET NULL",
        )
    )
    table.append_constraint(Index(f"idx_{table.name}_{LINK_COLUMN}", column))


def copy_tables(target: MetaData) -> dict[str, Table]:
    """Copy the Langfuse tables into the app's MetaData, so that the app's tables can refer to them.

    Arguments:
        target: the app's MetaData. Its existing tables, such as `auth.users`, are kept.

    Returns:
        The tables in `target`, by their key: `langfuse_traces`, …, `auth.users`.
    """
    return {
        table.key: target.tables[table.key]
        if table.key in target.tables
        else table.to_metadata(target)
        for table in metadata.sorted_tables
    }


def include_object(
    item: object,
    name: str | None,
    kind: str,
    reflected: bool,  # noqa: ARG001 - the signature is Alembic's
    compare_to: object,  # noqa: ARG001 - the signature is Alembic's
) -> bool:
    """Exclude the Langfuse tables from `alembic check` and `--autogenerate` of the app.

    Pass it to `context.configure(include_object=…)` in the app's env.py. Alembic still compares
    the link columns, so declare them with `langfuse_trace_id_column`.
    https://alembic.sqlalchemy.org/en/latest/api/runtime.html

    Arguments:
        item: the object that Alembic compares.
        name: its name.
        kind: `table`, `column`, `index`, …
        reflected: whether it comes from the database.
        compare_to: its counterpart.

    Returns:
        Whether Alembic compares the object.
    """
    if kind != "table" or not isinstance(item, Table):
        return True
    schema = "" if item.schema in (None, "public") else f"{item.schema}."
    return f"{schema}{name}" not in metadata.tables


def declared_metadata() -> MetaData:
    """Return copies of the Langfuse tables, and stubs of `APP_TABLES` with the link column only."""
    declared = MetaData()
    copy_tables(declared)
    for name in APP_TABLES:
        Table(name, declared, langfuse_trace_id_column(), info=NOT_OURS)
    return declared
