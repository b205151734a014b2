"""Helpers that revisions share. Frozen from release 0.1.0 on: append, never change.

A revision is history, and what it calls is part of it. Everything here also works in offline
mode (`--sql`), where nothing can be asked of the database: conditions are put into the SQL.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from alembic import context, op
from sqlalchemy import text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

log = logging.getLogger("langfuse_schema")

COUNTED_ROWS = 1_000_000
"""Counting more than this takes longer than whoever waits for the answer likes."""


def lock_tables(modes: Mapping[str, str]) -> None:
    """Lock tables one after the other, with all waits together within one lock_timeout.

    PostgreSQL bounds each wait by itself; a transaction that waits for five locks would keep
    others queueing for five times as long. What is left of the time is all that the rest of
    the transaction may wait. Tables that do not exist are passed over, and so are those that
    the role may not lock by name: the statement that needs them locks them.
    https://www.postgresql.org/docs/current/runtime-config-client.html#GUC-LOCK-TIMEOUT

    Arguments:
        modes: a mode of LOCK TABLE by `schema.table`, in the order in which to lock, the
            most used table last.
    """
    tables = ", ".join(f"'{table}'" for table in modes)
    lock_modes = ", ".join(f"'{mode}'" for mode in modes.values())
    op.execute(
        f"""
DO $$
DECLARE
  tables text[] := ARRAY[{tables}];
  modes text[] := ARRAY[{lock_modes}];
  budget interval := current_setting('lock_timeout')::interval;
  deadline timestamptz := clock_timestamp() + budget;
BEGIN
  FOR i IN 1 .. cardinality(tables) LOOP
    CONTINUE WHEN to_regclass(tables[i]) IS NULL
      OR NOT has_table_privilege(tables[i], 'UPDATE, DELETE, TRUNCATE');
    EXECUTE format('LOCK TABLE %s IN %s MODE', tables[i]::regclass, modes[i]);
    IF budget > interval '0' THEN
      PERFORM set_config('lock_timeout', greatest(1, ceil(1000 *
        extract(epoch FROM deadline - clock_timestamp())))::text || 'ms', true);
    END IF;
  END LOOP;
END $$"""
    )


def set_table_access(table: str, grants: Mapping[str, str]) -> None:
    """Close a table to everyone but its owner, then grant what is meant.

    Neither of Supabase's two sets of default privileges may be relied upon, and a role of
    either may be absent on plain PostgreSQL.

    Arguments:
        table: `schema.table`, owned by the running role.
        grants: privileges, as GRANT spells them, by role.
    """
    statements = [f"REVOKE ALL ON TABLE {table} FROM PUBLIC;"]
    for role in ("anon", "authenticated", "service_role"):
        change = [f"REVOKE ALL ON TABLE {table} FROM {role};"]
        if role in grants:
            change.append(f"GRANT {grants[role]} ON TABLE {table} TO {role};")
        statements.append(
            f"IF EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN\n"
            + "\n".join(f"    {line}" for line in change)
            + "\n  END IF;"
        )
    body = "\n  ".join(statements)
    op.execute(f"DO $$\nBEGIN\n  {body}\nEND $$")


def create_index_online(
    name: str, table: str, columns: Sequence[str], *, unique: bool = False, where: str | None = None
) -> None:
    """Build an index that writers of the table do not wait for, whatever was left behind.

    An INVALID index of that name, which an interrupted build leaves, is dropped first; a valid
    one is kept. Ends the running transaction, and begins another afterwards. lock_timeout is
    off during the build: its waits for old snapshots count as lock waits, and nobody queues
    behind them.
    https://www.postgresql.org/docs/current/sql-createindex.html#SQL-CREATEINDEX-CONCURRENTLY

    Arguments:
        name: the index, without schema.
        table: a table of schema public, without schema.
        columns: in the order of the index.
        unique: whether it is a unique index.
        where: the predicate of a partial index.
    """
    if op.get_context().opts.get("plain_indexes"):
        # A file of `export` is one transaction, in which CONCURRENTLY cannot be.
        _create_index(name, table, columns, unique=unique, where=where)
        return
    with op.get_context().autocommit_block():
        _keep_setting("lock_timeout", "langfuse_schema.lock_timeout")
        op.execute("SET lock_timeout = 0")
        _drop_invalid_index(name)
        _create_index(name, table, columns, unique=unique, where=where, concurrently=True)
        _keep_setting("langfuse_schema.lock_timeout", "lock_timeout")


def _create_index(  # noqa: PLR0913 - those of the caller
    name: str,
    table: str,
    columns: Sequence[str],
    *,
    unique: bool,
    where: str | None,
    concurrently: bool = False,
) -> None:
    op.create_index(
        name,
        table,
        list(columns),
        schema="public",
        unique=unique,
        if_not_exists=True,
        postgresql_concurrently=concurrently,
        postgresql_where=text(where) if where else None,
    )


def _keep_setting(source: str, target: str) -> None:
    """Copy a setting of the session, without a result row in a script's output."""
    op.execute(
        f"DO $$ BEGIN PERFORM set_config('{target}', current_setting('{source}'), false); END $$"
    )


def _drop_invalid_index(name: str) -> None:
    """A script cannot choose to drop CONCURRENTLY; dropping an invalid index takes a moment."""
    if not context.is_offline_mode():
        if _is_invalid(name):
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS public.{name}")
        return
    op.execute(
        f"""
DO $$
BEGIN
  PERFORM set_config('lock_timeout', current_setting('langfuse_schema.lock_timeout'), true);
  IF EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass('public.{name}')
             AND NOT (indisvalid AND indisready)) THEN
    DROP INDEX public.{name};
  END IF;
END $$"""
    )


def _is_invalid(name: str) -> bool:
    found = op.get_bind().execute(
        text(
            "SELECT NOT (i.indisvalid AND i.indisready) FROM pg_index AS i"
            " JOIN pg_class AS c ON c.oid = i.indexrelid"
            " JOIN pg_namespace AS n ON n.oid = c.relnamespace"
            " WHERE n.nspname = 'public' AND c.relname = :name"
        ),
        {"name": name},
    )
    return bool(found.scalar())


def has_column(table: str, column: str) -> bool:
    """Look whether a table has a column; in offline mode, where nobody can look, say no.

    Arguments:
        table: a table of schema public, without schema.
        column: its name.
    """
    if context.is_offline_mode():
        return False
    found = op.get_bind().execute(
        text(
            "SELECT count(*) FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid"
            " JOIN pg_namespace AS n ON n.oid = c.relnamespace"
            " WHERE n.nspname = 'public' AND c.relname = :table AND a.attname = :column"
            " AND NOT a.attisdropped"
        ),
        {"table": table, "column": column},
    )
    return bool(found.scalar())


def report_rows(tables: Sequence[str]) -> None:
    """Say how many rows each table holds that is about to be dropped; silent in offline mode.

    Counts before the caller takes its locks; above a million rows PostgreSQL's own estimate
    has to do.

    Arguments:
        tables: tables of schema public, without schema.
    """
    if context.is_offline_mode():
        return
    for table in tables:
        estimate = op.get_bind().execute(
            text("SELECT reltuples FROM pg_class WHERE oid = to_regclass(:table)"),
            {"table": f"public.{table}"},
        )
        rows = estimate.scalar()
        if rows is None:
            continue
        if rows < COUNTED_ROWS:
            rows = op.get_bind().execute(text(f"SELECT count(*) FROM public.{table}")).scalar()
            log.warning("dropping public.%s with %d rows", table, rows)
        else:
            log.warning("dropping public.%s with about %d rows", table, rows)
