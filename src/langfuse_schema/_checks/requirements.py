"""Requirements of an upgrade: the server, the role, the app's tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import text

from langfuse_schema._checks import access_query, platform_locks, uid_function
from langfuse_schema._history.chain import VERSION_TABLE
from langfuse_schema._history.snapshots import names
from langfuse_schema._postgres import ddl, messages
from langfuse_schema._postgres.findings import finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from langfuse_schema._history.chain import Position
    from langfuse_schema._history.snapshots import Tables
    from langfuse_schema._postgres.findings import Finding

OLDEST_SERVER = 14

USERS = "auth.users"


@dataclass(frozen=True)
class ServerState:
    """The properties of a server, and of the connected role, that an upgrade depends on.

    Attributes:
        has_traces: whether any object has a name that the upgrade uses.
        may_create_in_public: None if the schema is missing.
        may_create_version_table: None if the schema is missing.
        may_write_version_table: None if the table is missing.
        uid_types: the results of the functions that a call of `auth.uid()` can mean.
        may_enter_auth: None if the schema is missing.
        may_use_plpgsql: None if the language is missing.
        advisory_functions: those for the runner lock that the role must not call.
        closed_tablespace: the default tablespace, if the role must not create tables in it.
        other_schema_owner: the owner of the version schema, if it is another role.
        event_triggers: those on DDL that are not Supabase's or of an extension.
        policy_tables: the tables that the platform locks at a policy statement.
        not_inherited: the owner of the database, if the role is a member of it without its rights.
        access: the effective access of the API roles, for `access.observe`.
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
    uid_types: list[str]
    may_enter_auth: bool | None
    may_use_plpgsql: bool | None
    advisory_functions: list[str]
    closed_tablespace: str | None
    event_triggers: list[str]
    other_schema_owner: str | None
    policy_tables: list[str]
    api_roles: list[str]
    not_inherited: str | None
    access: str


_TAGS = (
    *("CREATE SCHEMA", "CREATE TABLE", "CREATE INDEX", "CREATE POLICY", "GRANT", "REVOKE"),
    *("ALTER TABLE", "DROP INDEX", "DROP POLICY"),
)
"""The tags of the DDL statements of an upgrade."""

_PLATFORM_OWNER, _AUTOMATIC_RLS = "supabase_admin", "rls_auto_enable"
"""The owner of Supabase's event triggers, and the function of the one of automatic RLS."""

# One query, because each one costs a round trip.
_STATE = text(
    f"""
    SELECT {platform_locks.LISTED} AS policy_tables,
           (SELECT pg_get_userbyid(datdba)::text FROM pg_database
            WHERE datname = current_database() AND pg_has_role(datdba, 'MEMBER')
            AND NOT pg_has_role(datdba, 'USAGE')) AS not_inherited,
           {access_query.EXISTING_ROLES} AS api_roles,
           current_setting('server_version_num')::int / 10000 AS version,
           current_setting('transaction_read_only') = 'on' AS read_only,
           pg_is_in_recovery() AS recovering,
           current_user::text AS role, current_database()::text AS database,
           EXISTS (SELECT FROM pg_namespace WHERE nspname = :schema) AS has_version_schema,
           (SELECT has_schema_privilege(oid, 'USAGE') AND has_schema_privilege(oid, 'CREATE')
            FROM pg_namespace WHERE nspname = :schema) AS may_create_version_table,
           (SELECT bool_and(has_table_privilege(c.oid, needed)
                            AND has_schema_privilege(n.oid, 'USAGE'))
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
           ARRAY(SELECT CASE WHEN p.proretset THEN 'SETOF ' ELSE '' END
                        || format_type(p.prorettype, NULL)
                 FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
                 WHERE n.nspname = 'auth' AND p.proname = 'uid' AND p.prokind = 'f'
                 AND p.pronargs = p.pronargdefaults) AS uid_types,
           (SELECT has_schema_privilege(oid, 'USAGE') FROM pg_namespace
            WHERE nspname = 'auth') AS may_enter_auth,
           (SELECT bool_or(has_language_privilege(oid, 'USAGE')) FROM pg_language
            WHERE lanname = 'plpgsql') AS may_use_plpgsql,
           ARRAY(SELECT f FROM unnest(ARRAY['pg_try_advisory_lock(integer,integer)',
                                            'pg_advisory_unlock(integer,integer)']) AS f
                 WHERE NOT has_function_privilege('pg_catalog.' || f, 'EXECUTE')
                ) AS advisory_functions,
           (SELECT spcname::text FROM pg_tablespace
            WHERE spcname = current_setting('default_tablespace')
            AND NOT has_tablespace_privilege(oid, 'CREATE')
            AND oid <> (SELECT dattablespace FROM pg_database WHERE datname = current_database())
           ) AS closed_tablespace,
           ARRAY(SELECT format('%s (%s, function %s)', e.evtname, pg_get_userbyid(e.evtowner),
                               e.evtfoid::regproc)
                 FROM pg_event_trigger AS e JOIN pg_proc AS p ON p.oid = e.evtfoid
                 WHERE e.evtenabled IN ('O', 'A') AND e.evtevent <> 'login'
                 AND (e.evttags IS NULL OR e.evttags && CAST(:tags AS text[]))
                 AND p.proname <> '{_AUTOMATIC_RLS}'
                 AND pg_get_userbyid(e.evtowner) <> '{_PLATFORM_OWNER}'
                 AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.deptype = 'e'
                     AND d.objid IN (e.oid, p.oid)) ORDER BY 1) AS event_triggers,
           (SELECT pg_get_userbyid(nspowner)::text FROM pg_namespace
            WHERE nspname = :schema AND nspowner <> (SELECT oid FROM pg_roles
                                                     WHERE rolname = current_user)
           ) AS other_schema_owner,
           {access_query.QUERY}
    """
)


def server_state(connection: Connection, tables: Tables) -> ServerState:
    """Read the state of the server. The names in `tables` count as traces."""
    partial = [table for table in tables.values() if table.partial]
    complete = [name for name, table in tables.items() if not table.partial]
    parts = [f"{table.name}.{column.name}" for table in partial for column in table.columns]
    parts += [f"{table.name}.{item.name}" for table in partial for item in table.constraints]
    parameters = {
        "schema": VERSION_TABLE.schema,
        "table": VERSION_TABLE.name,
        "names": list(names(tables)),
        "parts": parts,
        "tags": list(_TAGS),
        **access_query.parameters([*complete, str(VERSION_TABLE)]),
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
    elif state.may_write_version_table is None and state.other_schema_owner:
        # The upgrade works, and verify reports the owner afterwards.
        schema = VERSION_TABLE.schema
        values = {"found": state.other_schema_owner, "expected": state.role}
        fix = (f"ALTER SCHEMA {schema} OWNER TO {ddl.quoted(state.role)};",)
        yield finding("owner-differs", schema, **values, fix=fix, severity="warning")


def runner(state: ServerState) -> Iterator[Finding]:
    """Check that the role can call the functions that each run calls."""
    if state.may_use_plpgsql is False:
        yield _privilege(state, "USAGE", "LANGUAGE", "plpgsql")
    for function in state.advisory_functions:
        yield _privilege(state, "EXECUTE", "FUNCTION", f"pg_catalog.{function}")
    if state.event_triggers:
        cause = "\n".join(state.event_triggers)
        yield finding("event-trigger-found", "pg_event_trigger", cause=cause)


def schema_public(state: ServerState, upgrade: Position) -> Iterator[Finding]:
    """Check that the role can create tables and indexes in public."""
    if not names(upgrade.after).keys() - names(upgrade.before).keys():
        return
    if state.may_create_in_public is None:
        yield _missing_public(state)
    elif not state.may_create_in_public:
        yield _privilege(state, "CREATE", "SCHEMA", "public")
    if state.closed_tablespace:
        yield _privilege(state, "CREATE", "TABLESPACE", state.closed_tablespace)


def _missing_public(state: ServerState) -> Finding:
    """Return the finding. A new schema is closed, so the fix opens it to the API roles."""
    fix = ["CREATE SCHEMA public;"]
    fix += [f"GRANT USAGE ON SCHEMA public TO {ddl.quoted(role)};" for role in state.api_roles]
    if state.may_create_schema:
        return finding("schema-missing", "public", advice="Run:", fix=fix)
    fix.append(f"GRANT USAGE, CREATE ON SCHEMA public TO {ddl.quoted(state.role)};")
    return finding("schema-missing", "public", advice="As the owner of the database, run:", fix=fix)


_USERS = text(
    """
    SELECT c.relkind::text AS kind, format_type(a.atttypid, a.atttypmod) AS type,
           c.relpersistence = 'p' AS is_logged,
           (SELECT CASE WHEN bool_or(i.indimmediate) THEN 'a key' ELSE 'only a deferrable key' END
            FROM pg_index AS i WHERE i.indrelid = c.oid AND i.indisunique
            AND i.indisvalid AND i.indpred IS NULL AND i.indnkeyatts = 1
            AND i.indkey[0] = a.attnum HAVING count(*) > 0) AS key,
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
    elif not users.is_logged:
        yield finding("users-table-differs", USERS, found="an unlogged table", expected=expected)
    elif users.type != "uuid" or users.key != "a key":
        found = f"id {users.type or 'missing'}, {users.key or 'not a key'}"
        yield finding("users-table-differs", f"{USERS}.id", found=found, expected=expected)
    else:
        if not users.may_enter:
            yield _privilege(state, "USAGE", "SCHEMA", "auth")
        if not users.may_refer:
            yield _privilege(state, "REFERENCES (id)", "TABLE", USERS)


def user_id_function(state: ServerState) -> Iterator[Finding]:
    """Check that new policies can call `auth.uid()`."""
    if state.uid_types != ["uuid"]:
        number, found = len(state.uid_types), ", ".join(state.uid_types) or "no such function"
        advice = "Connect to the app's Supabase database."
        if number > 1:
            found = f"{number} functions can be called, ambiguously"
            advice = "Drop or rename those that have arguments with defaults."
        yield finding("uid-function-missing", uid_function.NAME, found=found, advice=advice)
    elif state.may_enter_auth is False:
        yield _privilege(state, "USAGE", "SCHEMA", "auth")


def _privilege(state: ServerState, privilege: str, kind: str, name: str) -> Finding:
    granted = ddl.quoted(name) if kind in ("DATABASE", "TABLESPACE") else name
    return finding(
        "privilege-missing",
        name,
        role=state.role,
        privilege=privilege,
        kind=kind.lower(),
        grant=f"GRANT {privilege} ON {kind} {granted} TO {ddl.quoted(state.role)};",
    )
