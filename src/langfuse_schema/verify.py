"""After an upgrade: is the database what the revisions promised? It is read, never changed.

The plan's own checklist (検証項目) comes first, item by item; then what goes beyond it.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from langfuse_schema import (
    access,
    catalog,
    checklist,
    declaration,
    differences,
    obstacles,
    preflight,
    remedies,
    snapshot,
    tables,
)
from langfuse_schema.findings import Finding, Report
from langfuse_schema.snapshot import VERSION
from langfuse_schema.version_table import VERSION_SCHEMA, VERSION_TABLE

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    import sqlalchemy as sa
    from sqlalchemy import Connection
    from sqlalchemy.engine import URL

    from langfuse_schema.database import Options
    from langfuse_schema.snapshot import Snapshot

_VERSION_COLUMNS = (catalog.Column("version_num", "character varying(32)", nullable=False),)

_EXPECTED_VERSION_TABLE = catalog.Table(
    VERSION_SCHEMA,
    VERSION_TABLE,
    columns=_VERSION_COLUMNS,
    constraints=(catalog.Constraint(f"{VERSION_TABLE}_pkc", "PRIMARY KEY (version_num)"),),
    indexes=(
        catalog.Index(
            f"{VERSION_TABLE}_pkc",
            f"CREATE UNIQUE INDEX {VERSION_TABLE}_pkc ON {VERSION} USING btree (version_num)",
        ),
    ),
)


def verify(target: str | URL | sa.Engine | Connection, revision: str = "head") -> list[Finding]:
    """Compare a database with what the revisions make, as `langfuse-schema verify` does.

    Arguments:
        target: the URL of the database, an engine, or a connection without an open transaction.
        revision: what the database should be at: `head`, or a revision id.

    Returns:
        The differences; empty if there is none.

    Raises:
        SchemaError: the database cannot be reached or not read, or a migration is running.
        CommandError: there is no such revision.
    """
    from langfuse_schema import migrations

    return list(migrations.verify_report(migrations.config_for(target), revision).findings)


def report(connection: Connection, known: Sequence[str], target: str, options: Options) -> Report:
    """Compare a database with the declaration.

    Arguments:
        connection: to the database; a transaction that it is in is rolled back.
        known: our revisions, oldest first.
        target: the revision at which the database should be.
        options: of the run; reading waits for a lock as long as they say.

    Returns:
        The findings; among the facts are the checks that `text` begins with, the compared
        revision, and the milliseconds that reading took.

    Raises:
        DBAPIError: somebody holds one of the tables for longer than lock_timeout.
    """
    started = time.perf_counter()
    found = snapshot.take(connection, options)
    elapsed = round((time.perf_counter() - started) * 1000, 1)
    strangers = ("PUBLIC", *found.facts["api_roles"])
    owner, owner_findings = _owner(found)

    def compare(revision: str) -> list[Finding]:
        return list(
            differences.of_tables(_declared(revision, strangers), found.tables, strangers, owner)
        )

    adoptable = next((one for one in [target, *reversed(known)] if not compare(one)), None)
    compared, revision_findings, at_once = _standing(found, known, target, adoptable)
    # In the order in which the remedies are typed.
    findings = [
        *(revision_findings if at_once else ()),
        *owner_findings,
        *_version_table(found, strangers, owner),
        *(compare(compared) if compared else ()),
        *(() if at_once else revision_findings),
    ]
    recorded = ", ".join(found.revisions) if found.revisions else None
    facts = {
        "target": target,
        "compared_with": compared,
        "revision_readable": found.revisions is not None,
        **found.facts,
        "extra_indexes": _extra_indexes(_declared(target, strangers), found.tables),
        "other_grants": _other_grants(found.tables, strangers),
        "elapsed_milliseconds": elapsed,
        "checks": checklist.checks(_declared(target, strangers), found.tables, recorded, findings),
    }
    return Report(recorded, tuple(findings), facts)


def _declared(revision: str, strangers: Collection[str]) -> dict[str, catalog.Table]:
    return {
        name: replace(
            table, grants=frozenset(grant for grant in table.grants if grant.role in strangers)
        )
        for name, table in declaration.at(revision).items()
    }


def _owner(found: Snapshot) -> tuple[str | None, list[Finding]]:
    """Say who should own our tables: whoever owns the version table, unless it alone differs."""
    if found.version_table is None:
        return None, []
    owner = found.version_table.owner
    if owner in access.API_ROLES:
        role = found.facts["role"]
        other = "postgres" if role in access.API_ROLES else role
        remedy = remedies.set_owner(found.version_table, other, ())
        return other, [Finding("owner-differs", VERSION, owner, other, remedy)]
    ours = [table for table in found.tables.values() if table.name in access.TABLES]
    owners = {table.owner for table in ours}
    if len(ours) < len(access.TABLES) or len(owners) > 1 or owner in owners:
        return owner, []
    (other,) = owners
    remedy = remedies.set_owner(found.version_table, other, ())
    return other, [Finding("owner-differs", VERSION, owner, other, remedy)]


def _standing(
    found: Snapshot, known: Sequence[str], target: str, adoptable: str | None
) -> tuple[str | None, list[Finding], bool]:
    """Say which revision the tables are to be compared with, and what is wrong with the one noted.

    A database that stands at an older revision is compared with that one: what is missing
    until the target is one finding, and whatever differs besides is seen.

    Arguments:
        found: what was read.
        known: our revisions, oldest first.
        target: where the database should be.
        adoptable: the revision that the tables amount to, the target first; None if none.

    Returns:
        The revision, none if it is not known; the findings; and whether their remedy is typed
        before everything else is mended.
    """
    noted = found.revisions
    if noted is None or noted == (target,):
        return target, [], True
    upgrade = f"langfuse-schema upgrade {target}"
    at_once = True
    if adoptable == target:
        remedy = f"langfuse-schema stamp --purge {target}"
    elif found.version_table is None or not noted:
        nearest, number = obstacles.nearest_revision(found.tables) or (None, 0)
        at_once = number == 0
        adoptable = adoptable or nearest
        stamp = f"langfuse-schema stamp {adoptable}"
        remedy = upgrade if adoptable is None else f"{stamp} && {upgrade}"
        remedy = stamp if adoptable == target else remedy
    elif len(noted) == 1 and noted[0] in known:
        at_once = False
        adoptable = noted[0]
        remedy = upgrade if noted[0] < target else f"langfuse-schema downgrade {target}"
    elif len(noted) == 1:
        return None, [preflight.unknown_revision(noted[0], known)], at_once
    else:
        remedy = "langfuse-schema stamp --purge REVISION, once it is known what the tables hold"
    return adoptable or target, [_revision_finding(found, known, target, remedy)], at_once


def _revision_finding(found: Snapshot, known: Sequence[str], target: str, remedy: str) -> Finding:
    noted = found.revisions or ()
    if found.version_table is None:
        code, shown = "version-table-missing", "no such table"
    elif not noted:
        code, shown = "revision-behind", "no revision"
    elif len(noted) > 1:
        code, shown = "revision-unknown", "several: " + ", ".join(noted)
    elif noted[0] in known:
        code, shown = f"revision-{'behind' if noted[0] < target else 'ahead'}", noted[0]
    else:
        code, shown = "revision-unknown", noted[0]
    return Finding(code, VERSION, shown, target, remedy)


def _version_table(
    found: Snapshot, strangers: Collection[str], owner: str | None
) -> Iterator[Finding]:
    """Compare the version table and its schema, which nobody else is to reach."""
    if found.schema:
        for role in strangers:
            given = sorted(grant.privilege for grant in found.schema if grant.role == role)
            if given:
                yield Finding(
                    "grant-unexpected",
                    VERSION_SCHEMA,
                    f"{role}: {', '.join(given)}",
                    f"{role}: nothing",
                    f"REVOKE ALL ON SCHEMA {VERSION_SCHEMA} FROM {role} CASCADE;",
                )
    if found.version_table:
        if owner and found.schema_owner != owner:
            remedy = f'ALTER SCHEMA {VERSION_SCHEMA} OWNER TO "{owner}";'
            yield Finding("owner-differs", VERSION_SCHEMA, found.schema_owner, owner, remedy)
        expected = {VERSION: _EXPECTED_VERSION_TABLE}
        yield from differences.of_tables(expected, found.tables, strangers, owner=None)


def _extra_indexes(
    expected: dict[str, catalog.Table], found: dict[str, catalog.Table]
) -> list[str]:
    return [
        index
        for name, table in expected.items()
        if name in found and table.name not in tables.APP_TABLES
        for index in differences.extra_indexes(table, found[name])
    ]


def _other_grants(found: dict[str, catalog.Table], strangers: Collection[str]) -> list[str]:
    """Name the roles that somebody let in besides those of the Data API."""
    return sorted(
        {
            f"{name}: {grant.role}"
            for name, table in found.items()
            if table.name not in tables.APP_TABLES
            for grant in table.grants
            if grant.role not in strangers and grant.role != table.owner
        }
    )


def as_text(report: Report) -> str:
    """Write a report for people: the plan's checks, then one line for each difference."""
    lines = [str(check) for check in map(checklist.shown, report.facts["checks"])]
    lines += [finding.line() for finding in report.findings]
    facts = report.facts
    revision = report.revision or ("none" if facts["revision_readable"] else "not readable")
    lines.append(
        f"PostgreSQL {facts['server']}, database {facts['database']}, role {facts['role']},"
        f" revision {revision}, read in {facts['elapsed_milliseconds']} ms"
    )
    for fact in ("extra_indexes", "other_grants"):
        if facts[fact]:
            lines.append(f"{fact.replace('_', ' ')}: {', '.join(facts[fact])}")
    number = len(report.findings)
    lines.append(f"{number} {'difference' if number == 1 else 'differences'}")
    return "\n".join(lines)
