"""Compare a database with the snapshots of the revisions. Nothing is changed."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from langfuse_schema._checks import checklist, conflicts, preflight
from langfuse_schema._checks.observation import VERSION, Observation, observe
from langfuse_schema._postgres import messages
from langfuse_schema._postgres.compare import (
    Difference,
    additional_indexes,
    compare,
    same_column_order,
)
from langfuse_schema._postgres.findings import Finding, Report
from langfuse_schema._postgres.objects import Column, Constraint, Index, Table
from langfuse_schema.version_table import VERSION_SCHEMA, VERSION_TABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from langfuse_schema._history.chain import History
    from langfuse_schema._history.snapshots import Tables
    from langfuse_schema.database import Options

_EXPECTED_VERSION_TABLE = Table(
    VERSION_SCHEMA,
    VERSION_TABLE,
    columns=(Column("version_num", "character varying(32)", nullable=False),),
    constraints=(Constraint(f"{VERSION_TABLE}_pkc", "PRIMARY KEY (version_num)"),),
    indexes=(
        Index(
            f"{VERSION_TABLE}_pkc",
            f"CREATE UNIQUE INDEX {VERSION_TABLE}_pkc ON {VERSION} USING btree (version_num)",
        ),
    ),
)


def report(connection: Connection, history: History, target: str, options: Options) -> Report:
    """Compare a database with the snapshot of a revision.

    Arguments:
        connection: to the database. An open transaction on it is rolled back.
        history: the chain.
        target: the expected revision.
        options: of the run; reading waits for a lock for at most `lock_timeout`.

    Returns:
        The differences. Among the facts are the checklist, the compared revision, and the
        milliseconds that reading took.

    Raises:
        DBAPIError: another session has locked one of the tables for longer than lock_timeout.
    """
    started = time.perf_counter()
    names = {name for revision in history.revisions for name in history.schema(revision)}
    database = observe(connection, options, sorted(names))
    elapsed = round((time.perf_counter() - started) * 1000, 1)
    return _Comparison(database, history, target).report(elapsed)


@dataclass(frozen=True)
class _Position:
    """The revision to compare with, and what is wrong with the recorded one.

    Attributes:
        compared: None if the recorded revision is unknown.
        findings: at most one.
        first: whether its remedy comes before the repairs of the tables.
    """

    compared: str | None
    findings: tuple[Finding, ...] = ()
    first: bool = True


class _Comparison:
    """The comparison of one observed database."""

    def __init__(self, database: Observation, history: History, target: str) -> None:
        self._database = database
        self._history = history
        self._target = target
        self._owner, self._owner_findings = _expected_owner(database, self._expected(target))

    def report(self, elapsed: float) -> Report:
        database = self._database
        position = self._position()
        differences = self._differences(position.compared) if position.compared else []
        of_version_table = list(self._version_table())
        of_schema = list(self._version_schema())
        findings = [
            *(position.findings if position.first else ()),
            *self._owner_findings,
            *of_schema,
            *(messages.finding(d, database.roles) for d in (*of_version_table, *differences)),
            *(() if position.first else position.findings),
        ]
        expected = self._expected(self._target)
        recorded = ", ".join(database.revisions) if database.revisions else None
        wrong = [*position.findings, *self._owner_findings, *of_schema, *of_version_table]
        lines = checklist.checks(
            expected,
            database.tables,
            differences if position.compared else None,
            checklist.Revision(recorded, correct=not wrong),
        )
        facts = {
            "target": self._target,
            "compared_with": position.compared,
            "revision_readable": database.revisions is not None,
            **database.facts,
            "extra_indexes": _additional_indexes(expected, database.tables),
            "column_order": _reordered(expected, database.tables),
            "other_grants": self._other_grants(),
            "elapsed_milliseconds": elapsed,
            "checks": lines,
        }
        return Report(recorded, tuple(findings), facts)

    def _expected(self, revision: str) -> Tables:
        """Return the schema of a revision, with the grants of existing roles."""
        return {
            name: replace(
                table,
                grants=frozenset(g for g in table.grants if g.role in self._database.roles),
            )
            for name, table in self._history.schema(revision).items()
        }

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
        if len(recorded) > 1:
            remedy = "langfuse-schema stamp --purge REVISION, once it is known what the tables hold"
            return _Position(equal or target, self._finding(remedy))
        (only,) = recorded
        if only not in self._history.revisions:
            return _Position(None, (preflight.unknown_revision(only, self._history),))
        command = "upgrade" if self._is_behind(only) else "downgrade"
        finding = self._finding(f"langfuse-schema {command} {target}")
        return _Position(only, finding, first=False)

    def _unrecorded(self, equal: str | None) -> _Position:
        """The position of tables without a recorded revision."""
        target = self._target
        nearest, number = conflicts.nearest_revision(self._database.tables, self._history) or (
            None,
            0,
        )
        adopted = equal or nearest
        upgrade = f"langfuse-schema upgrade {target}"
        if adopted is None:
            return _Position(target, self._finding(upgrade))
        stamp = f"langfuse-schema stamp {adopted}"
        remedy = stamp if adopted == target else f"{stamp} && {upgrade}"
        return _Position(adopted, self._finding(remedy), first=number == 0)

    def _is_behind(self, revision: str) -> bool:
        return self._history.position(revision) < self._history.position(self._target)

    def _finding(self, remedy: str) -> tuple[Finding]:
        recorded = self._database.revisions or ()
        if self._database.version_table is None:
            code, found = "version-table-missing", "no such table"
        elif not recorded:
            code, found = "revision-behind", "no revision"
        elif len(recorded) > 1:
            code, found = "revision-unknown", "several: " + ", ".join(recorded)
        elif recorded[0] in self._history.revisions:
            code = f"revision-{'behind' if self._is_behind(recorded[0]) else 'ahead'}"
            found = recorded[0]
        else:
            code, found = "revision-unknown", recorded[0]
        return (Finding(code, VERSION, found, self._target, remedy),)

    def _version_schema(self) -> Iterator[Finding]:
        """Compare the grants and the owner of the schema of the version table."""
        database = self._database
        for role in database.roles:
            given = sorted(g.privilege for g in database.schema_grants if g.role == role)
            if given:
                yield Finding(
                    "grant-unexpected",
                    VERSION_SCHEMA,
                    f"{role}: {', '.join(given)}",
                    f"{role}: nothing",
                    f"REVOKE ALL ON SCHEMA {VERSION_SCHEMA} FROM {role} CASCADE;",
                )
        owner = self._owner
        if database.version_table and owner and database.schema_owner != owner:
            remedy = f'ALTER SCHEMA {VERSION_SCHEMA} OWNER TO "{owner}";'
            yield Finding("owner-differs", VERSION_SCHEMA, database.schema_owner, owner, remedy)

    def _version_table(self) -> Iterator[Difference]:
        if self._database.version_table:
            expected = {VERSION: _EXPECTED_VERSION_TABLE}
            yield from compare(expected, self._database.tables, self._database.roles, None)

    def _other_grants(self) -> list[str]:
        """List the roles with privileges that are neither the owner nor compared."""
        return sorted(
            {
                f"{name}: {grant.role}"
                for name, table in _complete(self._expected(self._target), self._database.tables)
                for grant in table.grants
                if grant.role not in self._database.roles and grant.role != table.owner
            }
        )


def _complete(expected: Tables, found: Tables) -> Iterator[tuple[str, Table]]:
    """Yield the existing tables that belong to the schema, and the version table."""
    for name, table in found.items():
        if name == VERSION or (name in expected and not expected[name].partial):
            yield name, table


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
    if owner in database.roles:
        role = database.facts["role"]
        other = "postgres" if role in database.roles else role
    elif len(owners) == 1 and owner not in owners and set(tables) <= set(database.tables):
        (other,) = owners
    else:
        return owner, []
    difference = Difference("owner", _EXPECTED_VERSION_TABLE, version_table, other, owner)
    return other, [messages.finding(difference)]


def _additional_indexes(expected: Tables, found: Tables) -> list[str]:
    return [
        index
        for name, table in expected.items()
        if name in found and not table.partial
        for index in additional_indexes(table, found[name])
    ]


def _reordered(expected: Tables, found: Tables) -> list[str]:
    """List the tables whose columns are in another order. Nothing depends on it."""
    return [
        name
        for name, table in expected.items()
        if name in found and not table.partial and not same_column_order(table, found[name])
    ]
