"""Alembic's environment: the wiring. What it wires stands in langfuse_schema.migrations."""

from typing import Any

from alembic import context

from langfuse_schema import migrations


def configure(**options: Any) -> None:  # noqa: ANN401 - passed on to Alembic as they are
    """Configure Alembic with what online and offline mode share, and what each adds."""
    context.configure(**migrations.shared_options(context), **options)


migrations.configure_logging(context.config)
if context.is_offline_mode():
    migrations.run_offline(context, configure)
else:
    migrations.run_online(context, configure)
