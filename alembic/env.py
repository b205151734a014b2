"""Alembic's environment: the wiring. What it wires stands in langfuse_schema.environment."""

from typing import Any

from alembic import context

from langfuse_schema import environment


def configure(**options: Any) -> None:  # noqa: ANN401 - passed on to Alembic as they are
    """Configure Alembic with what online and offline mode share, and what each adds."""
    context.configure(**environment.shared_options(context), **options)


environment.configure_logging(context.config)
if context.is_offline_mode():
    environment.run_offline(context, configure)
else:
    environment.run_online(context, configure)
