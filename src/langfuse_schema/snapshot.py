"""One look at a database: everything that `verify` compares, read in one transaction."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from langfuse_schema import access, catalog, sessions, tables
from langfuse_schema.version_table import VERSION_SCHEMA, VERSION_TABLE, heads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from langfuse_schema.database import Options

VERSION = f"{VERSION_SCHEMA}.{VERSION_TABLE}"


@dataclass(frozen=True)
class Snapshot:
    """What one look at a database saw."""

    tables: dict[str, catalog.Table]
    revisions: tuple[str, ...] | None
    """The rows of the version table; None if this role may not read it."""
    schema: frozenset[catalog.Grant]
    """The grants on the schema of the version table."""
    schema_owner: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def version_table(self) -> catalog.Table | None:
        """The version table, if there is one."""
        return self.tables.get(VERSION)


def take(connection: Connection, options: Options) -> Snapshot:
    """Read what there is to compare, and change nothing.

    Arguments:
        connection: to the database; a transaction that it is in is rolled back.
        options: of the run; reading waits for a lock as long as they say.

    Raises:
        DBAPIError: somebody holds one of the tables for longer than lock_timeout.
    """
    with _read_only(connection, options):
        return _look(connection)


@contextmanager
def _read_only(connection: Connection, options: Options) -> Iterator[None]:
    """One transaction that sees one state and can change nothing, on a standby too."""
    connection.rollback()
    driver: Any = connection.connection.dbapi_connection
    mode = "ISOLATION LEVEL REPEATABLE READ READ ONLY"
    # An engine in autocommit mode, as apps configure it, begins no transaction by itself.
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


_SERVER = """
    SELECT current_setting('server_version') AS server, current_database()::text AS database,
           current_user::text AS role, ARRAY(SELECT rolname::text FROM pg_roles
           WHERE rolname = ANY (:roles) ORDER BY 1) AS api_roles
"""

_READABLE = """
    SELECT has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = :schema AND c.relname = :table
"""

_SCHEMA_OWNER = "SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = :schema"

_SCHEMA_GRANTS = """
    SELECT CASE e.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(e.grantee)::text END,
           e.privilege_type, NULL, e.is_grantable
    FROM pg_namespace AS n, aclexplode(n.nspacl) AS e WHERE n.nspname = :schema
"""


def _look(connection: Connection) -> Snapshot:
    version = {"schema": VERSION_SCHEMA, "table": VERSION_TABLE}
    server = connection.execute(text(_SERVER), {"roles": list(access.API_ROLES)}).one()
    grants = connection.execute(text(_SCHEMA_GRANTS), {"schema": VERSION_SCHEMA})
    schema = frozenset(catalog.Grant(*values) for values in grants)
    owner = connection.execute(text(_SCHEMA_OWNER), {"schema": VERSION_SCHEMA}).scalar()
    # No cast to regclass: it fails for a role that may not enter the schema.
    readable = connection.execute(text(_READABLE), version).scalar()
    ours = [f"public.{name}" for name in (*access.TABLES, *tables.APP_TABLES)]
    found = catalog.read(connection, [*ours, VERSION]).tables
    revisions = None if readable is False else heads(connection) if readable else ()
    return Snapshot(found, revisions, schema, owner or "", dict(server._asdict()))
