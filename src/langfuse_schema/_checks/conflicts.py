"""Existing tables, and parts of them, that conflict with an upgrade."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

from sqlalchemy import text

from langfuse_schema._checks.pending import names
from langfuse_schema._postgres import ddl, messages
from langfuse_schema._postgres.compare import Aspect, Difference, compare_table
from langfuse_schema._postgres.findings import Finding
from langfuse_schema._postgres.objects import Column, Constraint, Index, Policy
from langfuse_schema.version_table import VERSION_SCHEMA, VERSION_TABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from langfuse_schema._checks.pending import PendingUpgrade
    from langfuse_schema._history.chain import History
    from langfuse_schema._history.snapshots import Tables
    from langfuse_schema._postgres.objects import Part, Table

_VERSION = f"{VERSION_SCHEMA}.{VERSION_TABLE}"


def lost_tables(found: Tables, upgrade: PendingUpgrade) -> Iterator[Finding]:
    """Find tables and columns of the applied revision that are gone."""
    lost = []
    for name, table in upgrade.before.items():
        if name not in found:
            lost.append(name)
        elif table.partial:
            columns = (column.name for column in table.columns)
            lost += [f"{name}.{column}" for column in columns if not found[name].column(column)]
    complete = {name for name, table in upgrade.before.items() if not table.partial}
    if lost:
        yield Finding(
            "revision-without-tables",
            _VERSION,
            f"revision {upgrade.applied}, but not what it made: {', '.join(lost)}",
            "what the revision made, or no revision",
            "the tables were dropped or a restore left them out. To make them anew:\n"
            "langfuse-schema stamp base && langfuse-schema upgrade head"
            if complete <= set(lost)
            else "restore what is missing from a backup, or make it anew with what this prints:\n"
            "langfuse-schema verify",
        )


def unrecorded_tables(found: Tables, history: History) -> Iterator[Finding]:
    """Find tables of the schema in a database without a revision."""
    known = history.schema(history.head)
    present = [name for name, table in known.items() if name in found and not table.partial]
    nearest = nearest_revision(found, history)
    if nearest is None:
        yield from _unknown_tables(found, history, present)
        return
    revision, number = nearest
    by_plan = revision in history.plan and not number
    made = f"what {'the SQL of the plan' if by_plan else 'our revisions'} made up to {revision}"
    adopt = f"langfuse-schema stamp {revision} && langfuse-schema upgrade head"
    yield Finding(
        "plan-already-run" if by_plan else "revision-missing",
        ", ".join(present),
        f"{made}{f', other than in {number} of its parts' if number else ''}, but no revision",
        "none of it, or the revision that it amounts to",
        f"mend what is named below, then adopt it: {adopt}" if number else f"adopt it: {adopt}",
    )
    for name, table in history.schema(revision).items():
        if name in found:
            yield from map(messages.finding, compare_table(table, found[name]))


def nearest_revision(found: Tables, history: History) -> tuple[str, int] | None:
    """Return the revision whose schema is most similar to the actual tables.

    Returns:
        The revision, the newest of several, and the number of differences in the shapes of
        tables; None if a table of the first revision is missing or lacks a column.
    """
    distances = _distances(found, history)
    nearest = min(reversed(distances), key=lambda revision: distances[revision], default=None)
    return None if nearest is None else (nearest, distances[nearest][0])


def _distances(found: Tables, history: History) -> dict[str, tuple[int, int]]:
    """Return the number of differences in shape, then in grants, from each possible revision."""
    first = history.schema(history.revisions[0])
    distances = {}
    for revision in history.revisions:
        tables = history.schema(revision)
        if all(_has_columns(found.get(n), t, tables[n]) for n, t in first.items() if n in tables):
            pairs = [(table, found.get(name)) for name, table in tables.items()]
            distances[revision] = (
                sum(1 if one is None else len(list(compare_table(t, one))) for t, one in pairs),
                sum(len(t.grants.difference(one.grants if one else ())) for t, one in pairs),
            )
    return distances


def _has_columns(found: Table | None, *expected: Table) -> bool:
    """Whether a table has the columns that all of the expected tables have."""
    common = set.intersection(*({column.name for column in table.columns} for table in expected))
    return found is not None and common <= {column.name for column in found.columns}


def later_revision(found: Tables, upgrade: PendingUpgrade) -> Iterator[Finding]:
    """Find that the tables are at a later revision than the recorded one.

    A revision that is not one transaction can be complete before it is recorded.
    """
    history, distances = upgrade.history, _distances(found, upgrade.history)
    nearest = nearest_revision(found, history)
    reached = upgrade.applied
    if not history.is_one_transaction(upgrade.revisions[0]):
        reached = upgrade.revisions[0]
    if (
        nearest
        and history.position(nearest[0]) > history.position(reached)
        and distances[nearest[0]] < distances.get(str(upgrade.applied), (1, 0))
    ):
        yield Finding(
            "revision-behind",
            _VERSION,
            f"revision {upgrade.applied}, while the tables are at {nearest[0]}",
            "the revision that they amount to",
            f"langfuse-schema stamp --purge {nearest[0]} && langfuse-schema verify",
        )


def _unknown_tables(found: Tables, history: History, present: list[str]) -> Iterator[Finding]:
    first = history.schema(history.revisions[0])
    remedy = "change it to what is expected, or move it out of the way under another name"
    for name in (name for name in present if name in first):
        differences = list(compare_table(first[name], found[name]))
        yield from (replace(messages.finding(one), remedy=remedy) for one in differences)
        if not differences:
            yield Finding(
                "table-unexpected",
                name,
                "a table of that name, while others of the plan are missing or differ",
                "none, or all four as the plan has them",
                f"if it is a leftover, drop or rename it:\n"
                f"ALTER TABLE {name} RENAME TO {found[name].name}_before",
            )


_NAMED = text(
    """
    SELECT c.relname, c.relkind::text AS kind, t.relname AS table_name
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    LEFT JOIN pg_index AS i ON i.indexrelid = c.oid
    LEFT JOIN pg_class AS t ON t.oid = i.indrelid
    WHERE n.nspname = 'public' AND c.relname = ANY (:names)
    UNION ALL
    SELECT t.typname, 'type', NULL
    FROM pg_type AS t JOIN pg_namespace AS n ON n.oid = t.typnamespace
    WHERE n.nspname = 'public' AND t.typrelid = 0 AND t.typname = ANY (:tables)
    """
)


def names_taken(connection: Connection, upgrade: PendingUpgrade) -> Iterator[Finding]:
    """Find relations and types with the name of a new table or index.

    Without a recorded revision, tables are the subject of `unrecorded_tables`.
    """
    known = names(upgrade.before)
    needed = {name: table for name, table in names(upgrade.after).items() if name not in known}
    tables = [name for name, table in needed.items() if table == f"public.{name}"]
    rows = connection.execute(_NAMED, {"names": list(needed), "tables": tables})
    for name, kind, table in rows:
        if kind in ("type", "c"):
            what, described = "TYPE", "a type"
        elif table is None and (upgrade.applied or name not in tables):
            what, described = "TABLE", f"a {messages.RELATION_KINDS.get(kind, 'relation')}"
        elif table is not None and f"public.{table}" != needed[name]:
            what, described = "INDEX", f"an index of public.{table}"
        else:
            continue
        rename = f"ALTER {what} public.{name} RENAME TO {name}_before"
        yield _taken(f"public.{name}", described, needed[name], rename)


def _taken(place: str, found: str, needed_for: str, command: str) -> Finding:
    how = "drop" if command.startswith("DROP") else "rename"
    return Finding(
        "name-taken", place, found, f"the name free for {needed_for}", f"{how} it: {command}"
    )


def parts(found: Tables, upgrade: PendingUpgrade) -> Iterator[Finding]:
    """Find parts of existing tables that differ from those which the upgrade builds on.

    A new part must not exist, unless an interrupted run can have left it. A part that the upgrade
    changes must be as the applied revision left it.
    """
    for table in upgrade.changed:
        actual = found.get(table.qualified_name)
        if actual is None or actual.kind != table.kind:
            continue
        known, orphaned = upgrade.known(table), list(_orphaned_columns(table, found, upgrade))
        yield from orphaned
        resumed = any(actual.column(column.name) for column in table.columns)
        for part in () if orphaned else table.parts():
            before, existing = known.part(part), actual.part(part)
            # A foreign key comes with its column, in one transaction.
            unlinked = table.partial and resumed and getattr(part, "references", None)
            if part != before and (existing != before or (unlinked and existing is None)):
                yield from _conflict(table, part, actual, upgrade)


def _conflict(
    table: Table, part: Part, actual: Table, upgrade: PendingUpgrade
) -> Iterator[Finding]:
    before, existing = upgrade.known(table).part(part), actual.part(part)
    aspect = cast("Aspect", type(part).__name__.lower())
    if before is not None or existing is None:
        finding = messages.finding(Difference(aspect, table, actual, before or part, existing))
        reason = "keep yours under another name, and restore the one of the revisions:\n"
        yield replace(finding, remedy=reason + finding.remedy)
    elif isinstance(existing, Index) and not existing.valid:
        yield Finding(
            "index-invalid",
            f"public.{existing.name}",
            f"an INVALID index of {table.qualified_name}, left by an interrupted build",
            "a valid one, or none",
            "nothing to do: an upgrade drops it and builds it anew",
            severity="warning",
        )
    elif not (existing == part and upgrade.can_exist(table, part)):
        place = messages.place(Difference(aspect, table, actual, part))
        definition = messages.definition(existing)
        yield _taken(place, definition, f"a new {aspect}", _removal(table, existing))


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


def _orphaned_columns(expected: Table, found: Tables, upgrade: PendingUpgrade) -> Iterator[Finding]:
    """Find columns in the app's tables whose referenced tables are gone."""
    name = expected.qualified_name
    referenced = {item.references for item in expected.constraints if item.references}
    if not expected.partial or not referenced or not referenced.isdisjoint(found):
        return
    for column in expected.columns:
        if column in found[name].columns and column not in upgrade.known(expected).columns:
            yield Finding(
                "column-unexpected",
                f"{name}.{column.name}",
                "links, but none of the tables that they lead to",
                "no column of that name before the upgrade adds it",
                "DROP TABLE … CASCADE leaves it behind, and what it then holds leads nowhere:\n"
                f"ALTER TABLE {name} DROP COLUMN {column.name}\n"
                "a column of the app's own is renamed:\n"
                f"{_removal(expected, column)}",
            )
