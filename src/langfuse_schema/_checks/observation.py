"""Read from a database all that `verify` compares, in one transaction."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from langfuse_schema._checks import access_query, platform_locks, uid_function
from langfuse_schema._checks.access import Access
from langfuse_schema._history.chain import VERSION_TABLE
from langfuse_schema._postgres import catalog
from langfuse_schema._postgres.objects import Grant

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from langfuse_schema._history.snapshots import Tables
    from langfuse_schema._postgres.objects import Table


@dataclass(frozen=True)
class Observation:
    """The state of a database at one moment.

    Attributes:
        tables: the actual tables, the version table included.
        revisions: the rows of the version table; None if the role cannot read it.
        schema_grants: the grants on the schema of the version table.
        schema_owner: its owner; empty if the schema is missing.
        policy_tables: the tables that the platform locks at a policy statement.
        access: the effective access of the API roles.
        facts: the server's version, the database, the role, and the existing API roles.
    """

    tables: Tables
    revisions: tuple[str, ...] | None
    schema_grants: frozenset[Grant]
    schema_owner: str
    policy_tables: tuple[str, ...]
    access: Access
    facts: dict[str, Any]

    @property
    def version_table(self) -> Table | None:
        """The version table, if it exists."""
        return self.tables.get(str(VERSION_TABLE))

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles whose grants are compared."""
        return ("PUBLIC", *self.facts["api_roles"])


def observe(connection: Connection, tables: Tables) -> Observation:
    """Read the tables of these names and the version table.

    Arguments:
        connection: in a read-only transaction that sees one state, with `catalog.PINNED`.
        tables: of all revisions.

    Raises:
        DBAPIError: another session has locked one of the tables for longer than lock_timeout.
    """
    complete = [name for name, table in tables.items() if not table.partial]
    parameters = access_query.parameters([*complete, str(VERSION_TABLE)]) | {
        "schema": VERSION_TABLE.schema,
        "table": VERSION_TABLE.name,
    }
    server = dict(connection.execute(_SERVER, parameters).one()._asdict())
    readable, owner = server.pop("readable"), server.pop("owner")
    policy_tables = tuple(server.pop("policy_tables"))
    schema_grants = frozenset(Grant(**grant) for grant in json.loads(server.pop("schema_grants")))
    effective = Access(json.loads(server.pop("access")), {})
    if effective.may_call:
        uid_function.call(connection)
    found = catalog.read(connection, [*tables, str(VERSION_TABLE)], pinned=True)
    heads, returned = _heads(connection, readable=bool(readable))
    effective = Access(effective.values, uid_function.parse(returned))
    revisions = None if readable is False else heads
    return Observation(
        found, revisions, schema_grants, owner or "", policy_tables, effective, server
    )


def _heads(connection: Connection, *, readable: bool) -> tuple[tuple[str, ...], str | None]:
    """Read the recorded revisions, and the results of `uid_function.call`."""
    rows = f"SELECT version_num::text FROM {VERSION_TABLE}" if readable else "SELECT '' LIMIT 0"
    query = f"SELECT ARRAY({rows}), {uid_function.RETURNED}"
    found, returned = connection.exec_driver_sql(query).one()
    return tuple(sorted(found)), returned


# No cast to regclass: it fails for a role without USAGE on the schema.
_SERVER = text(
    f"""
    SELECT {platform_locks.LISTED} AS policy_tables,
           current_setting('server_version') AS server, current_database()::text AS database,
           current_user::text AS role, {access_query.EXISTING_ROLES} AS api_roles,
           (SELECT has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
            FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
            WHERE n.nspname = :schema AND c.relname = :table) AS readable,
           (SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = :schema) AS owner,
           (SELECT coalesce(json_agg(json_build_object(
                'role', CASE e.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(e.grantee) END,
                'privilege', e.privilege_type, 'grantable', e.is_grantable)), '[]')::text
            FROM pg_namespace AS n, aclexplode(n.nspacl) AS e WHERE n.nspname = :schema
           ) AS schema_grants,
           {access_query.QUERY}
    """
)
