"""Check before an upgrade whether the database can take it. Nothing is changed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from langfuse_schema._checks import conflicts, platform_locks, requirements
from langfuse_schema._history.chain import VERSION_TABLE, Position
from langfuse_schema._postgres import catalog
from langfuse_schema._postgres.findings import finding
from langfuse_schema.tables import API_ROLES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import Connection

    from langfuse_schema._history.chain import History
    from langfuse_schema._history.snapshots import Tables
    from langfuse_schema._postgres.findings import Finding


def check(connection: Connection, upgrade: Position) -> list[Finding]:
    """Return the reasons for which an upgrade would fail, and warnings. Only reads."""
    expected = {**upgrade.before, **upgrade.after}
    state = requirements.server_state(connection, expected)
    # Most upgrades begin on a database without any of these objects.
    parts = catalog.SHAPE if state.has_traces else ()
    found = catalog.read(connection, list(expected), parts)
    findings = list(requirements.server(state))
    if upgrade.applied:
        findings += conflicts.lost_tables(found, upgrade)
    if not upgrade.pending:
        return findings
    findings += requirements.version_table(state)
    findings += requirements.schema_public(state, upgrade)
    if requirements.USERS in upgrade.referenced():
        findings += requirements.users_table(connection, state)
    findings += requirements.changed_tables(connection, found, upgrade, state)
    if upgrade.calls(requirements.USER_ID_FUNCTION):
        findings += requirements.user_id_function(state)
    if state.has_traces:
        roles = ("PUBLIC", *state.api_roles)
        found_conflicts = _conflicts(connection, found, upgrade, roles)
        findings += platform_locks.with_locks(found_conflicts, state.policy_tables)
    return requirements.one_cause(findings, state)


def _conflicts(
    connection: Connection, found: Tables, upgrade: Position, roles: Sequence[str]
) -> Iterator[Finding]:
    later, unrecorded = [], []
    if upgrade.applied:
        later = list(conflicts.later_revision(found, upgrade))
    else:
        unrecorded = list(conflicts.unrecorded_tables(found, upgrade.history, roles))
    yield from [*later, *unrecorded]
    if not later:
        yield from conflicts.names_taken(connection, upgrade, bool(unrecorded))
        yield from conflicts.parts(found, upgrade)


def facts(connection: Connection, tables: Tables) -> dict[str, Any]:
    """Return properties of the database that are no findings.

    They are the server's version, database, role, the existing API roles, their default privileges
    on new tables, and of each table of the app the estimated rows and the size in bytes.
    """
    server = connection.execute(_SERVER, {"roles": list(API_ROLES)}).one()._asdict()
    names = [name for name, table in tables.items() if table.partial]
    sizes = connection.execute(_SIZES, {"names": names})
    return {
        **server,
        "default_privileges": json.loads(server["default_privileges"]),
        "app_tables": {name: {"rows": rows, "bytes": size} for name, rows, size in sizes},
    }


_SERVER = text(
    """
    SELECT current_setting('server_version') AS server, current_database()::text AS database,
           current_user::text AS role, ARRAY(SELECT rolname::text FROM pg_roles
           WHERE rolname = ANY (:roles) ORDER BY 1) AS api_roles,
           (SELECT coalesce(json_object_agg(role, privileges), '{}')::text FROM (
                SELECT r.rolname AS role, string_agg(e.privilege_type, ', ') AS privileges
                FROM pg_default_acl AS d, aclexplode(d.defaclacl) AS e
                JOIN pg_roles AS r ON r.oid = e.grantee
                WHERE d.defaclobjtype = 'r' AND d.defaclrole = CAST(current_user AS regrole)
                AND d.defaclnamespace = to_regnamespace('public') AND r.rolname = ANY (:roles)
                GROUP BY 1) AS granted) AS default_privileges
    """
)

_SIZES = text(
    "SELECT name, greatest(c.reltuples, 0)::bigint, pg_total_relation_size(c.oid)"
    " FROM unnest(:names) AS name JOIN pg_class AS c ON c.oid = to_regclass(name) ORDER BY 1"
)


class UpgradeChecks:
    """The checks that a run calls before its first step.

    Arguments:
        history: the chain.
    """

    def __init__(self, history: History) -> None:
        """Keep the chain."""
        self._history = history
        # PostgreSQL prints names according to search_path.
        self.settings = {"search_path": "public"}

    def destinations(self, revisions: Sequence[str]) -> list[Finding]:
        """Check that a command names one revision: each one follows another."""
        if len(revisions) <= 1:
            return []
        values = {
            "found": ", ".join(revisions),
            "expected": "one revision, because each one follows another",
            "advice": "Name the newest one only.",
        }
        return [finding("option-invalid", "the revision to stamp", **values)]

    def heads(self, heads: Sequence[str]) -> list[Finding]:
        """Check that one known revision is recorded, or none."""
        return list(conflicts.unknown_revisions(heads, self._history))

    def upgrade(
        self, connection: Connection, applied: str | None, pending: tuple[str, ...]
    ) -> list[Finding]:
        """Check the database before these revisions run."""
        return check(connection, Position(self._history, applied, pending))

    def other(self, connection: Connection) -> list[Finding]:
        """Check that a downgrade or a stamp can write."""
        state = requirements.server_state(connection, {})
        findings = [*requirements.server(state), *requirements.version_table(state)]
        return requirements.one_cause(findings, state)

    def prepare(self, connection: Connection) -> None:
        """Create the version table, closed to the API roles."""
        VERSION_TABLE.create(connection)


class NoChecks(UpgradeChecks):
    """The session and the version table of a run that is not checked."""

    def heads(self, _heads: Sequence[str]) -> list[Finding]:
        """Accept any recorded revisions."""
        return []

    def upgrade(self, *_: object) -> list[Finding]:
        """Accept any database."""
        return []

    def other(self, *_: object) -> list[Finding]:
        """Accept any database."""
        return []
