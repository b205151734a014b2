"""What surrounds an upgrade: sessions in its way, leftovers, rights, default privileges.

The part of preflight that is about this moment and this role, not about the shape of tables.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from langfuse_schema import access, declaration, tables
from langfuse_schema.findings import Finding
from langfuse_schema.watching import session_text

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from sqlalchemy import Connection

    from langfuse_schema import catalog

_OURS = tuple(f"public.{name}" for name in access.TABLES)
_APPS = tuple(f"public.{name}" for name in tables.APP_TABLES)

_HOLDERS = text(
    """
    SELECT n.nspname || '.' || c.relname AS table_name, l.virtualtransaction,
           coalesce(l.pid, 0), a.usename, a.application_name,
           extract(epoch FROM clock_timestamp() - a.xact_start)::int, a.state, a.query
    FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
    WHERE l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND n.nspname || '.' || c.relname = ANY (:tables)
      -- Readers of auth.users are in nobody's way.
      AND (n.nspname <> 'auth' OR l.mode NOT IN ('AccessShareLock', 'RowShareLock'))
    ORDER BY 1, 3
    """
)


def long_transactions(
    connection: Connection, pending: Collection[str], lock_timeout: float
) -> Iterator[Finding]:
    """Find sessions that have had a table in a transaction for longer than we would wait.

    A role may not see when other roles' transactions began, but everybody sees who holds a
    lock: whoever holds it in the same transaction one lock_timeout later is old enough.

    Arguments:
        connection: to the database; only read. Its transaction is ended.
        pending: the revisions that the upgrade would run.
        lock_timeout: in seconds.
    """
    locked = [] if tables.CORE in pending else list(_OURS)
    locked += _APPS if tables.LINKS in pending else []
    locked += ["auth.users"] if tables.CORE in pending else []
    seen = _holders(connection, locked) if pending else {}
    if not seen:
        return
    time.sleep(lock_timeout)
    still = {key: row for key, row in _holders(connection, locked).items() if key in seen}
    for name in dict.fromkeys(name for name, *_ in still):
        sessions = [session_text(row) for (table, *_), row in still.items() if table == name]
        yield Finding(
            "table-in-use",
            name,
            "\n".join(sessions),
            f"no transaction that uses the table for longer than {lock_timeout:g} s",
            "an upgrade waits for it, trying again until lock_deadline; upgrade when it is over",
            severity="warning",
        )


def _holders(connection: Connection, locked: list[str]) -> dict[tuple[str, str, int], Any]:
    rows = connection.execute(_HOLDERS, {"tables": locked}).all()
    connection.rollback()
    return {(row[0], row[1], row[2]): row[2:] for row in rows}


def invalid_leftovers(
    found: Mapping[str, catalog.Table], applied: str | None, newest: str
) -> Iterator[Finding]:
    """Find INVALID indexes under names that the upgrade builds; it builds them anew.

    Arguments:
        found: our tables and the app's, from `catalog.read`.
        applied: the revision of the database, if it has one.
        newest: where the upgrade goes.
    """
    made = _index_names(applied) if applied else set()
    for name in _index_names(newest) - made:
        for table in found.values():
            index = table.index(name)
            if index is not None and not index.valid:
                yield Finding(
                    "index-invalid",
                    f"public.{name}",
                    f"an INVALID index of {table.qualified_name}, left by an interrupted build",
                    "a valid one, or none",
                    "nothing to do: an upgrade drops it and builds it anew",
                    severity="warning",
                )


def _index_names(revision: str) -> set[str]:
    expected = declaration.at(revision)
    return {index.name for table in expected.values() for index in table.indexes}


def not_owned(connection: Connection, found: Mapping[str, catalog.Table]) -> Iterator[Finding]:
    """Find tables of ours that the role may not alter.

    Arguments:
        connection: to the database; only read.
        found: our tables, from `catalog.read`.
    """
    for name in (name for name in _OURS if name in found):
        owner = found[name].owner
        role, member = connection.execute(
            text("SELECT current_user, pg_has_role(CAST(:owner AS name), 'USAGE')"),
            {"owner": owner},
        ).one()
        if not member:
            yield Finding(
                "table-not-owned",
                name,
                f"owned by {owner}",
                f"owned by {role}, which is connected, or by a role that it is a member of",
                f'connect as {owner}, or: GRANT "{owner}" TO "{role}"',
            )


def default_privileges(connection: Connection) -> dict[str, str]:
    """Say what the API roles are granted on a new table in public, by role.

    In Supabase projects made before 2026-05-30 that is everything, since then only what nobody
    needs. No revision relies on either.

    Arguments:
        connection: to the database; only read.
    """
    rows = connection.execute(
        text(
            "SELECT r.rolname, string_agg(acl.privilege_type, ', ' ORDER BY acl.privilege_type)"
            " FROM pg_default_acl AS d, aclexplode(d.defaclacl) AS acl"
            " JOIN pg_roles AS r ON r.oid = acl.grantee"
            " WHERE d.defaclobjtype = 'r' AND d.defaclrole = CAST(current_user AS regrole)"
            " AND d.defaclnamespace = to_regnamespace('public')"
            " AND r.rolname = ANY (:roles) GROUP BY 1 ORDER BY 1"
        ),
        {"roles": list(access.API_ROLES)},
    )
    return {row[0]: row[1] for row in rows}
