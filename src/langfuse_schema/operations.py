"""Lock tables, set their access and build indexes in revisions.

Released helpers are frozen: add helpers, never change them. Offline mode has no connection, so
conditions are part of the SQL.
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
"""The largest estimate at which `report_rows` counts the rows."""


def lock_tables(
    modes: Mapping[str, str], *, policies: bool = False, condition: str | None = None
) -> None:
    """Lock tables one by one, with all blocking waits together within one lock_timeout.

    The rest of the transaction, and a second call in it, can wait for the rest of the time. The
    arguments are those of `locking`.

    Raises:
        DBAPIError: a lock was not available in time (SQLSTATE 55P03).
    """
    op.execute(locking(modes, policies=policies, condition=condition))


def locking(
    modes: Mapping[str, str], *, policies: bool = False, condition: str | None = None
) -> str:
    """Return the statement that locks tables.

    PostgreSQL applies lock_timeout to each wait separately, so five waits could block queries five
    times as long. A table that is missing, or that the role must not lock, is skipped.
    https://www.postgresql.org/docs/current/runtime-config-client.html#GUC-LOCK-TIMEOUT

    The first call in a transaction takes SHARE UPDATE EXCLUSIVE on every table first. It blocks no
    read or write, so it may wait longer than lock_timeout. PostgreSQL cancels an autovacuum that
    blocks it for deadlock_timeout, unless it prevents wraparound.
    https://www.postgresql.org/docs/current/routine-vacuuming.html#AUTOVACUUM

    Arguments:
        modes: a mode of LOCK TABLE by `schema.table`, in the order of the locks.
        policies: whether the transaction runs CREATE, ALTER or DROP POLICY, or DROP TRIGGER.
            For these, supautils locks the tables of its setting for the role. They are locked
            here, `auth.users` first, because a sign-in locks them in that order.
            https://github.com/supabase/supautils
        condition: a condition in SQL; without it, no table is locked if it is false.
    """
    guard = f"IF NOT ({condition}) THEN\n    RETURN;\n  END IF;\n  " if condition else ""
    of_platform = f"{_OF_PLATFORM}\n  " if policies else ""
    return f"""
DO $$
DECLARE
  tables text[] := ARRAY{list(modes)};
  modes text[] := ARRAY{list(modes.values())};
  budget interval := current_setting('lock_timeout')::interval;
  deadline timestamptz;
BEGIN
  {guard}{of_platform}SELECT array_agg(name ORDER BY place), array_agg(mode ORDER BY place)
    INTO tables, modes FROM unnest(tables, modes) WITH ORDINALITY AS given (name, mode, place)
    WHERE has_table_privilege(to_regclass(name), 'UPDATE, DELETE, TRUNCATE');
  IF coalesce(current_setting('langfuse_schema.has_locks', true), '') = '' THEN
    IF budget > interval '0' THEN
      PERFORM set_config('lock_timeout', (1000 * extract(epoch FROM greatest(budget,
        current_setting('deadlock_timeout')::interval + interval '1 s')))::int || 'ms', true);
    END IF;
    FOR i IN 1 .. coalesce(cardinality(tables), 0) LOOP
      EXECUTE format('LOCK TABLE %s IN SHARE UPDATE EXCLUSIVE MODE', tables[i]::regclass);
    END LOOP;
  END IF;
  PERFORM set_config('langfuse_schema.has_locks', 'on', true);
  deadline := clock_timestamp() + budget;
  FOR i IN 1 .. coalesce(cardinality(tables), 0) + 1 LOOP
    IF budget > interval '0' THEN
      PERFORM set_config('lock_timeout', greatest(1, ceil(1000 *
        extract(epoch FROM deadline - clock_timestamp())))::text || 'ms', true);
    END IF;
    CONTINUE WHEN tables[i] IS NULL;
    EXECUTE format('LOCK TABLE %s IN %s MODE', tables[i]::regclass, modes[i]);
  END LOOP;
END $$"""


_OF_PLATFORM = """SELECT tables || array_agg(name ORDER BY name <> 'auth.users', name),
      modes || array_agg('ACCESS EXCLUSIVE'::text) INTO tables, modes
    FROM jsonb_array_elements_text(coalesce(nullif(current_setting(
        'supautils.policy_grants', true), '')::jsonb -> current_user::text, '[]')) AS name
    JOIN pg_namespace AS n ON n.nspname = split_part(name, '.', 1)
    WHERE name <> ALL (tables) AND has_schema_privilege(n.oid, 'USAGE');"""


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
    unique: bool = False,
    where: str | None = None,
    method: str = "btree",
) -> None:
    """Build an index without blocking reads and writes of the table.

    A valid index of the same definition is kept. A running build is waited for, and an INVALID
    leftover is built again. The build ends the running transaction. Its lock waits block no query,
    so lock_timeout is then `online_build_wait` of the runner (milliseconds), or 0.
    https://www.postgresql.org/docs/current/sql-createindex.html#SQL-CREATEINDEX-CONCURRENTLY

    Arguments:
        name: the index, without schema.
        table: a table of schema public, without schema.
        columns: in the order of the index; expressions as PostgreSQL prints them.
        unique: whether it is a unique index.
        where: the predicate of a partial index, as PostgreSQL prints it, without parentheses.
        method: the access method, such as `gin`.

    Raises:
        CommandError: another object has the name, or the index has another definition.
    """
    kind = "UNIQUE INDEX" if unique else "INDEX"
    condition = f" WHERE ({where})" if where else ""
    body = f"{name} ON public.{table} USING {method} ({', '.join(columns)}){condition}"
    # The same text as pg_get_indexdef, so that an existing index can be compared.
    definition = f"CREATE {kind} {body}"
    options = op.get_context().opts
    if options.get("plain_indexes"):
        # A file of `export` is one transaction, which cannot contain CONCURRENTLY.
        _drop_invalid_index(name, table, definition)
        op.execute(f"CREATE {kind} IF NOT EXISTS {body}")
        return
    offline = context.is_offline_mode()
    found = None if offline else _find_object(name)
    if found is not None and found.valid is False and found.table == table:
        # A running build holds this lock. An index that is INVALID after it is a leftover.
        lock_tables({f"public.{table}": "SHARE UPDATE EXCLUSIVE"})
        found = _find_object(name)
    leftover = found is not None and found.table == table and not found.valid
    if found is not None and not leftover:
        _check_definition(name, found.definition, definition)
        return
    with op.get_context().autocommit_block():
        if not options.get("keeps_lock_timeout"):
            _keep_setting("lock_timeout", "langfuse_schema.lock_timeout")
        op.execute(f"SET lock_timeout = {options.get('online_build_wait', 0)}")
        with options.get("online_build", nullcontext)(f"public.{table}"):
            if offline:
                _drop_invalid_index(name, table, definition, "langfuse_schema.lock_timeout")
            if leftover:
                op.execute(f"DROP INDEX CONCURRENTLY public.{name}")
            # With a connection, an index that appeared after the check must raise an error.
            op.execute(f"CREATE {kind} CONCURRENTLY {'IF NOT EXISTS ' if offline else ''}{body}")
        _keep_setting("langfuse_schema.lock_timeout", "lock_timeout")


def _find_object(name: str) -> Any:  # noqa: ANN401 - a row
    connection = op.get_bind()
    if connection.scalar(text("SELECT to_regclass(:name) IS NULL"), {"name": f"public.{name}"}):
        return None
    query = text(
        "SELECT pg_get_indexdef(i.indexrelid) AS definition, t.relname AS table,"
        " i.indisvalid AND i.indisready AND i.indislive AS valid"
        " FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
        " LEFT JOIN pg_index AS i ON i.indexrelid = c.oid"
        " LEFT JOIN pg_class AS t ON t.oid = i.indrelid"
        " WHERE n.nspname = 'public' AND c.relname = :name"
    )
    # pg_get_indexdef prints the schema of a name that is not in search_path.
    connection.execute(text("SET LOCAL search_path TO pg_catalog"))
    found = connection.execute(query, {"name": name}).one_or_none()
    connection.execute(text("SET LOCAL search_path TO public"))
    return found


def _check_definition(name: str, found: str | None, expected: str) -> None:
    if found != expected:
        raise CommandError(
            f"could not build index public.{name}: another object has this name\n"
            f"  found:    {found or 'an object that is not an index'}\n"
            f"  expected: {expected}\n  fix:      rename it, then run the same command again:\n"
            f"    ALTER {'INDEX' if found else 'TABLE'} public.{name} RENAME TO old_{name};"
        )


def _keep_setting(source: str, target: str) -> None:
    """Copy a setting of the session, without a result row in the output of a script."""
    op.execute(
        f"DO $$ BEGIN PERFORM set_config('{target}', current_setting('{source}'), false); END $$"
    )


def _drop_invalid_index(
    name: str, table: str, definition: str, lock_timeout: str | None = None
) -> None:
    # A script cannot drop CONCURRENTLY under a condition. This drop takes milliseconds. It waits
    # for a running build first, under a lock that blocks no read or write.
    limit = f"PERFORM set_config('lock_timeout', current_setting('{lock_timeout}'), true);"
    invalid = f"""EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass('public.{name}')
             AND indrelid = to_regclass('public.{table}') AND NOT (indisvalid AND indisready))"""
    literal = definition.replace("'", "''")
    op.execute(
        f"""
DO $$
BEGIN
  IF {invalid} THEN
    LOCK TABLE public.{table} IN SHARE UPDATE EXCLUSIVE MODE;
    {limit if lock_timeout else "-- within the lock_timeout of this transaction"}
  END IF;
  IF {invalid} THEN
    DROP INDEX public.{name};
  ELSIF to_regclass('public.{name}') IS NOT NULL
    AND pg_get_indexdef(to_regclass('public.{name}')) IS DISTINCT FROM '{literal}' THEN
    RAISE EXCEPTION 'public.{name} has another shape; rename it and run this again';
  END IF;
END $$"""
    )


def has_column(table: str, column: str) -> bool:
    """Return whether a table of schema public has a column; in offline mode, return False."""
    if context.is_offline_mode():
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
    if context.is_offline_mode():
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
