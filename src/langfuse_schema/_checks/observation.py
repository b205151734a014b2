"""Read from a database all that `verify` compares, in one transaction."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from langfuse_schema._checks import platform_locks
from langfuse_schema._history.chain import VERSION_TABLE
from langfuse_schema._postgres import catalog
from langfuse_schema._postgres.objects import Grant
from langfuse_schema.tables import API_ROLES

if TYPE_CHECKING:
    from collections.abc import Iterable

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
        facts: the server's version, the database, the role, and the existing API roles.
    """

    tables: Tables
    revisions: tuple[str, ...] | None
    schema_grants: frozenset[Grant]
    schema_owner: str = ""
    policy_tables: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def version_table(self) -> Table | None:
        """The version table, if it exists."""
        return self.tables.get(str(VERSION_TABLE))

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles whose grants are compared."""
        return ("PUBLIC", *self.facts["api_roles"])


def observe(connection: Connection, names: Iterable[str]) -> Observation:
    """Read the tables of these names and the version table.

    Arguments:
        connection: in a read-only transaction that sees one state.
        names: `schema.table`.

    Raises:
        DBAPIError: another session has locked one of the tables for longer than lock_timeout.
    """
    parameters = {
        "schema": VERSION_TABLE.schema,
        "table": VERSION_TABLE.name,
        "roles": list(API_ROLES),
    }
    server = dict(connection.execute(_SERVER, parameters).one()._asdict())
    readable, owner = server.pop("readable"), server.pop("owner")
    policy_tables = tuple(server.pop("policy_tables"))
    grants = connection.execute(_SCHEMA_GRANTS, {"schema": VERSION_TABLE.schema})
    schema_grants = frozenset(Grant(*values) for values in grants)
    found = catalog.read(connection, [*names, str(VERSION_TABLE)])
    heads = VERSION_TABLE.heads(connection) if readable else ()
    revisions = None if readable is False else heads
    return Observation(found, revisions, schema_grants, owner or "", policy_tables, server)


# No cast to regclass: it fails for a role without USAGE on the schema.
_SERVER = text(
    f"""
    SELECT {platform_locks.LISTED} AS policy_tables,
           current_setting('server_version') AS server, current_database()::text AS database,
           current_user::text AS role, ARRAY(SELECT rolname::text FROM pg_roles
           WHERE rolname = ANY (:roles) ORDER BY 1) AS api_roles,
           (SELECT has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
            FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
            WHERE n.nspname = :schema AND c.relname = :table) AS readable,
           (SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = :schema) AS owner
    """
)

_SCHEMA_GRANTS = text(
    """
    SELECT CASE e.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(e.grantee)::text END,
           e.privilege_type, NULL, NULL, e.is_grantable
    FROM pg_namespace AS n, aclexplode(n.nspacl) AS e WHERE n.nspname = :schema
    """
)
