"""Lock tables within one lock_timeout."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from alembic import op

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

LISTED = """jsonb_array_elements_text(coalesce(nullif(current_setting(
        'supautils.policy_grants', true), '')::jsonb -> current_user::text, '[]'))"""
"""The tables that supautils locks for the connected role, as an SQL expression of their rows."""

_OF_PLATFORM = f"""SELECT tables || array_agg(name ORDER BY name <> 'auth.users', name),
      modes || array_agg('ACCESS EXCLUSIVE'::text) INTO tables, modes
    FROM {LISTED} AS name
    JOIN pg_namespace AS n ON n.nspname = split_part(name, '.', 1)
    WHERE name <> ALL (tables) AND has_schema_privilege(n.oid, 'USAGE');"""


def execute(statement: str) -> None:
    """Execute a statement in which a colon is no bind parameter."""
    op.execute(re.sub(r"(?<![:\w\\]):(?=\w)", r"\\:", statement))


def lock_tables(
    modes: Mapping[str, str], *, policies: bool = False, condition: str | None = None
) -> None:
    """Lock tables one by one, with all blocking waits together within one lock_timeout.

    The rest of the transaction, and a second call in it, can wait for the rest of the time. The
    arguments are those of `locking`.

    Raises:
        DBAPIError: a lock was not available in time (SQLSTATE 55P03).
    """
    execute(locking(modes, policies=policies, condition=condition))


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
  tables text[] := {_array(modes)};
  modes text[] := {_array(modes.values())};
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


def _array(values: Iterable[str]) -> str:
    literals = ("'" + value.replace("'", "''") + "'" for value in values)
    return f"ARRAY[{', '.join(literals)}]"
