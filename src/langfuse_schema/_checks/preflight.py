"""Check before an upgrade whether the database can take it. Nothing is changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from langfuse_schema._checks import conflicts, requirements
from langfuse_schema._postgres import catalog
from langfuse_schema._postgres.findings import Finding
from langfuse_schema.tables import API_ROLES
from langfuse_schema.version_table import VERSION_SCHEMA, VERSION_TABLE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import Connection

    from langfuse_schema._checks.pending import PendingUpgrade
    from langfuse_schema._history.chain import History
    from langfuse_schema._history.snapshots import Tables


def check(connection: Connection, upgrade: PendingUpgrade) -> list[Finding]:
    """Find the reasons for which an upgrade would fail.

    Arguments:
        connection: to the database; only read.
        upgrade: the pending upgrade.

    Returns:
        All errors and warnings; empty if the upgrade can run.
    """
    expected = {**upgrade.before, **upgrade.after}
    state = requirements.server_state(connection, expected)
    # Most upgrades begin on a database without any of these objects.
    parts = catalog.SHAPE if state.has_traces else ()
    found = catalog.read(connection, list(expected), parts).tables
    findings = list(requirements.server(state))
    if upgrade.applied:
        findings += conflicts.lost_tables(found, upgrade)
    if not upgrade.revisions:
        return findings
    findings += requirements.version_table(state)
    findings += requirements.schema_public(state, upgrade)
    if requirements.USERS in upgrade.referenced():
        findings += requirements.users_table(connection, state)
    findings += requirements.changed_tables(connection, found, upgrade, state)
    if upgrade.calls(requirements.USER_ID_FUNCTION):
        findings += requirements.user_id_function(state)
    if state.has_traces:
        findings += _conflicts(connection, found, upgrade)
    return findings


def _conflicts(connection: Connection, found: Tables, upgrade: PendingUpgrade) -> Iterator[Finding]:
    if upgrade.applied:
        later = list(conflicts.later_revision(found, upgrade))
    else:
        later = []
        yield from conflicts.unrecorded_tables(found, upgrade.history)
    yield from later
    if not later:
        yield from conflicts.names_taken(connection, upgrade)
        yield from conflicts.parts(found, upgrade)


def facts(connection: Connection, tables: Tables) -> dict[str, Any]:
    """Return properties of the database that are no findings.

    Arguments:
        connection: to the database; only read.
        tables: the schema of the head.

    Returns:
        The server's version, database, role, the existing API roles, their default privileges
        on new tables, and of each table of the app the estimated rows and the size in bytes.
    """
    server = connection.execute(
        text(
            "SELECT current_setting('server_version') AS server, current_database() AS database,"
            " current_user::text AS role, ARRAY(SELECT rolname::text FROM pg_roles"
            " WHERE rolname = ANY (:roles) ORDER BY 1) AS api_roles"
        ),
        {"roles": list(API_ROLES)},
    ).one()
    sizes = connection.execute(
        text(
            "SELECT n.nspname || '.' || c.relname, greatest(c.reltuples, 0)::bigint,"
            " pg_total_relation_size(c.oid)"
            " FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
            " WHERE n.nspname || '.' || c.relname = ANY (:names) ORDER BY 1"
        ),
        {"names": [name for name, table in tables.items() if table.partial]},
    )
    return {
        **server._asdict(),
        "default_privileges": _default_privileges(connection),
        "app_tables": {name: {"rows": rows, "bytes": size} for name, rows, size in sizes},
    }


def _default_privileges(connection: Connection) -> dict[str, str]:
    """Return the privileges of the API roles on new tables in public, by role."""
    rows = connection.execute(
        text(
            "SELECT r.rolname, string_agg(acl.privilege_type, ', ' ORDER BY acl.privilege_type)"
            " FROM pg_default_acl AS d, aclexplode(d.defaclacl) AS acl"
            " JOIN pg_roles AS r ON r.oid = acl.grantee"
            " WHERE d.defaclobjtype = 'r' AND d.defaclrole = CAST(current_user AS regrole)"
            " AND d.defaclnamespace = to_regnamespace('public')"
            " AND r.rolname = ANY (:roles) GROUP BY 1 ORDER BY 1"
        ),
        {"roles": list(API_ROLES)},
    )
    return {row[0]: row[1] for row in rows}


def check_writable(connection: Connection) -> list[Finding]:
    """Find the reasons for which a stamp or a downgrade would fail before it begins.

    Arguments:
        connection: to the database; only read.
    """
    state = requirements.server_state(connection, {})
    return [*requirements.server(state), *requirements.version_table(state)]


def check_heads(heads: Sequence[str], history: History) -> list[Finding]:
    """Find that the version table does not name exactly one known revision, or none.

    Arguments:
        heads: the recorded revisions.
        history: the chain.
    """
    if len(heads) > 1:
        return [_several_revisions(heads)]
    return [unknown_revision(head, history) for head in heads if head not in history.revisions]


def _several_revisions(found: Sequence[str]) -> Finding:
    return Finding(
        "revision-unknown",
        f"{VERSION_SCHEMA}.{VERSION_TABLE}",
        "several: " + ", ".join(found),
        "one revision",
        "look what the database holds: langfuse-schema verify\n"
        "then: langfuse-schema stamp --purge REVISION",
    )


def unknown_revision(found: str, history: History) -> Finding:
    """Return the finding for a recorded revision that the chain does not have.

    Arguments:
        found: the recorded revision.
        history: the chain.
    """
    return Finding(
        "revision-unknown",
        f"{VERSION_SCHEMA}.{VERSION_TABLE}",
        found,
        "one of " + ", ".join(history.revisions),
        "a newer release migrated this database: pip install --upgrade langfuse-schema\n"
        "or, if you know what the database holds: langfuse-schema stamp --purge REVISION",
    )
