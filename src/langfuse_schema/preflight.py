"""Before an upgrade: can this database take it? Everything is checked, nothing is changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from langfuse_schema import (
    access,
    catalog,
    declaration,
    differences,
    obstacles,
    surroundings,
    tables,
)
from langfuse_schema.findings import Finding
from langfuse_schema.version_table import VERSION_SCHEMA, VERSION_TABLE

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from sqlalchemy import Connection

OLDEST_SERVER = 14

_OURS = tuple(f"public.{name}" for name in access.TABLES)
_APPS = tuple(f"public.{name}" for name in tables.APP_TABLES)


def check(
    connection: Connection, applied: Sequence[str], pending: Collection[str]
) -> list[Finding]:
    """Find what would make an upgrade fail.

    Arguments:
        connection: to the database; only read.
        applied: the revisions that the version table names; empty before the first.
        pending: the revisions that the upgrade would run.

    Returns:
        Findings, all of them; empty if the upgrade can go ahead.
    """
    around = _around(connection)
    # Most upgrades begin where there is nothing of ours, and nothing to compare.
    parts = catalog.SHAPE if around.has_traces else ()
    found = catalog.read(connection, [*_OURS, *_APPS], parts).tables
    findings = list(_server(around))
    if applied:
        findings += obstacles.gone(found, applied[0])
    if pending:
        findings += _version_table(connection, around)
        findings += _schema_public(connection, around, pending)
        if around.has_traces:
            findings += obstacles.names_taken(connection, max(applied, default=""), max(pending))
        findings += obstacles.indexes_of_another_shape(found, max(pending))
        findings += surroundings.invalid_leftovers(found, max(applied, default=None), max(pending))
        if tables.CORE not in pending:
            findings += surroundings.not_owned(connection, found)
    if tables.CORE in pending:
        findings += _users(connection)
        findings += obstacles.plan_or_strangers(found)
    if tables.LINKS in pending:
        findings += _app_tables(connection, found)
    if tables.POLICIES in pending:
        findings += _uid(around)
        if tables.CORE not in pending:
            findings += obstacles.policies_too_early(found)
    elif tables.HARDENED in pending:
        findings += obstacles.policies_to_replace(found)
    return findings


def facts(connection: Connection) -> dict[str, Any]:
    """Gather what is worth knowing before an upgrade, and no finding.

    Arguments:
        connection: to the database; only read.

    Returns:
        The server's version, database, role, the roles of the Data API that exist, what they
        are granted on new tables by default, and of each of the app's tables the estimated rows
        and the size in bytes.
    """
    server = connection.execute(
        text(
            "SELECT current_setting('server_version') AS server, current_database() AS database,"
            " current_user::text AS role, ARRAY(SELECT rolname::text FROM pg_roles"
            " WHERE rolname = ANY (:roles) ORDER BY 1) AS api_roles"
        ),
        {"roles": list(access.API_ROLES)},
    ).one()
    sizes = connection.execute(
        text(
            "SELECT n.nspname || '.' || c.relname, greatest(c.reltuples, 0)::bigint,"
            " pg_total_relation_size(c.oid)"
            " FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
            " WHERE n.nspname || '.' || c.relname = ANY (:names) ORDER BY 1"
        ),
        {"names": list(_APPS)},
    )
    tables_of_app = {name: {"rows": rows, "bytes": size} for name, rows, size in sizes}
    return {
        **server._asdict(),
        "default_privileges": surroundings.default_privileges(connection),
        "app_tables": tables_of_app,
    }


def check_writable(connection: Connection) -> list[Finding]:
    """Find what would make a stamp or a downgrade fail before it begins.

    Arguments:
        connection: to the database; only read.
    """
    around = _around(connection)
    return [*_server(around), *_version_table(connection, around)]


def check_heads(heads: Sequence[str], known: Sequence[str]) -> list[Finding]:
    """Find that the version table does not name one of our revisions, or none.

    Arguments:
        heads: the revisions in the database; more than one is left by no run of ours.
        known: ours, oldest first.
    """
    if len(heads) > 1:
        return [_several_revisions(heads)]
    return [unknown_revision(head, known) for head in heads if head not in known]


def _several_revisions(found: Sequence[str]) -> Finding:
    return Finding(
        "revision-unknown",
        f"{VERSION_SCHEMA}.{VERSION_TABLE}",
        "several: " + ", ".join(found),
        "one revision",
        "look what the database holds: langfuse-schema verify\n"
        "then: langfuse-schema stamp --purge REVISION",
    )


def unknown_revision(found: str, known: Sequence[str]) -> Finding:
    """Say that the version table names a revision that this package does not have.

    Arguments:
        found: the revision in the database.
        known: ours, oldest first.
    """
    return Finding(
        "revision-unknown",
        f"{VERSION_SCHEMA}.{VERSION_TABLE}",
        found,
        "one of " + ", ".join(known),
        "a newer release migrated this database: pip install --upgrade langfuse-schema\n"
        "or, if you know what the database holds: langfuse-schema stamp --purge REVISION",
    )


# In one query, since each costs a round trip to a server that may be far away.
_AROUND = text(
    """
    SELECT current_setting('server_version_num')::int / 10000 AS version,
           current_setting('transaction_read_only') = 'on' AS read_only,
           pg_is_in_recovery() AS recovering,
           EXISTS (SELECT FROM pg_namespace WHERE nspname = :schema) AS has_version_schema,
           (SELECT has_schema_privilege(oid, 'CREATE') FROM pg_namespace
            WHERE nspname = :schema) AS may_create_version_table,
           (SELECT bool_and(has_table_privilege(c.oid, needed))
            FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace,
                 unnest('{SELECT,INSERT,UPDATE,DELETE}'::text[]) AS needed
            WHERE n.nspname = :schema AND c.relname = :table) AS may_write_version_table,
           has_database_privilege(current_database(), 'CREATE') AS may_create_schema,
           (SELECT has_schema_privilege(oid, 'CREATE') FROM pg_namespace
            WHERE nspname = 'public') AS may_create_in_public,
           EXISTS (SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
                   WHERE n.nspname = 'public' AND (c.relname = ANY (:names)
                   OR c.relname = ANY (:apps) AND (EXISTS (SELECT FROM pg_attribute AS a
                   WHERE a.attrelid = c.oid AND a.attname = :link AND NOT a.attisdropped)
                   OR EXISTS (SELECT FROM pg_constraint AS k
                   WHERE k.conrelid = c.oid AND k.conname = ANY (:constraints)))))
           OR EXISTS (SELECT FROM pg_type AS t JOIN pg_namespace AS n ON n.oid = t.typnamespace
                      WHERE n.nspname = 'public' AND t.typname = ANY (:names)) AS has_traces,
           EXISTS (SELECT FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
                   WHERE n.nspname = 'auth' AND p.proname = 'uid' AND p.pronargs = 0
                   AND p.prorettype = 'uuid'::regtype) AS has_uid
    """
)


def _around(connection: Connection) -> Any:  # noqa: ANN401 - a row of a textual query has no static type
    links = declaration.at(tables.LINKS)
    parameters = {
        "schema": VERSION_SCHEMA,
        "table": VERSION_TABLE,
        "constraints": [item.name for name in _APPS for item in links[name].constraints],
        "names": list(obstacles.names(tables.NEWEST)),
        "link": tables.LINK_COLUMN,
        "apps": list(tables.APP_TABLES),
    }
    return connection.execute(_AROUND, parameters).one()


def _server(around: Any) -> Iterator[Finding]:  # noqa: ANN401 - as above
    if around.version < OLDEST_SERVER:
        yield Finding(
            "server-too-old",
            "server_version",
            f"PostgreSQL {around.version}",
            f"PostgreSQL {OLDEST_SERVER} or newer",
            "upgrade the server first",
        )
    if around.read_only:
        where = "a standby server" if around.recovering else "a session that may only read"
        yield Finding(
            "session-read-only",
            "transaction_read_only",
            where,
            "a session that may write",
            "connect to the primary server, as a role without default_transaction_read_only = on",
        )


def _version_table(connection: Connection, around: Any) -> Iterator[Finding]:  # noqa: ANN401 - as above
    if not around.has_version_schema and not around.may_create_schema:
        yield _privilege(connection, "CREATE", "DATABASE", _current(connection, "database"))
    elif around.may_write_version_table is None and around.may_create_version_table is False:
        yield _privilege(connection, "USAGE, CREATE", "SCHEMA", VERSION_SCHEMA)
    elif around.may_write_version_table is False:
        table = f"{VERSION_SCHEMA}.{VERSION_TABLE}"
        yield _privilege(connection, "SELECT, INSERT, UPDATE, DELETE", "TABLE", table)


def _schema_public(
    connection: Connection,
    around: Any,  # noqa: ANN401 - as above
    pending: Collection[str],
) -> Iterator[Finding]:
    if {tables.CORE, tables.LINKS, tables.HOT_PATHS}.isdisjoint(pending):
        return
    if around.may_create_in_public is None:
        yield Finding(
            "schema-missing",
            "public",
            "no such schema",
            "the schema public",
            "CREATE SCHEMA public",
        )
    elif not around.may_create_in_public:
        yield _privilege(connection, "CREATE", "SCHEMA", "public")


def _users(connection: Connection) -> Iterator[Finding]:
    users = connection.execute(
        text(
            """
            SELECT c.oid, c.relkind::text AS kind, format_type(a.atttypid, a.atttypmod) AS type,
                   EXISTS (SELECT FROM pg_index AS i WHERE i.indrelid = c.oid AND i.indisunique
                           AND i.indisvalid AND i.indpred IS NULL AND i.indnkeyatts = 1
                           AND i.indkey[0] = a.attnum) AS is_key,
                   has_schema_privilege(n.oid, 'USAGE') AS may_enter,
                   has_column_privilege(c.oid, a.attnum, 'REFERENCES') AS may_refer
            FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
            LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'id'
                 AND NOT a.attisdropped
            WHERE n.nspname = 'auth' AND c.relname = 'users'
            """
        )
    ).one_or_none()
    expected = "a table of users with the key id uuid, as Supabase has it"
    remedy = "connect to the Supabase database of the app, or make that table first"
    if users is None:
        yield Finding("users-table-missing", "auth.users", "no such table", expected, remedy)
        return
    kind = differences.RELATION_KINDS.get(users.kind, users.kind)
    if users.kind not in ("r", "p"):
        yield Finding("users-table-differs", "auth.users", f"a {kind}", expected, remedy)
        return
    if users.type != "uuid" or not users.is_key:
        described = f"id {users.type or 'missing'}, {'a' if users.is_key else 'not a'} key"
        yield Finding("users-table-differs", "auth.users.id", described, expected, remedy)
        return
    if not users.may_enter:
        yield _privilege(connection, "USAGE", "SCHEMA", "auth")
    if not users.may_refer:
        yield _privilege(connection, "REFERENCES (id)", "TABLE", "auth.users")


def _app_tables(connection: Connection, found: dict[str, catalog.Table]) -> Iterator[Finding]:
    owners = {found[name].owner for name in _APPS if name in found}
    members = {owner for owner in owners if _is_member(connection, owner)}
    for name in _APPS:
        table = found.get(name)
        if table is None or table.kind != "r":
            kind = differences.RELATION_KINDS.get(table.kind, table.kind) if table else None
            yield Finding(
                "app-table-differs" if kind else "app-table-missing",
                name,
                f"a {kind}" if kind else "no such table",
                "a table of the app, to which langfuse_trace_id is added",
                "connect to the app's database, or run the app's own migrations first",
            )
            continue
        if table.owner not in members:
            yield Finding(
                "app-table-not-owned",
                name,
                f"owned by {table.owner}",
                f"owned by {_current(connection, 'user')}, which is connected, or by a role that"
                " it is a member of",
                f'connect as {table.owner}, or: GRANT "{table.owner}" TO'
                f' "{_current(connection, "user")}"',
            )
        yield from obstacles.half_made(name, found)


def _is_member(connection: Connection, owner: str) -> bool:
    member = text("SELECT pg_has_role(CAST(:owner AS name), 'USAGE')")
    return bool(connection.execute(member, {"owner": owner}).scalar())


def _uid(around: Any) -> Iterator[Finding]:  # noqa: ANN401 - as above
    if not around.has_uid:
        yield Finding(
            "uid-function-missing",
            "auth.uid()",
            "no such function",
            "a function without arguments that returns the uuid of the signed-in user",
            "connect to the Supabase database of the app, or make that function first",
        )


def _privilege(connection: Connection, privilege: str, kind: str, name: str) -> Finding:
    role = _current(connection, "user")
    granted = f'"{name}"' if kind == "DATABASE" else name
    return Finding(
        "privilege-missing",
        name,
        f"{role} may not {privilege}",
        f"{privilege} on {kind.lower()} {name}",
        f'as its owner: GRANT {privilege} ON {kind} {granted} TO "{role}"',
    )


def _current(connection: Connection, what: str) -> str:
    function = {"user": "current_user", "database": "current_database()"}[what]
    return str(connection.execute(text(f"SELECT {function}")).scalar())
