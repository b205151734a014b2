"""Requirements of an upgrade: the server, the role, the app's tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import text

from langfuse_schema._checks import platform_locks
from langfuse_schema._history.chain import VERSION_TABLE
from langfuse_schema._history.snapshots import names
from langfuse_schema._postgres import ddl, messages
from langfuse_schema._postgres.findings import finding
from langfuse_schema.tables import API_ROLES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from langfuse_schema._history.chain import Position
    from langfuse_schema._history.snapshots import Tables
    from langfuse_schema._postgres.findings import Finding

OLDEST_SERVER = 14

USERS = "auth.users"
USER_ID_FUNCTION = "auth.uid()"


@dataclass(frozen=True)
class ServerState:
    """The properties of a server, and of the connected role, that an upgrade depends on.

    Attributes:
        has_traces: whether any object has a name that the upgrade uses.
        may_create_in_public: None if the schema is missing.
        may_create_version_table: None if the schema is missing.
        may_write_version_table: None if the table is missing.
        policy_tables: the tables that the platform locks at a policy statement.
        not_inherited: the owner of the database, if the role is a member of it without its rights.
    """

    version: int
    read_only: bool
    recovering: bool
    role: str
    database: str
    has_version_schema: bool
    may_create_version_table: bool | None
    may_write_version_table: bool | None
    may_create_schema: bool
    may_create_in_public: bool | None
    has_traces: bool
    has_uid: bool
    policy_tables: list[str]
    api_roles: list[str]
    not_inherited: str | None


# One query, because each one costs a round trip.
_STATE = text(
    f"""
    SELECT {platform_locks.LISTED} AS policy_tables,
           (SELECT pg_get_userbyid(datdba)::text FROM pg_database
            WHERE datname = current_database() AND pg_has_role(datdba, 'MEMBER')
            AND NOT pg_has_role(datdba, 'USAGE')) AS not_inherited,
           ARRAY(SELECT rolname::text FROM pg_roles WHERE rolname = ANY (:roles)) AS api_roles,
           current_setting('server_version_num')::int / 10000 AS version,
           current_setting('transaction_read_only') = 'on' AS read_only,
           pg_is_in_recovery() AS recovering,
           current_user::text AS role, current_database()::text AS database,
           EXISTS (SELECT FROM pg_namespace WHERE nspname = :schema) AS has_version_schema,
           (SELECT has_schema_privilege(oid, 'CREATE') FROM pg_namespace
            WHERE nspname = :schema) AS may_create_version_table,
           (SELECT bool_and(has_table_privilege(c.oid, needed))
            FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace,
                 unnest('{{SELECT,INSERT,UPDATE,DELETE}}'::text[]) AS needed
            WHERE n.nspname = :schema AND c.relname = :table) AS may_write_version_table,
           has_database_privilege(current_database(), 'CREATE') AS may_create_schema,
           (SELECT has_schema_privilege(oid, 'CREATE') FROM pg_namespace
            WHERE nspname = 'public') AS may_create_in_public,
           EXISTS (SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
                   WHERE n.nspname = 'public' AND (c.relname = ANY (:names)
                   OR EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = c.oid
                   AND c.relname || '.' || a.attname = ANY (:parts) AND NOT a.attisdropped)
                   OR EXISTS (SELECT FROM pg_constraint AS k WHERE k.conrelid = c.oid
                   AND c.relname || '.' || k.conname = ANY (:parts))))
           OR EXISTS (SELECT FROM pg_type AS t JOIN pg_namespace AS n ON n.oid = t.typnamespace
                      WHERE n.nspname = 'public' AND t.typname = ANY (:names)) AS has_traces,
           EXISTS (SELECT FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
                   WHERE n.nspname = 'auth' AND p.proname = 'uid' AND p.pronargs = 0
                   AND p.prorettype = 'uuid'::regtype) AS has_uid
    """
)


def server_state(connection: Connection, tables: Tables) -> ServerState:
    """Read the state of the server. The names in `tables` count as traces."""
    partial = [table for table in tables.values() if table.partial]
    parts = [f"{table.name}.{column.name}" for table in partial for column in table.columns]
    parts += [f"{table.name}.{item.name}" for table in partial for item in table.constraints]
    parameters = {
        "schema": VERSION_TABLE.schema,
        "table": VERSION_TABLE.name,
        "names": list(names(tables)),
        "parts": parts,
        "roles": list(API_ROLES),
    }
    return ServerState(**connection.execute(_STATE, parameters).one()._asdict())


_OF_OWNER = ("privilege-missing", "app-table-not-owned", "table-not-owned", "schema-missing")


def one_cause(findings: list[Finding], state: ServerState) -> list[Finding]:
    """Replace the missing rights of the owner, if the role only does not inherit them."""
    others = [one for one in findings if one.code not in _OF_OWNER]
    if state.not_inherited is None or len(others) == len(findings):
        return findings
    values = {"role": state.role, "owner": state.not_inherited}
    return [finding("role-not-inherited", state.role, **values), *others]


def server(state: ServerState) -> Iterator[Finding]:
    """Check the version of the server, and that the session can write."""
    if state.version < OLDEST_SERVER:
        versions = {"version": state.version, "oldest": OLDEST_SERVER}
        yield finding("server-too-old", "server_version", **versions)
    if state.read_only:
        found = "a standby server" if state.recovering else "a read-only session"
        yield finding("session-read-only", "transaction_read_only", found=found)


def version_table(state: ServerState) -> Iterator[Finding]:
    """Check that the role can create or write the version table."""
    if not state.has_version_schema and not state.may_create_schema:
        yield _privilege(state, "CREATE", "DATABASE", state.database)
    elif state.may_write_version_table is None and state.may_create_version_table is False:
        yield _privilege(state, "USAGE, CREATE", "SCHEMA", VERSION_TABLE.schema)
    elif state.may_write_version_table is False:
        privileges = "SELECT, INSERT, UPDATE, DELETE"
        yield _privilege(state, privileges, "TABLE", str(VERSION_TABLE))


def schema_public(state: ServerState, upgrade: Position) -> Iterator[Finding]:
    """Check that the role can create tables and indexes in public."""
    if not names(upgrade.after).keys() - names(upgrade.before).keys():
        return
    if state.may_create_in_public is None:
        yield finding("schema-missing", "public")
    elif not state.may_create_in_public:
        yield _privilege(state, "CREATE", "SCHEMA", "public")


_USERS = text(
    """
    SELECT c.relkind::text AS kind, format_type(a.atttypid, a.atttypmod) AS type,
           EXISTS (SELECT FROM pg_index AS i WHERE i.indrelid = c.oid AND i.indisunique
                   AND i.indisvalid AND i.indpred IS NULL AND i.indnkeyatts = 1
                   AND i.indkey[0] = a.attnum) AS is_key,
           has_schema_privilege(n.oid, 'USAGE') AS may_enter,
           has_column_privilege(c.oid, a.attnum, 'REFERENCES') AS may_refer
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'id' AND NOT a.attisdropped
    WHERE n.nspname = 'auth' AND c.relname = 'users'
    """
)


def users_table(connection: Connection, state: ServerState) -> Iterator[Finding]:
    """Check that new foreign keys can refer to `auth.users`."""
    users = connection.execute(_USERS).one_or_none()
    expected = "a table of users with the key id uuid, as on Supabase"
    if users is None:
        yield finding("users-table-missing", USERS, expected=expected)
    elif users.kind not in ("r", "p"):
        kind = messages.RELATION_KINDS.get(users.kind, users.kind)
        yield finding("users-table-differs", USERS, found=f"a {kind}", expected=expected)
    elif users.type != "uuid" or not users.is_key:
        found = f"id {users.type or 'missing'}, {'a' if users.is_key else 'not a'} key"
        yield finding("users-table-differs", f"{USERS}.id", found=found, expected=expected)
    else:
        if not users.may_enter:
            yield _privilege(state, "USAGE", "SCHEMA", "auth")
        if not users.may_refer:
            yield _privilege(state, "REFERENCES (id)", "TABLE", USERS)


def user_id_function(state: ServerState) -> Iterator[Finding]:
    """Check that `auth.uid()` exists, which new policies call."""
    if not state.has_uid:
        yield finding("uid-function-missing", USER_ID_FUNCTION)


def changed_tables(
    connection: Connection, found: Tables, upgrade: Position, state: ServerState
) -> Iterator[Finding]:
    """Check that existing tables which the upgrade changes are tables that the role can alter."""
    changed = [table.qualified_name for table in upgrade.changed]
    owners = {found[name].owner for name in changed if name in found}
    inherited = _inherited(connection, owners) if owners else set()
    for table in upgrade.changed:
        name = table.qualified_name
        actual = found.get(name)
        if table.partial and (actual is None or actual.kind != "r"):
            kind = messages.RELATION_KINDS[actual.kind] if actual else None
            yield finding("app-table-differs" if kind else "app-table-missing", name, kind=kind)
        elif actual is not None and actual.owner not in inherited:
            code = "app-table-not-owned" if table.partial else "table-not-owned"
            yield finding(code, name, owner=actual.owner, role=state.role)


def _inherited(connection: Connection, owners: set[str]) -> set[str]:
    """Return those of the roles whose privileges the connected role has."""
    query = "SELECT o FROM unnest(CAST(:owners AS name[])) AS o WHERE pg_has_role(o, 'USAGE')"
    return set(connection.scalars(text(query), {"owners": sorted(owners)}))


def _privilege(state: ServerState, privilege: str, kind: str, name: str) -> Finding:
    granted = ddl.quoted(name) if kind == "DATABASE" else name
    return finding(
        "privilege-missing",
        name,
        role=state.role,
        privilege=privilege,
        kind=kind.lower(),
        grant=f"GRANT {privilege} ON {kind} {granted} TO {ddl.quoted(state.role)}",
    )
