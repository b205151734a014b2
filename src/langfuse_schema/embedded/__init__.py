"""The embedded database: a private PostgreSQL with the roles and the app tables of Supabase.

It needs no setup. All of its state is in one folder, which you can delete while no server runs in
it.
"""

from __future__ import annotations

from langfuse_schema.embedded.folders import EmbeddedError, state_directory, temporary_directory
from langfuse_schema.embedded.opening import open_default, open_temporary
from langfuse_schema.embedded.preparation import (
    SUPERUSER,
    World,
    prepare,
    without_libpq_variables,
)
from langfuse_schema.embedded.server import Server, start

__all__ = [
    "SUPERUSER",
    "EmbeddedError",
    "Server",
    "World",
    "open_default",
    "open_temporary",
    "prepare",
    "start",
    "state_directory",
    "temporary_directory",
    "without_libpq_variables",
]
