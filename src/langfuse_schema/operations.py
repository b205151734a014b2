"""Helpers that revisions share. Frozen from release 0.1.0 on: append, never change.

A revision is history, and what it calls is part of it. Everything here also works in offline
mode (`--sql`), where nothing can be asked of the database: conditions are put into the SQL.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from alembic import context, op
from alembic.util import CommandError
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
    """Revoke all privileges on a table and its sequences, then grant the given ones.

    The result is the same under both of Supabase's sets of default privileges, and without
    the API roles on plain PostgreSQL. A column needs no grant on the sequence of its identity.

    Arguments:
        table: `schema.table`, owned by the running role.
        grants: privileges, as GRANT spells them, by role.
    """
    given = "".join(
        f"\n  IF EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN"
        f"\n    GRANT {privileges} ON TABLE {table} TO {role};\n  END IF;"
        for role, privileges in grants.items()
    )
    # CASCADE ends the privileges that these roles have granted to others.
    op.execute(
        f"""
DO $$
DECLARE
  grantee text;
  owned regclass;
BEGIN
  FOR grantee IN SELECT 'PUBLIC' UNION ALL
    SELECT quote_ident(rolname) FROM pg_roles
    WHERE rolname IN ('anon', 'authenticated', 'service_role')
  LOOP
    EXECUTE format('REVOKE ALL ON TABLE {table} FROM %s CASCADE', grantee);
    FOR owned IN SELECT d.objid FROM pg_depend AS d JOIN pg_class AS c ON c.oid = d.objid
      WHERE d.refobjid = '{table}'::regclass AND d.deptype IN ('a', 'i') AND c.relkind = 'S'
    LOOP
      EXECUTE format('REVOKE ALL ON SEQUENCE %s FROM %s CASCADE', owned, grantee);
    END LOOP;
  END LOOP;{given}
END $$"""
    )


def create_index_online(  # noqa: PLR0913 - the clauses of CREATE INDEX
    name: str,
    table: str,
    columns: Sequence[str],
    *,
    unique: bool = False,
    where: str | None = None,
    method: str = "btree",
) -> None:
    """Build an index that writers of the table do not wait for, whatever was left behind.

    A valid index of that name and shape, which somebody built beforehand, is kept. An INVALID
    one, which an interrupted build leaves, is dropped first; one that is just being built is
    waited for. Ends the running transaction, and begins another afterwards. lock_timeout is
    off during the build, or as long as a runner says in `online_build_wait` (milliseconds): its
    waits for old snapshots count as lock waits, and nobody queues behind them.
    https://www.postgresql.org/docs/current/sql-createindex.html#SQL-CREATEINDEX-CONCURRENTLY

    Arguments:
        name: the index, without schema.
        table: a table of schema public, without schema.
        columns: in the order of the index; expressions as PostgreSQL prints them.
        unique: whether it is a unique index.
        where: the predicate of a partial index, as PostgreSQL prints it, without parentheses.
        method: the access method, such as `gin`.

    Raises:
        CommandError: the name belongs to something else.
    """
    kind = "UNIQUE INDEX" if unique else "INDEX"
    # As PostgreSQL prints it, so that what was built beforehand can be compared with it.
    body = f"{name} ON public.{table} USING {method} ({', '.join(columns)})"
    if where:
        body += f" WHERE ({where})"
    if op.get_context().opts.get("plain_indexes"):
        # A file of `export` is one transaction, in which CONCURRENTLY cannot be.
        _make_room(name, f"CREATE {kind} {body}")
        op.execute(f"CREATE {kind} IF NOT EXISTS {body}")
        return
    offline = context.is_offline_mode()
    kept, left = (False, False) if offline else _found(name, table, f"CREATE {kind} {body}")
    if kept:
        return
    with op.get_context().autocommit_block():
        _keep_setting("lock_timeout", "langfuse_schema.lock_timeout")
        op.execute(f"SET lock_timeout = {op.get_context().opts.get('online_build_wait', 0)}")
        with op.get_context().opts.get("online_build", nullcontext)(f"public.{table}"):
            if offline:
                _make_room(name, f"CREATE {kind} {body}", "langfuse_schema.lock_timeout")
                op.execute(f"CREATE {kind} CONCURRENTLY IF NOT EXISTS {body}")
            else:
                if left:
                    op.execute(f"DROP INDEX CONCURRENTLY public.{name}")
                # We looked; what came in between is an error, not to be passed over.
                op.execute(f"CREATE {kind} CONCURRENTLY {body}")
        _keep_setting("langfuse_schema.lock_timeout", "lock_timeout")


def _found(name: str, table: str, definition: str) -> tuple[bool, bool]:
    """Look for what has the name of an index: whether to keep it, and whether to drop it."""
    found = _look_for(name)
    if found is not None and found.valid is False and found.table == table:
        # Whoever is just building it holds this lock; only a leftover is still INVALID then.
        op.execute(f"LOCK TABLE public.{table} IN SHARE UPDATE EXCLUSIVE MODE")
        found = _look_for(name)
        if found is not None and not found.valid:
            return False, True
    if found is None:
        return False, False
    if found.definition != definition:
        raise CommandError(
            f"public.{name}: found {found.definition or 'something that is no index'}, expected"
            f" {definition} or nothing of that name; rename it: ALTER"
            f" {'INDEX' if found.definition else 'TABLE'} public.{name} RENAME TO {name}_before"
        )
    return True, False


def _look_for(name: str) -> Any:  # noqa: ANN401 - a row
    connection = op.get_bind()
    free = text("SELECT to_regclass(:name) IS NULL")
    if connection.execute(free, {"name": f"public.{name}"}).scalar():
        return None
    # The printed text spells out what search_path does not reach.
    connection.execute(text("SET LOCAL search_path TO pg_catalog"))
    found = connection.execute(
        text(
            "SELECT pg_get_indexdef(i.indexrelid) AS definition, t.relname AS table,"
            " i.indisvalid AND i.indisready AND i.indislive AS valid"
            " FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
            " LEFT JOIN pg_index AS i ON i.indexrelid = c.oid"
            " LEFT JOIN pg_class AS t ON t.oid = i.indrelid"
            " WHERE n.nspname = 'public' AND c.relname = :name"
        ),
        {"name": name},
    ).one_or_none()
    connection.execute(text("SET LOCAL search_path TO public"))
    return found


def _keep_setting(source: str, target: str) -> None:
    """Copy a setting of the session, without a result row in a script's output."""
    op.execute(
        f"DO $$ BEGIN PERFORM set_config('{target}', current_setting('{source}'), false); END $$"
    )


def _make_room(name: str, definition: str, lock_timeout: str | None = None) -> None:
    """In a script: drop an INVALID index, and stop at a valid one of another shape.

    A script cannot choose to drop CONCURRENTLY; dropping an invalid index takes a moment.
    """
    limit = f"PERFORM set_config('lock_timeout', current_setting('{lock_timeout}'), true);"
    literal = definition.replace("'", "''")
    op.execute(
        f"""
DO $$
BEGIN
  {limit if lock_timeout else "-- within the lock_timeout of this transaction"}
  IF EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass('public.{name}')
             AND NOT (indisvalid AND indisready)) THEN
    DROP INDEX public.{name};
  ELSIF to_regclass('public.{name}') IS NOT NULL
    AND pg_get_indexdef(to_regclass('public.{name}')) IS DISTINCT FROM '{literal}' THEN
    RAISE EXCEPTION 'public.{name} has another shape; rename it and run this again';
  END IF;
END $$"""
    )


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
            "SELECT count(*) FROM pg_attribute"
            " WHERE attrelid = to_regclass(:table) AND attname = :column AND NOT attisdropped"
        ),
        {"table": f"public.{table}", "column": column},
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
    # Once in a run, however often its steps are tried.
    reported = op.get_context().opts.setdefault("reported_rows", set())
    for table in tables:
        if table in reported:
            continue
        reported.add(table)
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
