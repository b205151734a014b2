"""The Alembic environment. Its code is in langfuse_schema.migrations."""

from alembic import context

from langfuse_schema.migrations import run_environment

run_environment(context)
