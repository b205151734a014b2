"""The table in which Alembic keeps the revision of a database, in a schema of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from langfuse_schema.sessions import SCRIPT

if TYPE_CHECKING:
    from sqlalchemy import Connection

VERSION_SCHEMA = "langfuse_migrations"
VERSION_TABLE = "alembic_version"

CREATE_SCHEMA = f"""
DO $$
DECLARE
  stranger text;
BEGIN
  IF NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = '{VERSION_SCHEMA}') THEN
    CREATE SCHEMA {VERSION_SCHEMA};
    FOR stranger IN SELECT rolname FROM pg_roles
      WHERE rolname IN ('anon', 'authenticated', 'service_role')
    LOOP
      EXECUTE format('REVOKE ALL ON SCHEMA {VERSION_SCHEMA} FROM %I', stranger);
    END LOOP;
    REVOKE ALL ON SCHEMA {VERSION_SCHEMA} FROM PUBLIC;
  END IF;
END $$"""

_CREATE_TABLE = (
    f"CREATE TABLE IF NOT EXISTS {VERSION_SCHEMA}.{VERSION_TABLE} ("
    "version_num VARCHAR(32) NOT NULL,"
    f" CONSTRAINT {VERSION_TABLE}_pkc PRIMARY KEY (version_num))"
)

CLOSE_TABLE = f"""
DO $$
DECLARE
  stranger text;
BEGIN
  FOR stranger IN SELECT rolname FROM pg_roles
    WHERE rolname IN ('anon', 'authenticated', 'service_role')
  LOOP
    EXECUTE format('REVOKE ALL ON {VERSION_SCHEMA}.{VERSION_TABLE} FROM %I', stranger);
  END LOOP;
  REVOKE ALL ON {VERSION_SCHEMA}.{VERSION_TABLE} FROM PUBLIC;
END $$"""


_IS_THERE = f"SELECT to_regclass('{VERSION_SCHEMA}.{VERSION_TABLE}') IS NOT NULL"
_HEADS = f"SELECT version_num FROM {VERSION_SCHEMA}.{VERSION_TABLE} ORDER BY 1"


def heads(connection: Connection) -> tuple[str, ...]:
    """Read the revision of a database: none before the first upgrade, several never by us.

    Arguments:
        connection: to the database; only read.
    """
    if not connection.exec_driver_sql(_IS_THERE).scalar():
        return ()
    return tuple(connection.exec_driver_sql(_HEADS).scalars())


def create(connection: Connection) -> None:
    """Make the table if it is not there, closed to the roles of the Data API.

    Alembic would make it too, but needs the schema, and leaves it to the default privileges.

    Arguments:
        connection: the migrating one, without an open transaction; it is left without one.
    """
    connection.exec_driver_sql(
        f"{CREATE_SCHEMA};{_CREATE_TABLE};{CLOSE_TABLE}", execution_options=SCRIPT
    )
    connection.commit()
