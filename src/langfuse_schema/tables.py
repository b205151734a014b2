"""Declare the Langfuse tables of today as SQLAlchemy Core tables.

Constraints and indexes have the names that PostgreSQL gives them when it runs the plan's SQL. The
text of each CHECK and default is the text that PostgreSQL prints.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

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
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.schema import conv

if TYPE_CHECKING:
    from uuid import UUID

APP_TABLES = ("ai_coach_messages", "encouragement_messages", "reflections")
"""The app's own tables that carry `langfuse_trace_id` (plan, マイグレーション2)."""

API_ROLES = ("anon", "authenticated", "service_role")
"""The roles of Supabase's Data API. Other PostgreSQL servers can lack them."""

LINK_COLUMN = "langfuse_trace_id"
"""The column of the app's tables that points to a trace."""

_LINKED = "langfuse_schema_linked"
"""`Column.info` of a link column that has added its foreign key and index."""

EXTERNAL = {"langfuse_schema": "external"}
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
auth_users.info.update(EXTERNAL)


def _random_id() -> Column[UUID]:
    return Column("id", Uuid, primary_key=True, server_default=text("gen_random_uuid()"))


def _created_at() -> Column[object]:
    now = text("now()")
    return Column("created_at", DateTime(timezone=True), nullable=False, server_default=now)


def _parent(name: str, key: Column[UUID]) -> Column[UUID]:
    """Return a column that refers to a row, and is deleted with that row."""
    return Column(name, Uuid, ForeignKey(key, ondelete="CASCADE"), nullable=False)


def _index(name: str, *columns: str, **options: Any) -> Index:  # noqa: ANN401 - of Index
    """Return an index whose name the naming convention of an app's MetaData cannot change."""
    return Index(conv(name), *columns, **options)


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
    _index("idx_langfuse_traces_entity", "entity_type", "entity_id"),
    _index("idx_langfuse_traces_user_id", "user_id"),
    _index("idx_langfuse_traces_created_at", "created_at"),
    _index("idx_langfuse_traces_user_id_created_at", "user_id", "created_at"),
    _index("idx_langfuse_traces_user_id_trace_id", "user_id", "trace_id"),
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
    _index("idx_langfuse_scores_trace_id", "trace_id"),
    _index("idx_langfuse_scores_status", "status"),
    _index("idx_langfuse_scores_created_at", "created_at"),
    _index(
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
    _index("idx_langfuse_batch_runs_batch_name", "batch_name"),
    _index("idx_langfuse_batch_runs_created_at", "created_at"),
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
    _index("idx_rate_limit_logs_unique", "user_id", "endpoint", "window_start", unique=True),
    _index("idx_rate_limit_logs_user_id", "user_id"),
)
"""The number of calls of one user to one endpoint within one window of time.

The app's server counts with `INSERT … ON CONFLICT (user_id, endpoint, window_start)`, and reads
the count to refuse a request. Users have no privilege on this table.
"""


def langfuse_trace_id_column() -> Any:  # noqa: ANN401 - no class can be both a Column and Mapped
    """Return a new column that links a row of the app to its trace.

    Put it into a `Table`, a declarative class or a mixin. Each table gets the foreign key
    (ON DELETE SET NULL) and the index under the names of the revisions. Call `copy_tables` on the
    same MetaData.

    Returns:
        A `Column[UUID | None]` named `langfuse_trace_id` (plan, マイグレーション2). Type checkers
        also accept it as `Mapped[UUID | None]`.

    Raises:
        InvalidRequestError: the same column is put into a second table.
    """
    column: Column[UUID | None] = Column(LINK_COLUMN, Uuid, nullable=True)
    # With propagate, the copies of a mixin have the listeners too.
    event.listen(column, "before_parent_attach", _refuse_second_table, propagate=True)
    event.listen(column, "after_parent_attach", _link_to_traces, propagate=True)
    return column


def _refuse_second_table(column: Column[UUID | None], table: Table) -> None:
    """Refuse a column that a base class of SQLModel shares between its tables."""
    first = getattr(column, "table", None)
    if first is not None and first is not table:
        raise InvalidRequestError(
            f"{table.name} cannot use the {LINK_COLUMN} column of {first.name}."
            " Call langfuse_trace_id_column() once for each table. In a shared base class of"
            " SQLModel, declare a plain field and add the foreign key and the index in"
            " __table_args__, as in docs/how-to/app-models.md."
        )


def _link_to_traces(column: Column[UUID | None], table: Table) -> None:
    """Add the foreign key and the index, unless `to_metadata` copies those of a linked column."""
    if column.info.get(_LINKED):
        return
    column.info[_LINKED] = True
    schema = f"{table.metadata.schema}." if table.metadata.schema else ""
    name, parent = conv(f"{table.name}_{LINK_COLUMN}_fkey"), f"{schema}langfuse_traces.trace_id"
    key = ForeignKeyConstraint([column], [parent], name=name, ondelete="SET NULL")
    table.append_constraint(key)
    table.append_constraint(Index(conv(f"idx_{table.name}_{LINK_COLUMN}"), column))


def copy_tables(target: MetaData) -> dict[str, Table]:
    """Copy the Langfuse tables into the app's MetaData, so that the app's tables can refer to them.

    A second call copies nothing. If the app declares `auth.users` itself, it does so before.

    Arguments:
        target: the app's MetaData. Its existing tables, such as `auth.users`, are kept.

    Returns:
        The tables in `target`, by their key: `langfuse_traces`, …, `auth.users`.

    Raises:
        InvalidRequestError: the schema of the MetaData would move the tables out of public.
    """
    if target.schema not in (None, "public"):
        raise InvalidRequestError(
            f'MetaData(schema="{target.schema}") would move the Langfuse tables, which are in'
            " schema public. Use a MetaData without a schema, and name the schema in each table"
            f' of the app: Table(…, schema="{target.schema}").'
        )
    return {table.key: _copied(table, target) for table in metadata.sorted_tables}


def _copied(table: Table, target: MetaData) -> Table:
    schema = table.schema or target.schema
    existing = target.tables.get(f"{schema}.{table.name}" if schema else table.name)
    if existing is not None:
        return existing
    return table.to_metadata(target, schema=schema) if schema else table.to_metadata(target)


def declared_metadata() -> MetaData:
    """Return copies of the Langfuse tables, and stubs of `APP_TABLES` with the link column only."""
    declared = MetaData()
    copy_tables(declared)
    for name in APP_TABLES:
        Table(name, declared, langfuse_trace_id_column(), info=EXTERNAL)
    return declared
