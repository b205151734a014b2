"""Check before an upgrade whether the database can take it. Nothing is changed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from langfuse_schema._checks import (
    access,
    app_tables,
    conflicts,
    platform_locks,
    requirements,
    taken_names,
    uid_function,
)
from langfuse_schema._history.chain import VERSION_TABLE, Position
from langfuse_schema._postgres import catalog
from langfuse_schema._postgres.findings import finding
from langfuse_schema._postgres.sessions import READING

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
    findings += requirements.runner(state)
    findings += requirements.version_table(state)
    findings += requirements.schema_public(state, upgrade)
    if requirements.USERS in upgrade.referenced():
        findings += requirements.users_table(connection, state)
    findings += app_tables.check(connection, found, upgrade, state.role)
    if upgrade.calls(uid_function.NAME):
        findings += requirements.user_id_function(state)
    if state.has_traces:
        roles = ("PUBLIC", *state.api_roles)
        found_conflicts = _conflicts(connection, found, upgrade, roles)
        findings += platform_locks.with_locks(found_conflicts, state.policy_tables)
    effective = access.observe(connection, state.access)
    # The upgrade works. Its tables cannot be reached, or are open, afterwards.
    findings += [replace(one, severity="warning") for one in effective.findings(upgrade.after)]
    # Two requirements can lack the same privilege.
    return requirements.one_cause(list(dict.fromkeys(findings)), state)


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
        yield from taken_names.check(connection, upgrade, bool(unrecorded))
        yield from conflicts.parts(found, upgrade)


class UpgradeChecks:
    """The checks that a run calls before its first step.

    Arguments:
        history: the chain.
    """

    def __init__(self, history: History) -> None:
        """Keep the chain."""
        self._history = history
        self.settings = READING

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
        if applied is None and not pending:
            return self._without_revision(connection)
        return check(connection, Position(self._history, applied, pending))

    def _without_revision(self, connection: Connection) -> list[Finding]:
        """Check that no table of a revision exists, if none is recorded."""
        head = self._history.schema(self._history.head)
        state = requirements.server_state(connection, head)
        found = catalog.read(connection, list(head), catalog.SHAPE) if state.has_traces else {}
        return list(conflicts.unrecorded_tables(found, self._history, ["PUBLIC", *state.api_roles]))

    def downgrade(self, connection: Connection, applied: str) -> list[Finding]:
        """Check that the tables are at the applied revision: a downgrade drops tables."""
        position = Position(self._history, applied, self._history.after(applied))
        names = list({**position.before, **position.after})
        found = catalog.read(connection, names, catalog.SHAPE)
        findings = self.stamp(connection)
        lost = [n for n, table in position.before.items() if not table.partial and n not in found]
        if lost:
            findings += conflicts.lost_tables(found, position)
        elif position.pending:
            findings += conflicts.later_revision(found, position)
        return findings

    def stamp(self, connection: Connection) -> list[Finding]:
        """Check that the version table can be written."""
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

    def downgrade(self, *_: object) -> list[Finding]:
        """Accept any database."""
        return []

    def stamp(self, *_: object) -> list[Finding]:
        """Accept any database."""
        return []
