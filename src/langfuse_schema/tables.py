"""The tables that should exist today, declared once, as SQLAlchemy Core.

Names of constraints and indexes are those that PostgreSQL gives the plan's SQL. The text of
every CHECK and default is written the way PostgreSQL prints it, so that a live database can be
compared with this module without a parser.
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
"""The roles of Supabase's Data API. Each can be absent elsewhere."""

LINK_COLUMN = "langfuse_trace_id"
"""The column of the app's tables that points to a trace."""

NOT_OURS = {"langfuse_schema": "external"}
"""`Table.info` of a table that others own: it is here so that foreign keys resolve."""


class _TextEnum(str, Enum):
    """An enumeration whose members are the stored text."""

    def __str__(self) -> str:
        return str(self.value)


class EntityType(_TextEnum):
    """What kind of text of the app a trace explains."""

    AI_COACH_MESSAGE = "ai_coach_message"
    ENCOURAGEMENT_MESSAGE = "encouragement_message"
    DAILY_STATUS = "daily_status"
    REFLECTION = "reflection"


class ScoreName(_TextEnum):
    """Which question about a trace a score answers."""

    USER_FEEDBACK = "user_feedback"
    MISSION_COMPLETED = "mission_completed"
    NEXT_DAY_ACTIVITY = "next_day_activity"
    WEEKLY_COMPLETION_RATE = "weekly_completion_rate"


class ScoreStatus(_TextEnum):
    """How far a score is on its way to Langfuse."""

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
"""Our four tables, and a stub of `auth.users` that is marked as not ours."""

auth_users = Table("users", metadata, Column("id", Uuid, primary_key=True), schema="auth")
auth_users.info.update(NOT_OURS)


def _random_id() -> Column[UUID]:
    return Column("id", Uuid, primary_key=True, server_default=text("gen_random_uuid()"))


def _created_at() -> Column[object]:
    return Column(
        "created_at", DateTime(timezone=True), nullable=False, server_default=text("now()")
    )


def _user_id() -> Column[UUID]:
    return Column("user_id", Uuid, ForeignKey(auth_users.c.id, ondelete="CASCADE"), nullable=False)


langfuse_traces = Table(
    "langfuse_traces",
    metadata,
    _random_id(),
    Column("trace_id", Uuid, nullable=False),
    Column("entity_type", Text, nullable=False),
    Column("entity_id", Uuid, nullable=False),
    _user_id(),
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
"""One call of a model: what went in and what came out, for one user and one text of the app.

The app's server writes a row with each call. The user it belongs to may read it; deleting the
user deletes it. `trace_id` is the id under which Langfuse knows the trace.
"""

langfuse_scores = Table(
    "langfuse_scores",
    metadata,
    _random_id(),
    Column(
        "trace_id",
        Uuid,
        ForeignKey(langfuse_traces.c.trace_id, ondelete="CASCADE"),
        nullable=False,
    ),
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
"""One answer, 0 or 1, to one question about a trace, queued here until Langfuse has it.

The user whose trace it is may add rows and read them; the app's server adds others. A batch job
reads what is pending, sends it, and sets `status` and `sent_at`.
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
"""One run of a batch job: when, how many scores it made and sent, what went wrong.

The job writes its row, under an id of its own choosing, and whoever operates it reads.
"""

rate_limit_logs = Table(
    "rate_limit_logs",
    metadata,
    _random_id(),
    _user_id(),
    Column("endpoint", Text, nullable=False),
    Column("window_start", DateTime(timezone=True), nullable=False),
    Column("request_count", Integer, nullable=False, server_default=text("1")),
    _created_at(),
    Index("idx_rate_limit_logs_unique", "user_id", "endpoint", "window_start", unique=True),
    Index("idx_rate_limit_logs_user_id", "user_id"),
)
"""How often one user called one endpoint within one window of time.

The app's server counts up by `INSERT … ON CONFLICT (user_id, endpoint, window_start)`, and
reads the count to refuse a request. Users never see it.
"""


def langfuse_trace_id_column() -> Column[UUID | None]:
    """Make the column that links a row of the app to its trace.

    Use it in the app's own `Table`, in the place where the column belongs; the foreign key
    (ON DELETE SET NULL) and the index come with it, under the names that the revisions use.
    The app's MetaData must hold `langfuse_traces`: see `copy_tables`.

    Returns:
        A new nullable UUID column `langfuse_trace_id` (plan, マイグレーション2).
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
    """Copy our tables into the app's MetaData, so that the app's tables can refer to them.

    Arguments:
        target: the app's MetaData. A table that it already holds is kept, the app's own
            `auth.users` among them.

    Returns:
        The tables in `target`, by their key: `langfuse_traces`, …, `auth.users`.
    """
    return {
        table.key: (
            target.tables[table.key] if table.key in target.tables else table.to_metadata(target)
        )
        for table in metadata.sorted_tables
    }


def include_object(
    item: object,
    name: str | None,
    kind: str,
    reflected: bool,  # noqa: ARG001 - the signature is Alembic's
    compare_to: object,  # noqa: ARG001 - the same
) -> bool:
    """Keep the app's own Alembic away from our tables.

    For `context.configure(include_object=…)` in the app's env.py: `alembic check` and
    `--autogenerate` then neither create nor drop what our revisions look after, whether or not
    the app's MetaData holds copies. The link columns are compared: declare them with
    `langfuse_trace_id_column`.
    https://alembic.sqlalchemy.org/en/latest/api/runtime.html

    Arguments:
        item: what Alembic compares.
        name: of it.
        kind: `table`, `column`, `index`, …
        reflected: whether it comes from the database.
        compare_to: its counterpart.

    Returns:
        Whether Alembic may look at it.
    """
    if kind != "table" or not isinstance(item, Table):
        return True
    schema = "" if item.schema in (None, "public") else f"{item.schema}."
    return f"{schema}{name}" not in metadata.tables


def declared_metadata() -> MetaData:
    """Return a MetaData with the Langfuse tables and the links to them.

    Returns:
        Copies of the tables, and a stub of each table of `APP_TABLES` with the link column only.
    """
    declared = MetaData()
    copy_tables(declared)
    for name in APP_TABLES:
        Table(name, declared, langfuse_trace_id_column(), info=NOT_OURS)
    return declared
