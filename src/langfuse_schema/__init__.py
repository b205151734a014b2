"""Use the Langfuse tables of Supabase PostgreSQL in app code, as SQLAlchemy Core tables.

This package imports SQLAlchemy Core only. To run the revisions, use the commands `alembic` or
`langfuse-schema`, or call `langfuse_schema.migrations`.
"""

import sys

try:
    from langfuse_schema._checks.autogenerate import include_object, process_revision_directives
    from langfuse_schema.creation import create_all
    from langfuse_schema.tables import (
        EntityType,
        ScoreName,
        ScoreStatus,
        copy_tables,
        langfuse_batch_runs,
        langfuse_scores,
        langfuse_trace_id_column,
        langfuse_traces,
        metadata,
        rate_limit_logs,
    )
except KeyboardInterrupt:
    # The script and `python -m` import this package before `__main__` can handle Ctrl-C.
    if not sys.argv or sys.argv[0].rpartition("/")[2] not in ("langfuse-schema", "-m"):
        raise
    sys.stderr.write("interrupted before the start\n")
    sys.exit(130)

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
    "process_revision_directives",
    "rate_limit_logs",
]
