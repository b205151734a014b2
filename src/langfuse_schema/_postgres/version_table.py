"""The table in which Alembic records the revision of a database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from langfuse_schema._postgres.findings import Finding, SchemaError, finding
from langfuse_schema._postgres.objects import Column, Constraint, Index, Table
from langfuse_schema._postgres.sessions import SCRIPT

if TYPE_CHECKING:
    from sqlalchemy import Connection


@dataclass(frozen=True)
class VersionTable:
    """A version table in a separate schema.

    Attributes:
        closed_to: the roles, in addition to PUBLIC, that lose all privileges. They need not exist.
    """

    schema: str
    name: str
    closed_to: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return `schema.table`."""
        return f"{self.schema}.{self.name}"

    def expected(self) -> Table:
        """Return the table as Alembic creates it."""
        key = f"{self.name}_pkc"
        columns = (Column("version_num", "character varying(32)", nullable=False),)
        constraints = (Constraint(key, "PRIMARY KEY (version_num)"),)
        indexes = (Index(key, f"CREATE UNIQUE INDEX {key} ON {self} USING btree (version_num)"),)
        return Table(
            self.schema, self.name, columns=columns, constraints=constraints, indexes=indexes
        )

    def heads(self, connection: Connection) -> tuple[str, ...]:
        """Read the recorded revisions; none before the first upgrade.

        Raises:
            SchemaError: the role must not read the table.
        """
        state = connection.exec_driver_sql(
            "SELECT has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'),"
            " quote_ident(current_user)::text, pg_get_userbyid(c.relowner)::text,"
            " pg_has_role(c.relowner, 'MEMBER') AND NOT pg_has_role(c.relowner, 'USAGE')"
            " FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
            f" WHERE n.nspname = '{self.schema}' AND c.relname = '{self.name}'"
        ).one_or_none()
        if state is None:
            return ()
        readable, role, owner, not_inherited = state
        if not readable:
            raise SchemaError(self._unreadable(role, owner, not_inherited))
        rows = connection.exec_driver_sql(f"SELECT version_num FROM {self} ORDER BY 1")
        return tuple(rows.scalars())

    def check_privileges(self, connection: Connection) -> None:
        """Roll back, and raise SchemaError if the role must not read the table."""
        connection.rollback()
        self.heads(connection)

    def _unreadable(self, role: str, owner: str, not_inherited: bool) -> Finding:
        if not_inherited:
            return finding("role-not-inherited", role, role=role, owner=owner)
        advice = f"Connect as {owner}."
        return finding("table-not-owned", str(self), role=role, owner=owner, advice=advice)

    def create(self, connection: Connection) -> None:
        """Create the table unless it exists, closed to `closed_to`. The caller commits.

        Alembic would create it too, but needs the schema, and relies on default privileges.
        """
        table = (
            f"CREATE TABLE IF NOT EXISTS {self} (version_num VARCHAR(32) NOT NULL,"
            f" CONSTRAINT {self.name}_pkc PRIMARY KEY (version_num))"
        )
        script = f"{self.create_schema()};{table};{self.close_table()}"
        connection.exec_driver_sql(script, execution_options=SCRIPT)

    def create_schema(self) -> str:
        """Return the statement that creates the schema unless it exists.

        CREATE SCHEMA IF NOT EXISTS needs the privilege even if the schema exists.
        """
        return self._block(
            f"""IF NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = '{self.schema}') THEN
    CREATE SCHEMA {self.schema};
    {self._revoke(f"SCHEMA {self.schema}")}
  END IF;"""
        )

    def close_table(self) -> str:
        """Return the statement that revokes all privileges on the table."""
        return self._block(self._revoke(str(self)))

    def _block(self, statements: str) -> str:
        return f"""
DO $$
DECLARE
  api_role text;
BEGIN
  {statements}
END $$"""

    def _revoke(self, target: str) -> str:
        roles = ", ".join(f"'{role}'" for role in self.closed_to) or "NULL"
        return f"""FOR api_role IN SELECT rolname FROM pg_roles WHERE rolname IN ({roles}) LOOP
      EXECUTE format('REVOKE ALL ON {target} FROM %I', api_role);
    END LOOP;
    REVOKE ALL ON {target} FROM PUBLIC;"""
