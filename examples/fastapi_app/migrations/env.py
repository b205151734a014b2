"""The Alembic environment of the app's own migrations."""

import os

import app
from alembic import context

import langfuse_schema

# Tests pass the URL of their database. A deploy sets DATABASE_URL.
url = context.config.attributes.get("url") or os.environ["DATABASE_URL"]

with app.sync_engine(url).connect() as connection:
    context.configure(
        connection=connection,
        target_metadata=app.metadata,
        # Autogenerate must ignore the Langfuse tables, because langfuse-schema migrates them.
        include_object=langfuse_schema.include_object,
        process_revision_directives=langfuse_schema.process_revision_directives,
    )
    with context.begin_transaction():
        context.run_migrations()
