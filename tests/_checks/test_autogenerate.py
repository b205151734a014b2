"""A new revision of the app omits the link column, its constraints and its indexes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import produce_migrations, render_python_code
from alembic.migration import MigrationContext

from langfuse_schema import (
    copy_tables,
    include_object,
    langfuse_trace_id_column,
    process_revision_directives,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.helpers.databases import Database

USES: dict[str, Callable[[], Any]] = {
    "unique": lambda: sa.UniqueConstraint("langfuse_trace_id", name="of_app"),
    "composite unique": lambda: sa.UniqueConstraint("langfuse_trace_id", "body", name="of_app"),
    "composite index": lambda: sa.Index("of_app", "body", "langfuse_trace_id"),
    "unique index": lambda: sa.Index("of_app", "langfuse_trace_id", unique=True),
    "check": lambda: sa.CheckConstraint("langfuse_trace_id IS NOT NULL", name="of_app"),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_new_table_omits_constraints_and_indexes_of_link_column(
    database: Database, use: Callable[[], Any]
) -> None:
    database.execute("DROP TABLE public.reflections")
    metadata = sa.MetaData()
    copy_tables(metadata)
    sa.Table(
        "reflections",
        metadata,
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("body", sa.Text, index=True),
        langfuse_trace_id_column(),
        use(),
    )
    engine = sa.create_engine(database.url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        options = {"include_object": include_object, "include_name": _is_reflections}
        context = MigrationContext.configure(connection, opts=options)
        script = produce_migrations(context, metadata)
    process_revision_directives(context, "head", [script])
    for operations in (script.upgrade_ops, script.downgrade_ops):
        assert operations is not None
        code = render_python_code(operations)
        assert "reflections" in code
        assert "ix_reflections_body" in code
        assert "langfuse_trace_id" not in code
        assert "of_app" not in code


def _is_reflections(name: str | None, kind: str, _parents: object) -> bool:
    return kind != "table" or name == "reflections"
