"""Read from a database all that `verify` compares, in one transaction."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from langfuse_schema import sessions
from langfuse_schema._postgres import catalog
from langfuse_schema._postgres.objects import Grant
from langfuse_schema.tables import API_ROLES
from langfuse_schema.version_table import VERSION_SCHEMA, VERSION_TABLE, heads

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy import Connection

    from langfuse_schema._history.snapshots import Tables
    from langfuse_schema._postgres.objects import Table
    from langfuse_schema.database import Options

VERSION = f"{VERSION_SCHEMA}.{VERSION_TABLE}"


@dataclass(frozen=True)
class Observation:
    """The state of a database at one moment.

    Attributes:
        tables: the actual tables, the version table included.
        revisions: the rows of the version table; None if the role cannot read it.
        schema_grants: the grants on the schema of the version table.
        schema_owner: its owner; empty if the schema is missing.
        facts: the server's version, the database, the role, and the existing API roles.
    """

    tables: Tables
    revisions: tuple[str, ...] | None
    schema_grants: frozenset[Grant]
    schema_owner: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def version_table(self) -> Table | None:
        """The version table, if it exists."""
        return self.tables.get(VERSION)

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles whose grants are compared."""
        return ("PUBLIC", *self.facts["api_roles"])


def observe(connection: Connection, options: Options, names: Iterable[str]) -> Observation:
    """Read the tables of these names and the version table. Nothing is changed.

    Arguments:
        connection: to the database. An open transaction on it is rolled back.
        options: of the run; reading waits for a lock for at most `lock_timeout`.
        names: `schema.table`.

    Raises:
        DBAPIError: another session has locked one of the tables for longer than lock_timeout.
    """
    with _read_only(connection, options):
        return _read(connection, names)


@contextmanager
def _read_only(connection: Connection, options: Options) -> Iterator[None]:
    """Run a transaction that sees one state and can change nothing, on a standby too."""
    connection.rollback()
    driver: Any = connection.connection.dbapi_connection
    mode = "ISOLATION LEVEL REPEATABLE READ READ ONLY"
    # An engine in autocommit mode begins no transaction by itself.
    begin = f"BEGIN {mode}" if driver.autocommit else f"SET TRANSACTION {mode}"
    connection.exec_driver_sql(begin)
    try:
        sessions.begin_reading(connection, options)
        connection.exec_driver_sql("SET LOCAL search_path TO pg_catalog")
        yield
    finally:
        if driver.autocommit:
            connection.exec_driver_sql("ROLLBACK")
        connection.rollback()


# No cast to regclass: it fails for a role without USAGE on the schema.
_SERVER = text(
    """
    SELECT current_setting('server_version') AS server, current_database()::text AS database,
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


def _read(connection: Connection, names: Iterable[str]) -> Observation:
    parameters = {"schema": VERSION_SCHEMA, "table": VERSION_TABLE, "roles": list(API_ROLES)}
    server = dict(connection.execute(_SERVER, parameters).one()._asdict())
    readable, owner = server.pop("readable"), server.pop("owner")
    grants = connection.execute(_SCHEMA_GRANTS, {"schema": VERSION_SCHEMA})
    schema_grants = frozenset(Grant(*values) for values in grants)
    found = catalog.read(connection, [*names, VERSION]).tables
    revisions = None if readable is False else heads(connection) if readable else ()
    return Observation(found, revisions, schema_grants, owner or "", server)
