"""Langfuse tracing tables for Supabase PostgreSQL: SQLAlchemy Core tables for app code.

Importing this package imports SQLAlchemy Core only. The revisions are run by the commands
`alembic` and `langfuse-schema`, or by `langfuse_schema.migrations`.
"""

from langfuse_schema.creation import create_all
from langfuse_schema.tables import (
    EntityType,
    ScoreName,
    ScoreStatus,
    copy_tables,
    include_object,
    langfuse_batch_runs,
    langfuse_scores,
    langfuse_trace_id_column,
    langfuse_traces,
    metadata,
    rate_limit_logs,
)

__all__ = [
    "EntityType",
    "ScoreName",
    "ScoreStatus",
    "copy_tables",
    "create_all",
    "include_object",
    "langfuse_batch_runs",
    "langfuse_scores",
    "langfuse_trace_id_column",
    "langfuse_traces",
    "metadata",
    "rate_limit_logs",
]
