"""Lock tables, set their access and build indexes in revisions.

The helpers that a released revision calls are frozen: add helpers, never change them. Offline mode
(`--sql`) has no connection, so conditions are part of the SQL.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from alembic import op
from sqlalchemy import text

from langfuse_schema.operations._indexes import Index, build, drop, quoted
from langfuse_schema.operations._locks import lock_tables, locking

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "create_index_online",
    "drop_index_online",
    "has_column",
    "lock_tables",
    "locking",
    "report_rows",
    "set_table_access",
]

log = logging.getLogger("langfuse_schema")

COUNTED_ROWS = 1_000_000
"""The largest estimate at which `report_rows` counts the rows."""


def set_table_access(table: str, grants: Mapping[str, str]) -> None:
    """Revoke all privileges on a table and its sequences, then grant the given ones.

    Default privileges make no difference. An identity column needs no grant on its sequence.

    Arguments:
        table: `schema.table`, owned by the running role.
        grants: privileges in the syntax of GRANT, by role; a role that does not exist is skipped.
    """
    given = "".join(
        f"\n  IF EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN"
        f"\n    GRANT {privileges} ON TABLE {table} TO {role};\n  END IF;"
        for role, privileges in grants.items()
    )
    # CASCADE also revokes the privileges that these roles have granted to other roles.
    op.execute(
        f"""
DO $$
DECLARE
  grantees text := concat_ws(', ', 'PUBLIC', (SELECT string_agg(quote_ident(rolname), ', ')
    FROM pg_roles WHERE rolname IN ('anon', 'authenticated', 'service_role')));
  owned regclass;
BEGIN
  EXECUTE format('REVOKE ALL ON TABLE {table} FROM %s CASCADE', grantees);
  FOR owned IN SELECT d.objid FROM pg_depend AS d JOIN pg_class AS c ON c.oid = d.objid
    WHERE d.refobjid = '{table}'::regclass AND d.deptype IN ('a', 'i') AND c.relkind = 'S'
  LOOP
    EXECUTE format('REVOKE ALL ON SEQUENCE %s FROM %s CASCADE', owned, grantees);
  END LOOP;{given}
END $$"""
    )


def create_index_online(  # noqa: PLR0913 - the clauses of CREATE INDEX
    name: str,
    table: str,
    columns: Sequence[str],
    *,
    schema: str = "public",
    unique: bool = False,
    where: str | None = None,
    method: str = "btree",
    include: Sequence[str] = (),
) -> None:
    """Build an index without blocking reads and writes of the table.

    A valid index of the same definition is kept. A running build is waited for, and an INVALID
    leftover is built again. The build ends the running transaction. Its lock waits block no query,
    so they have no lock_timeout; a runner bounds them by its lock_deadline.
    https://www.postgresql.org/docs/current/sql-createindex.html#SQL-CREATEINDEX-CONCURRENTLY

    Arguments:
        name: the index, without schema.
        table: the table, without schema.
        columns: in the order of the index, in the syntax of CREATE INDEX. Each is a column, or an
            expression in parentheses. An operator class and an order can follow. In offline mode,
            write them as PostgreSQL prints them.
        schema: the schema of the table.
        unique: whether it is a unique index.
        where: the predicate of a partial index, without parentheses around it.
        method: the access method, such as `gin`.
        include: columns that the index contains in addition to its key.

    Raises:
        CommandError: another object has the name, or the index has another definition.
        TypeError: `columns` or `include` is a string instead of a list.
    """
    for argument in (columns, include):
        if isinstance(argument, str):
            raise TypeError(f"{argument!r} is one string; pass a list, such as [{argument!r}]")
    index = Index(
        schema=quoted(schema),
        table=quoted(table),
        name=quoted(name),
        kind="UNIQUE INDEX" if unique else "INDEX",
        body=f"USING {method} ({', '.join(columns)})"
        + (f" INCLUDE ({', '.join(include)})" if include else "")
        + (f" WHERE ({where})" if where else ""),
    )
    build(index)


def drop_index_online(name: str, *, schema: str = "public") -> None:
    """Drop an index, if it exists, without blocking reads and writes of its table.

    The drop ends the running transaction. An interrupted drop leaves an INVALID index, and the next
    one drops it. An index of a constraint or of a partitioned table cannot be dropped this way.
    https://www.postgresql.org/docs/current/sql-dropindex.html

    Arguments:
        name: the index, without schema.
        schema: its schema.
    """
    drop(f"{quoted(schema)}.{quoted(name)}")


def has_column(table: str, column: str) -> bool:
    """Return whether a table of schema public has a column; in offline mode, return False."""
    if op.get_context().as_sql:
        return False
    query = text(
        "SELECT count(*) FROM pg_attribute"
        " WHERE attrelid = to_regclass(:table) AND attname = :column AND NOT attisdropped"
    )
    return bool(op.get_bind().scalar(query, {"table": f"public.{table}", "column": column}))


def report_rows(tables: Sequence[str]) -> None:
    """Log how many rows each table holds that is about to be dropped.

    It counts up to a million rows, so call it before the locks. Above, it logs the estimate of
    PostgreSQL. It logs each table once in a run, and nothing in offline mode.

    Arguments:
        tables: tables of schema public, without schema.
    """
    if op.get_context().as_sql:
        return
    # Options live as long as the run, which can retry a step.
    reported = op.get_context().opts.setdefault("reported_rows", set())
    estimate = text("SELECT reltuples FROM pg_class WHERE oid = to_regclass(:table)")
    for table in tables:
        counted = table in reported
        rows = None if counted else op.get_bind().scalar(estimate, {"table": f"public.{table}"})
        reported.add(table)
        if rows is not None:
            about = "about " if rows >= COUNTED_ROWS else ""
            if not about:
                rows = op.get_bind().scalar(text(f"SELECT count(*) FROM public.{table}"))
            log.warning("dropping public.%s with %s%d rows", table, about, rows)
