"""Compare a database with the snapshots of the revisions. Nothing is changed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from langfuse_schema._checks import access, conflicts, platform_locks
from langfuse_schema._checks.checklist import Checklist
from langfuse_schema._checks.observation import Observation, observe
from langfuse_schema._history.chain import VERSION_TABLE
from langfuse_schema._history.snapshots import granted_to
from langfuse_schema._postgres import ddl, messages
from langfuse_schema._postgres.compare import (
    Difference,
    additional_indexes,
    compare,
    is_another_table,
    same_column_order,
)
from langfuse_schema._postgres.findings import Finding, Report, finding
from langfuse_schema._postgres.repair_sql import repair_sql

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from langfuse_schema._history.chain import History
    from langfuse_schema._history.snapshots import Tables
    from langfuse_schema._postgres.objects import Table

_VERSION = str(VERSION_TABLE)


def report(
    connection: Connection, history: History, target: str, *, verbose: bool = False
) -> Report:
    """Compare a database with the snapshot of a revision.

    Arguments:
        connection: in a read-only transaction that sees one state.
        history: the chain.
        target: the expected revision.
        verbose: list all differences, those of one cause too.
    """
    started = time.perf_counter()
    tables = {n: t for one in history.revisions for n, t in history.schema(one).items()}
    database = observe(connection, tables)
    elapsed = round((time.perf_counter() - started) * 1000, 1)
    return _Comparison(database, history, target, verbose=verbose).report(elapsed)


@dataclass(frozen=True)
class _Position:
    """The revision to compare with, None if it is unknown, and the finding on the recorded one.

    `first` is whether the fix comes before the repairs of the tables.
    """

    compared: str | None
    finding: Finding | None = None
    first: bool = True


_IF_NOT_NEWER = (
    "If a newer release of langfuse-schema migrated this database, install that release."
    " Otherwise, record the revision of the tables:"
)


class _Comparison:
    """The comparison of one observed database."""

    def __init__(
        self, database: Observation, history: History, target: str, *, verbose: bool
    ) -> None:
        self._database = database
        self._history = history
        self._target = target
        self._verbose = verbose
        self._owner, self._owner_findings = _expected_owner(database, self._expected(target))

    def report(self, elapsed: float) -> Report:
        database = self._database
        position = self._position()
        differences = self._differences(position.compared) if position.compared else []
        of_position = [position.finding] if position.finding else []
        of_version = [*self._owner_findings, *self._version_schema(), *self._version_table()]
        compared_schema = self._history.schema(position.compared)
        findings = [
            *of_version,
            # The policies that are to be created call it.
            *database.access.missing_function(compared_schema),
            *self._findings(differences),
            *database.access.findings(compared_schema),
        ]
        findings = [*of_position, *findings] if position.first else [*findings, *of_position]
        findings = list(platform_locks.with_locks(findings, database.policy_tables))
        expected = self._expected(self._target)
        recorded = ", ".join(database.revisions) if database.revisions else None
        right = not [*of_position, *of_version]
        compared = differences if position.compared else None
        if position.compared not in (None, self._target):
            compared = self._differences(self._target)
        facts = {
            "target": self._target,
            "compared_with": position.compared,
            "migrated": self._is_migrated(),
            "revision_readable": database.revisions is not None,
            **database.facts,
            **self._beyond(expected),
            "elapsed_milliseconds": elapsed,
            "checks": Checklist(expected, database.tables, compared, recorded, right).lines(),
        }
        return Report(recorded, tuple(findings), facts)

    def _beyond(self, expected: Tables) -> dict[str, list[str]]:
        """Return the facts about complete tables that are no differences."""
        pairs = [
            (table, self._database.tables[name])
            for name, table in expected.items()
            if name in self._database.tables and not table.partial
        ]
        return {
            "extra_indexes": [
                f"{table.schema}.{index.name}"
                for table, one in pairs
                for index in additional_indexes(table, one)
                if not index.unique
            ],
            "column_order": [t.qualified_name for t, one in pairs if not same_column_order(t, one)],
            "additional_row_security": [
                table.qualified_name
                for table, one in pairs
                if one.row_security and not table.row_security
            ],
            "other_grants": self._other_grants([table for _, table in pairs]),
        }

    def _expected(self, revision: str) -> Tables:
        """Return the schema of a revision, with the grants of existing roles."""
        return granted_to(self._history.schema(revision), self._database.roles)

    def _differences(self, revision: str) -> list[Difference]:
        database = self._database
        return list(compare(self._expected(revision), database.tables, database.roles, self._owner))

    def _position(self) -> _Position:
        """Choose the revision to compare with.

        A database at an older revision is compared with that one: the pending revisions are one
        finding, and other differences are found too.
        """
        recorded, target = self._database.revisions, self._target
        if recorded is None or recorded == (target,):
            return _Position(target)
        candidates = [target, *reversed(self._history.revisions)]
        equal = next((one for one in candidates if not self._differences(one)), None)
        if equal == target:
            return _Position(target, self._finding(f"langfuse-schema stamp --purge {target}"))
        if not recorded:
            return self._unrecorded(equal)
        for unknown in conflicts.unknown_revisions(recorded, self._history):
            return _Position((equal or target) if len(recorded) > 1 else None, unknown)
        (only,) = recorded
        command = "upgrade" if self._is_behind(only) else "downgrade"
        return _Position(only, self._finding(f"langfuse-schema {command} {target}"), first=False)

    def _unrecorded(self, equal: str | None) -> _Position:
        """Return the position of tables without a recorded revision."""
        target = self._target
        nearest = conflicts.nearest_revision(self._database.tables, self._history)
        adopted = equal if equal or not nearest else nearest[0]
        stamp, upgrade = f"langfuse-schema stamp {adopted}", f"langfuse-schema upgrade {target}"
        if adopted is None:
            # The upgrade is refused until the differences are repaired.
            return _Position(target, self._finding(upgrade), first=False)
        commands = (stamp,) if adopted == target else (stamp, upgrade)
        # The SQL repairs that revision, so it comes before the upgrade.
        return _Position(adopted, self._finding(*commands), first=adopted == equal)

    def _is_behind(self, revision: str) -> bool:
        return self._history.position(revision) < self._history.position(self._target)

    def _finding(self, *commands: str) -> Finding:
        recorded, advice = self._database.revisions or (), "Run:"
        if not self._is_migrated():
            return finding("not-migrated", self._database.facts["database"], fix=commands)
        if self._database.version_table is None:
            code, found = "version-table-missing", "no such table"
        elif not recorded:
            code, found = "revision-behind", "no revision"
        elif len(recorded) > 1 or recorded[0] not in self._history.revisions:
            code, found, advice = "revision-unknown", ", ".join(recorded), _IF_NOT_NEWER
        else:
            (found,) = recorded
            code = f"revision-{'behind' if self._is_behind(found) else 'ahead'}"
        values = {"found": found, "expected": self._target, "advice": advice}
        return finding(code, _VERSION, **values, fix=commands)

    def _findings(self, differences: list[Difference]) -> list[Finding]:
        """Return the findings of differences, one for each cause unless all are to be listed."""
        if not (self._verbose or self._is_migrated()):
            differences = [one for one in differences if not _is_missing(one)]
        return list(messages.findings_of(differences, self._repair, verbose=self._verbose))

    def _is_migrated(self) -> bool:
        """Whether a revision is recorded, or any table or link column of one exists."""
        found, head = self._database.tables, self._history.schema(self._history.head)
        return self._database.revisions != () or any(
            any(found[name].column(column.name) for column in table.columns)
            if table.partial
            else not is_another_table(table, found[name])
            for name, table in head.items()
            if name in found
        )

    def _repair(self, difference: Difference) -> tuple[str, ...]:
        return repair_sql(difference, self._database.roles)

    def _version_schema(self) -> Iterator[Finding]:
        """Compare the grants and the owner of the schema of the version table."""
        database, schema = self._database, VERSION_TABLE.schema
        for role in database.roles:
            given = sorted(g.privilege for g in database.schema_grants if g.role == role)
            if given:
                yield finding(
                    "grant-unexpected",
                    schema,
                    found=f"{role}: {', '.join(given)}",
                    expected=f"{role}: nothing",
                    fix=(f"REVOKE ALL ON SCHEMA {schema} FROM {role} CASCADE;",),
                )
        owner = self._owner
        if database.version_table and owner and database.schema_owner != owner:
            fix = (f"ALTER SCHEMA {schema} OWNER TO {ddl.quoted(owner)};",)
            values = {"found": database.schema_owner, "expected": owner}
            yield finding("owner-differs", schema, **values, fix=fix)

    def _version_table(self) -> Iterator[Finding]:
        if self._database.version_table:
            expected = {_VERSION: VERSION_TABLE.expected()}
            found, roles = self._database.tables, self._database.roles
            differences = compare(expected, found, roles, None)
            yield from messages.findings_of(differences, self._repair)

    def _other_grants(self, tables: list[Table]) -> list[str]:
        """List the roles with privileges that are neither the owner nor compared."""
        version_table = self._database.version_table
        return sorted(
            {
                f"{table.qualified_name}: {grant.role}"
                for table in (*tables, *([version_table] if version_table else ()))
                for grant in table.grants
                if grant.role not in self._database.roles and grant.role != table.owner
            }
        )


def _is_missing(difference: Difference) -> bool:
    """Whether a table, or a part of an app table, is missing, as before the first upgrade."""
    return difference.actual is None or difference.table.partial


def _expected_owner(database: Observation, expected: Tables) -> tuple[str | None, list[Finding]]:
    """Return the expected owner of all tables.

    It is the owner of the version table, unless that one is an API role or differs alone.
    """
    version_table = database.version_table
    if version_table is None:
        return None, []
    owner = version_table.owner
    tables = [name for name, table in expected.items() if not table.partial]
    owners = {database.tables[name].owner for name in tables if name in database.tables}
    if owner in (*database.roles, access.LOGIN_ROLE):
        role = database.facts["role"]
        other = "postgres" if role in database.roles else role
    elif len(owners) == 1 and owner not in owners and set(tables) <= set(database.tables):
        (other,) = owners
    else:
        return owner, []
    difference = Difference("owner", VERSION_TABLE.expected(), version_table, other, owner)
    return other, [messages.finding_of(difference, repair_sql(difference))]
