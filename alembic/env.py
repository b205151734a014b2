"""Alembic's environment. The content is in langfuse_schema.migrations."""

from alembic import context

from langfuse_schema.migrations import run_environment

run_environment(context)
