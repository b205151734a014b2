"""Existing tables, and parts of them, that conflict with an upgrade."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, cast

from langfuse_schema._history.chain import VERSION_TABLE
from langfuse_schema._history.snapshots import granted_to
from langfuse_schema._postgres import ddl, messages
from langfuse_schema._postgres.compare import Aspect, Difference, compare, compare_table
from langfuse_schema._postgres.findings import counted, finding
from langfuse_schema._postgres.objects import Column, Constraint, Index, Policy
from langfuse_schema._postgres.repair_sql import repair_sql

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from langfuse_schema._history.chain import History, Position
    from langfuse_schema._history.snapshots import Tables
    from langfuse_schema._postgres.findings import Finding
    from langfuse_schema._postgres.objects import Part, Table

_STAMP_BASE = "langfuse-schema stamp base"


def unknown_revisions(heads: Sequence[str], history: History) -> Iterator[Finding]:
    """Find that the recorded revision is not a known one, or that several are recorded."""
    if len(heads) > 1:
        found, expected = "several: " + ", ".join(heads), "one revision"
        advice = "Compare the tables, then record their revision:"
        fix: tuple[str, ...] = ("langfuse-schema verify", "langfuse-schema stamp --purge REVISION")
    elif heads and heads[0] not in history.revisions:
        found, expected = heads[0], "one of " + ", ".join(history.revisions)
        advice = "A newer release of langfuse-schema migrated this database. Install that release."
        fix = ()
    else:
        return
    values = {"found": found, "expected": expected, "advice": advice, "fix": fix}
    yield finding("revision-unknown", str(VERSION_TABLE), **values)


def lost_tables(found: Tables, upgrade: Position) -> Iterator[Finding]:
    """Find tables and columns of the applied revision that are gone."""
    lost = []
    for name, table in upgrade.before.items():
        if name not in found:
            lost.append(name)
        elif table.partial:
            columns = (column.name for column in table.columns)
            lost += [f"{name}.{column}" for column in columns if not found[name].column(column)]
    complete = {name for name, table in upgrade.before.items() if not table.partial}
    if not lost:
        return
    advice = "Restore the missing parts from a backup, or run the SQL that this prints:"
    fix: tuple[str, ...] = ("langfuse-schema verify",)
    if complete <= set(lost):
        advice, fix = "Create the tables again:", (_STAMP_BASE, "langfuse-schema upgrade head")
        # DROP TABLE … CASCADE keeps the columns of the app tables.
        if not _columns(upgrade.before) <= set(lost):
            advice = "Record that there are no tables. Then fix each error that this prints,"
            advice += " and upgrade:"
            fix = (_STAMP_BASE, "langfuse-schema preflight")
    missing, values = ", ".join(lost), {"advice": advice, "fix": fix}
    place = str(VERSION_TABLE)
    yield finding(
        "revision-without-tables", place, revision=upgrade.applied, missing=missing, **values
    )


def _columns(tables: Tables) -> set[str]:
    """Return the columns that the revisions add to the app tables."""
    return {
        f"{name}.{column.name}"
        for name, table in tables.items()
        if table.partial
        for column in table.columns
    }


def unrecorded_tables(found: Tables, history: History, roles: Collection[str]) -> Iterator[Finding]:
    """Find the tables of a revision in a database without a recorded one.

    The upgrade from a revision of the plan sets the privileges, so they are not compared with it.

    Arguments:
        found: the actual tables.
        history: the chain.
        roles: the existing roles whose privileges are compared, PUBLIC included.
    """
    nearest = nearest_revision(found, history)
    if nearest is None:
        return
    revision, number = nearest
    known = history.schema(history.head)
    present = [name for name, table in known.items() if name in found and not table.partial]
    by_plan = revision in history.plan
    expected = {
        name: table
        for name, table in granted_to(history.schema(revision), roles).items()
        if name in found or not table.partial
    }
    differences = [
        one
        for one in compare(expected, found, roles, None)
        if not (by_plan and one.aspect == "grant")
    ]
    yield finding(
        "plan-already-run" if by_plan else "revision-missing",
        ", ".join(present),
        revision=revision,
        found=f"{counted(number, 'difference')} from revision {revision}",
        advice="Repair the differences below first. Then record the revision, and upgrade:"
        if differences
        else "Record the revision, then upgrade:",
    )
    yield from messages.findings_of(differences, partial(repair_sql, roles=roles))


def nearest_revision(found: Tables, history: History) -> tuple[str, int] | None:
    """Return the most similar revision, the newest of several, and its differences in shape.

    Return None if most tables of the first revision are missing or lack a column.
    """
    distances = _distances(found, history)
    nearest = _nearest(distances)
    return None if nearest is None else (nearest, distances[nearest][0])


def _nearest(distances: dict[str, tuple[int, int]]) -> str | None:
    return min(reversed(distances), key=lambda revision: distances[revision], default=None)


def _distances(found: Tables, history: History) -> dict[str, tuple[int, int]]:
    """Return the number of differences in shape, then in grants, from each possible revision."""
    first = history.schema(history.revisions[0])
    distances = {}
    for revision in history.revisions:
        tables = history.schema(revision)
        kept = [n for n in first if n in tables]
        complete = sum(_has_columns(found.get(n), first[n], tables[n]) for n in kept)
        if 2 * complete > len(kept):
            pairs = [(table, found.get(name)) for name, table in tables.items()]
            distances[revision] = (
                sum(1 if one is None else _distance(t, one) for t, one in pairs),
                sum(len(t.grants.difference(one.grants if one else ())) for t, one in pairs),
            )
    return distances


def _distance(expected: Table, found: Table) -> int:
    differences = list(compare_table(expected, found))
    # A missing column of an app table lacks its foreign key and its index too.
    columns = [one for one in differences if expected.partial and one.aspect == "column"]
    return len(columns or differences)


def _has_columns(found: Table | None, *expected: Table) -> bool:
    """Whether a table has the columns that all of the expected tables have."""
    common = set.intersection(*({column.name for column in table.columns} for table in expected))
    return found is not None and common <= {column.name for column in found.columns}


def later_revision(found: Tables, upgrade: Position) -> Iterator[Finding]:
    """Find that the tables are at a later revision than the recorded one.

    A revision that is not one transaction can be complete before it is recorded.
    """
    history, distances = upgrade.history, _distances(found, upgrade.history)
    nearest = _nearest(distances)
    whole = history.is_one_transaction(upgrade.pending[0])
    reached = upgrade.applied if whole else upgrade.pending[0]
    if (
        nearest
        and history.position(nearest) > history.position(reached)
        and distances[nearest] < distances.get(str(upgrade.applied), (1, 0))
    ):
        stamp = f"langfuse-schema stamp --purge {nearest}"
        yield finding(
            "revision-behind",
            str(VERSION_TABLE),
            found=f"revision {upgrade.applied}, while the tables are at {nearest}",
            expected=nearest,
            fix=(stamp, "langfuse-schema verify"),
        )


def parts(found: Tables, upgrade: Position) -> Iterator[Finding]:
    """Find parts of existing tables that differ from those which the upgrade builds on.

    A new part must not exist, unless an interrupted run can have left it. A part that the upgrade
    changes must be as the applied revision left it.
    """
    for table in upgrade.changed:
        actual = found.get(table.qualified_name)
        if actual is None or actual.kind != table.kind:
            continue
        known = upgrade.known(table)
        new = [column for column in table.columns if column not in known.columns]
        resumed = table.partial and any(actual.column(column.name) for column in new)
        # DROP TABLE … CASCADE keeps a column that refers to the dropped table.
        referenced = {item.references for item in table.constraints} - {None}
        orphaned = resumed and not referenced <= found.keys()
        for part in table.parts():
            before, existing = known.part(part), actual.part(part)
            # A foreign key comes with its column, in one transaction.
            unlinked = resumed and not orphaned and getattr(part, "references", None)
            if part != before and (existing != before or (unlinked and existing is None)):
                yield from _conflict(table, part, actual, upgrade, orphaned=orphaned)


def _conflict(
    table: Table, part: Part, actual: Table, upgrade: Position, *, orphaned: bool
) -> Iterator[Finding]:
    before, existing = upgrade.known(table).part(part), actual.part(part)
    aspect = cast("Aspect", type(part).__name__.lower())
    if before is not None or existing is None:
        differs = _repairable(Difference(aspect, table, actual, before or part, existing))
        by_plan = upgrade.applied in upgrade.history.plan
        author = "the plan's SQL" if by_plan else f"revision {upgrade.applied}"
        advice = f"Restore it as {author} creates it:"
        if existing is not None:
            advice = f"Keep it under another name. {advice}"
        yield replace(differs, advice=advice)
    elif isinstance(existing, Index) and not existing.valid:
        place = f"{table.schema}.{existing.name}"
        yield finding("index-invalid", place, table=table.qualified_name)
    elif orphaned or existing != part or not upgrade.can_exist(table, part):
        place = messages.place(Difference(aspect, table, actual, part))
        definition = messages.definition(existing)
        command = _removal(table, existing)
        advice = "Drop it:" if command.startswith("DROP") else "Rename it:"
        yield messages.name_taken(place, definition, f"a new {aspect}", [f"{command};"], advice)


def _repairable(difference: Difference) -> Finding:
    return messages.finding_of(difference, repair_sql(difference))


def _removal(table: Table, part: Part) -> str:
    """Return the command that frees the name of a part. A policy would still open rows."""
    name, new_name = ddl.quoted(part.name), ddl.quoted(f"{part.name}_before")
    on_table = f"ALTER TABLE {ddl.table_name(table)} RENAME"
    return {
        Column: f"{on_table} COLUMN {name} TO {new_name}",
        Constraint: f"{on_table} CONSTRAINT {name} TO {new_name}",
        Index: f"ALTER INDEX {ddl.quoted(table.schema, part.name)} RENAME TO {new_name}",
        Policy: f"DROP POLICY {name} ON {ddl.table_name(table)}",
    }[type(part)]
