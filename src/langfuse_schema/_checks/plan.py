"""The plan of an upgrade: the pending revisions with their locks, and the affected tables."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from langfuse_schema._checks import access_query
from langfuse_schema.tables import API_ROLES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from langfuse_schema._history.chain import History, Position


def facts(connection: Connection, upgrade: Position | None) -> dict[str, Any]:
    """Return properties of the database that are no findings, and the plan of an upgrade.

    Arguments:
        connection: to the database.
        upgrade: None if the recorded revision is unknown; then there is no plan.

    Returns:
        The version of the server, the database, the role, the existing API roles, and their
        default privileges on new tables. `locks_readable`: whether the role can read pg_locks.
        `pending`: of each revision its id, title and locks. `tables`: of each existing table that
        the upgrade locks, its estimated rows, None if PostgreSQL has no estimate, and its size in
        bytes.
    """
    affected = [] if upgrade is None else _affected(upgrade)
    parameters = {"roles": list(API_ROLES), "names": affected}
    found = connection.execute(_FACTS, parameters).one()._asdict()
    facts = found | {name: json.loads(found[name]) for name in ("default_privileges", "tables")}
    tables = facts.pop("tables")
    if upgrade is None:
        return facts
    return {**facts, "pending": _revisions(upgrade.history, upgrade.pending), "tables": tables}


def _affected(upgrade: Position) -> list[str]:
    """List the existing tables that the upgrade changes or refers to."""
    if not upgrade.pending:
        return []
    changed = {table.qualified_name for table in upgrade.changed}
    return sorted(changed | upgrade.referenced())


def _revisions(history: History, pending: Sequence[str]) -> list[dict[str, str]]:
    scripts = (history.scripts[history.revisions.index(revision)] for revision in pending)
    return [
        {
            "revision": script.revision,
            "title": script.doc,
            "locks": heading(script.module.__doc__ or "", "Locks"),
        }
        for script in scripts
    ]


def heading(docstring: str, name: str) -> str:
    """Return the text under a heading of a revision's docstring, as one line; empty if missing."""
    matched = re.search(rf"^{name}:(.*?)(?=^\S|\Z)", docstring, re.DOTALL | re.MULTILINE)
    return " ".join(matched[1].split()) if matched else ""


# One query, because each one costs a round trip. A table that was never analyzed has -1 rows.
# pg_total_relation_size leaves out partitions, and pg_partition_tree leaves out other tables.
_FACTS = text(
    f"""
    SELECT current_setting('server_version') AS server, current_database()::text AS database,
           current_user::text AS role, {access_query.EXISTING_ROLES} AS api_roles,
           has_table_privilege('pg_catalog.pg_locks', 'SELECT')
           AND has_table_privilege('pg_catalog.pg_stat_activity', 'SELECT')
           AND has_table_privilege('pg_catalog.pg_stat_progress_vacuum', 'SELECT')
           AS locks_readable,
           (SELECT coalesce(json_object_agg(role, privileges), '{{}}')::text FROM (
                SELECT r.rolname AS role, string_agg(e.privilege_type, ', ') AS privileges
                FROM pg_default_acl AS d, aclexplode(d.defaclacl) AS e
                JOIN pg_roles AS r ON r.oid = e.grantee
                WHERE d.defaclobjtype = 'r'
                AND pg_get_userbyid(d.defaclrole) = current_user
                AND d.defaclnamespace = to_regnamespace('public') AND r.rolname = ANY (:roles)
                GROUP BY 1) AS granted) AS default_privileges,
           (SELECT coalesce(json_object_agg(name, json_build_object(
                       'rows', CASE WHEN c.reltuples >= 0 THEN c.reltuples::bigint END,
                       'bytes', coalesce((SELECT sum(pg_total_relation_size(p.relid))
                                          FROM pg_partition_tree(c.oid) AS p),
                                         pg_total_relation_size(c.oid))) ORDER BY name),
                   '{{}}')::text
            FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace,
                 LATERAL (SELECT n.nspname || '.' || c.relname AS name) AS named
            WHERE name = ANY (CAST(:names AS text[]))) AS tables
    """
)
