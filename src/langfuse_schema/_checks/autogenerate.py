"""Choose the tables that autogenerate compares, in the app's env.py and in this package's.

The app's `alembic check` and `--autogenerate` exclude the objects that the revisions create.
Alembic calls `include_object` for existing tables and for their parts. It does not call it for the
columns and constraints of a new table, so `process_revision_directives` removes the links there.
https://alembic.sqlalchemy.org/en/latest/api/runtime.html
https://alembic.sqlalchemy.org/en/latest/api/autogenerate.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import CheckConstraint, Column, ForeignKeyConstraint, Index, Table

from langfuse_schema.tables import APP_TABLES, LINK_COLUMN, metadata

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from alembic.operations.ops import MigrateOperation, MigrationScript, OpContainer
    from alembic.runtime.migration import MigrationContext


def include_object(
    item: object,
    name: str | None,  # noqa: ARG001 - the signature is Alembic's
    kind: str,  # noqa: ARG001 - the same
    reflected: bool,  # noqa: ARG001 - the same
    compare_to: object,  # noqa: ARG001 - the same
) -> bool:
    """Exclude the Langfuse tables and the link columns from the app's autogenerate.

    Pass it to `context.configure(include_object=…)` in the app's env.py, together with
    `process_revision_directives`. It excludes the Langfuse tables, `auth.users` and the version
    table. In the plan's three tables it excludes the link column, its foreign key and its index.

    Arguments:
        item: the object that Alembic compares.
        name: its name.
        kind: `table`, `column`, `index`, …
        reflected: whether it comes from the database.
        compare_to: its counterpart.

    Returns:
        Whether Alembic compares the object.
    """
    if isinstance(item, Table):
        return not _is_langfuse_table(item)
    table = getattr(item, "table", None)
    return not (isinstance(table, Table) and _is_app_table(table) and _is_link(item))


def process_revision_directives(
    context: MigrationContext,  # noqa: ARG001 - the signature is Alembic's
    revision: str | Iterable[str | None] | Iterable[str],  # noqa: ARG001 - the same
    directives: list[MigrationScript],
) -> None:
    """Remove the link column from the plan's three tables in a new revision of the app.

    Pass it to `context.configure(process_revision_directives=…)` in the app's env.py, together
    with `include_object`. If the app has such a function, call this one in it. A table that the
    new revision creates gets its link column from langfuse-schema afterwards. Constraints and
    indexes of the app that use the column are left for a later revision.

    Arguments:
        context: Alembic's context.
        revision: the heads that the new revision follows.
        directives: the new revisions; changed in place.
    """
    for script in directives:
        for operations in (*script.upgrade_ops_list, *script.downgrade_ops_list):
            _remove_links(operations)


def _remove_links(operations: OpContainer) -> None:
    """Remove the link column, and all that uses it, from the plan's tables that are new."""
    from alembic.operations.ops import CreateTableOp, DropTableOp, ModifyTableOps

    new = [
        operation
        for operation in operations.ops
        if isinstance(operation, CreateTableOp | DropTableOp)
        and operation.table_name in APP_TABLES
        and operation.schema in (None, "public")
    ]
    for operation in new:
        if isinstance(operation, CreateTableOp):
            operation.columns = [one for one in operation.columns if not _uses_link(one)]
    names = {operation.table_name for operation in new}
    for nested in operations.ops:
        # The indexes of a new table.
        if isinstance(nested, ModifyTableOps) and nested.table_name in names:
            nested.ops = [one for one in nested.ops if not _is_index_on_link(one)]


def _is_index_on_link(operation: MigrateOperation) -> bool:
    from alembic.operations.ops import CreateIndexOp, DropIndexOp

    if isinstance(operation, DropIndexOp):
        operation = operation.reverse()
    return isinstance(operation, CreateIndexOp) and LINK_COLUMN in map(_name, operation.columns)


def _name(column: object) -> str:
    return str(getattr(column, "name", column))


def _uses_link(item: object) -> bool:
    """Return whether a part of a new table is, or uses, the link column."""
    if isinstance(item, CheckConstraint):
        return LINK_COLUMN in str(item.sqltext)
    columns = getattr(item, "columns", None)
    return _is_link(item) or (columns is not None and LINK_COLUMN in map(_name, columns))


def _is_langfuse_table(table: Table) -> bool:
    from langfuse_schema._history.chain import VERSION_TABLE

    schema = "" if table.schema in (None, "public") else f"{table.schema}."
    return f"{schema}{table.name}" in metadata.tables or table.schema == VERSION_TABLE.schema


def _is_app_table(table: Table) -> bool:
    return table.name in APP_TABLES and table.schema in (None, "public")


def _is_link(item: object) -> bool:
    """Return whether a part of a table is the link column, its foreign key or its index."""
    if isinstance(item, Column):
        return item.name == LINK_COLUMN
    if isinstance(item, ForeignKeyConstraint):
        return item.column_keys == [LINK_COLUMN]
    # Another unique index on the column is a rule of the app.
    return isinstance(item, Index) and not item.unique and _columns(item) == [LINK_COLUMN]


def _columns(index: Index) -> list[str | None]:
    return [getattr(expression, "name", None) for expression in index.expressions]


def is_table_of_check(name: str | None, kind: str, _parents: Mapping[str, str | None]) -> bool:
    """Return whether `check` of this package reads a table of the database."""
    return kind != "table" or name in APP_TABLES or name in metadata.tables


def is_object_of_check(
    item: Any,  # noqa: ANN401 - any object that Alembic compares
    _name: str | None,
    kind: str,
    reflected: bool,
    compare_to: object,
) -> bool:
    """Return whether `check` of this package compares an object: the app's own columns are not."""
    if kind == "table":
        return bool(item.schema != "auth")
    return not (item.table.name in APP_TABLES and reflected and compare_to is None)
