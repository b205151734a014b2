"""Alembic's autogenerate in an app, with the two functions for its env.py."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import produce_migrations, render_python_code
from alembic.operations import ops
from alembic.runtime.migration import MigrationContext
from sqlalchemy.orm import DeclarativeBase

from langfuse_schema import (
    copy_tables,
    include_object,
    langfuse_trace_id_column,
    migrations,
    process_revision_directives,
)
from tests.helpers.models import declare_linked_classes

if TYPE_CHECKING:
    from tests.helpers.databases import Database

THREE = ("ai_coach_messages", "encouragement_messages", "reflections")


def app_metadata(**options: Any) -> sa.MetaData:
    class Base(DeclarativeBase):
        metadata = sa.MetaData(**options)

    declare_linked_classes(Base)
    copy_tables(Base.metadata)
    return Base.metadata


def generated(
    database: Database, app: sa.MetaData, *, include_schemas: bool = False
) -> tuple[str, str]:
    """The code that autogenerate would write for an upgrade and a downgrade of the app."""
    engine = sa.create_engine(database.url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        options = {"include_object": include_object, "include_schemas": include_schemas}
        context = MigrationContext.configure(connection, opts=options)
        script = produce_migrations(context, app)
        process_revision_directives(context, (), [script])
        parts = (script.upgrade_ops, script.downgrade_ops)
        upgrade, downgrade = (render_python_code(part) for part in parts if part is not None)
        return upgrade, downgrade


def created(code: str) -> list[str]:
    return sorted(re.findall(r"op\.create_table\('(\w+)'", code))


@pytest.mark.parametrize("options", [{}, {"schema": "public"}], ids=str)
def test_first_revision_of_app_creates_its_tables_without_links(
    database: Database, options: dict[str, str]
) -> None:
    database.execute(f"DROP TABLE {', '.join(THREE)}")
    upgrade, downgrade = generated(database, app_metadata(**options))
    assert created(upgrade) == sorted(THREE)
    assert "langfuse" not in upgrade + downgrade
    assert "users" not in upgrade + downgrade
    assert upgrade.count("'body'") == 3


def test_autogenerate_omits_langfuse_objects_at_every_stage(database: Database) -> None:
    unlinked = sa.MetaData()
    for name in THREE:
        sa.Table(name, unlinked, sa.Column("id", sa.Uuid, primary_key=True))
    apps = [(app_metadata(), False), (unlinked, True)]

    def lines() -> list[list[str]]:
        codes = ["".join(generated(database, app, include_schemas=every)) for app, every in apps]
        return [sorted(code.splitlines()) for code in codes]

    before = lines()
    for found in before:
        assert not [line for line in found if "langfuse" in line]
        assert not [line for line in found if re.search(r"(create|drop)_table\('users'", line)]
    migrations.upgrade(database.url)
    assert lines() == before
    migrations.downgrade(database.url, "base")
    assert lines() == before


def test_other_links_and_other_indexes_belong_to_app(database: Database) -> None:
    migrations.upgrade(database.url)
    app = app_metadata()
    key = sa.Column("id", sa.Uuid, primary_key=True)
    sa.Table("daily_notes", app, key, langfuse_trace_id_column())
    reflections = app.tables["reflections"]
    sa.Index("one_reflection_a_trace", reflections.c.langfuse_trace_id, unique=True)
    sa.Index("reflections_by_body", reflections.c.body, reflections.c.langfuse_trace_id)
    upgrade, _ = generated(database, app)
    assert created(upgrade) == ["daily_notes"]
    for part in (
        "sa.Column('langfuse_trace_id', sa.Uuid(), nullable=True)",
        "name=op.f('daily_notes_langfuse_trace_id_fkey'), ondelete='SET NULL')",
        "op.create_index(op.f('idx_daily_notes_langfuse_trace_id'), 'daily_notes',",
    ):
        assert part in upgrade
    found = set(re.findall(r"op\.create_index\('(\w+)'", upgrade))
    assert found == {"one_reflection_a_trace", "reflections_by_body"}


def test_downgrade_recreates_dropped_table_without_link(database: Database) -> None:
    migrations.upgrade(database.url)
    upgrade, downgrade = generated(database, sa.MetaData())
    assert sorted(re.findall(r"op\.drop_table\('(\w+)'", upgrade)) == sorted(THREE)
    assert created(downgrade) == sorted(THREE)
    assert "langfuse" not in upgrade + downgrade


def test_directives_of_several_databases_are_all_processed() -> None:
    app = app_metadata()

    def operations() -> ops.CreateTableOp:
        return ops.CreateTableOp.from_table(app.tables["reflections"])

    upgrades = [ops.UpgradeOps([operations()], upgrade_token=f"up_{n}") for n in range(2)]
    downgrades = [ops.DowngradeOps([operations()], downgrade_token=f"down_{n}") for n in range(2)]
    script = ops.MigrationScript("a1", upgrades, downgrades)  # type: ignore[arg-type] # as Alembic itself does
    process_revision_directives(None, (), [script])  # type: ignore[arg-type] # not used
    code = [render_python_code(part) for part in (*upgrades, *downgrades)]
    assert all(created(part) == ["reflections"] for part in code)
    assert "langfuse" not in "".join(code)
