"""What stands in the way of an upgrade among tables, indexes and policies.

The part of preflight that compares what is there with what the revisions make.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sqlalchemy import text

from langfuse_schema import access, catalog, declaration, differences, tables
from langfuse_schema.findings import Finding
from langfuse_schema.version_table import VERSION_SCHEMA, VERSION_TABLE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy import Connection

_OURS = tuple(f"public.{name}" for name in access.TABLES)
_APPS = tuple(f"public.{name}" for name in tables.APP_TABLES)


def gone(found: dict[str, catalog.Table], applied: str) -> Iterator[Finding]:
    """Find what the noted revision made and is not there, after a reset or a partial restore.

    Arguments:
        found: our tables and the app's, by `schema.table`.
        applied: the revision that the version table names.
    """
    expected = declaration.at(applied)
    lost = [
        name
        for name, table in expected.items()
        if name not in found
        or (name in _APPS and found[name].column(table.columns[0].name) is None)
    ]
    if lost:
        all_lost = set(_OURS) <= set(lost)
        yield Finding(
            "revision-without-tables",
            f"{VERSION_SCHEMA}.{VERSION_TABLE}",
            f"revision {applied}, but not what it made: "
            + ", ".join(f"{name}.{tables.LINK_COLUMN}" if name in found else name for name in lost),
            "what the revision made, or no revision",
            "the tables were dropped or a restore left them out. To make them anew:\n"
            "langfuse-schema stamp base && langfuse-schema upgrade head"
            if all_lost
            else "restore what is missing from a backup, or make it anew with what this prints:\n"
            "langfuse-schema verify",
        )


def plan_or_strangers(found: dict[str, catalog.Table]) -> Iterator[Finding]:
    """Find tables of our names before the first revision: the plan run by hand, or others.

    Arguments:
        found: our tables and the app's, by `schema.table`.
    """
    ours = [name for name in _OURS if name in found]
    if not ours:
        return
    nearest = nearest_revision(found)
    if nearest is None:
        yield from _in_the_way(found, ours)
        return
    revision, number = nearest
    by_plan = revision in declaration.PLAN and not number
    made = f"what {'the SQL of the plan' if by_plan else 'our revisions'} made up to {revision}"
    adopt = f"langfuse-schema stamp {revision} && langfuse-schema upgrade head"
    yield Finding(
        "plan-already-run" if by_plan else "revision-missing",
        ", ".join(ours),
        f"{made}{f', other than in {number} of its parts' if number else ''}, but no revision",
        "none of it, or the revision that it amounts to",
        f"mend what is named below, then adopt it: {adopt}" if number else f"adopt it: {adopt}",
    )
    for name, table in declaration.at(revision).items():
        if name in found:
            yield from differences.of_table(table, found[name])


def nearest_revision(found: Mapping[str, catalog.Table]) -> tuple[str, int] | None:
    """Say which revision the tables amount to, however they came: by us, by hand, by a restore.

    Arguments:
        found: our tables and the app's, by `schema.table`.

    Returns:
        The revision from whose shapes they differ least, the newest of several, and in how
        many things; None if a table of ours is missing, or has not got our columns.
    """
    for name, table in declaration.at(tables.CORE).items():
        if name not in found or any(not found[name].column(c.name) for c in table.columns):
            return None

    def number(revision: str) -> int:
        return sum(
            len(list(differences.of_table(table, found[name]))) if name in found else 1
            for name, table in declaration.at(revision).items()
        )

    numbers = {revision: number(revision) for revision in reversed(declaration.REVISIONS)}
    return min(numbers.items(), key=lambda item: item[1])


def _further(found: Mapping[str, catalog.Table], applied: str) -> Iterator[Finding]:
    """Find that the tables are further than the version table says, past one transaction."""
    nearest = nearest_revision(found)
    if nearest and nearest[0] > applied:
        yield Finding(
            "revision-behind",
            f"{VERSION_SCHEMA}.{VERSION_TABLE}",
            f"revision {applied}, while the tables are at {nearest[0]}",
            "the revision that they amount to",
            f"langfuse-schema stamp --purge {nearest[0]} && langfuse-schema verify",
        )


def _in_the_way(found: dict[str, catalog.Table], ours: list[str]) -> Iterator[Finding]:
    expected = declaration.at(tables.CORE)
    for name in ours:
        differing = _in_our_way(expected[name], found[name])
        yield from differing
        if not differing:
            yield Finding(
                "table-unexpected",
                name,
                "a table of that name, while others of the plan are missing or differ",
                "none, or all four as the plan has them",
                f"if it is a leftover, drop or rename it:\n"
                f"ALTER TABLE {name} RENAME TO {found[name].name}_before",
            )


def _in_our_way(expected: catalog.Table, found: catalog.Table) -> list[Finding]:
    """Compare, without telling anybody how to bend a table that may not be ours."""
    remedy = "change it to what is expected, or move it out of the way under another name"
    return [replace(finding, remedy=remedy) for finding in differences.of_table(expected, found)]


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
    WHERE n.nspname = 'public' AND t.typrelid = 0 AND t.typname = ANY (:names)
    AND t.typname = ANY (:tables)
    """
)


def names_taken(connection: Connection, applied: str, newest: str) -> Iterator[Finding]:
    """Find relations and indexes of other tables under names that the upgrade will use.

    Arguments:
        connection: to the database; only read.
        applied: the revision of the database; empty before the first.
        newest: where the upgrade goes.
    """
    made = names(applied) if applied else {}
    needed = {name: table for name, table in names(newest).items() if name not in made}
    rows = connection.execute(_NAMED, {"names": list(needed), "tables": list(access.TABLES)})
    for name, kind, table in rows:
        if kind in ("type", "c"):
            what, described = "TYPE", "a type"
        elif table is None and f"public.{name}" not in _OURS:
            what, described = "TABLE", f"a {differences.RELATION_KINDS.get(kind, 'relation')}"
        elif table is not None and f"public.{table}" != needed[name]:
            what, described = "INDEX", f"an index of public.{table}"
        else:
            continue
        yield Finding(
            "name-taken",
            f"public.{name}",
            described,
            f"the name free for {needed[name]}",
            f"rename it: ALTER {what} public.{name} RENAME TO {name}_before",
        )


def names(revision: str) -> dict[str, str]:
    """List the names that we use in schema public: of tables and indexes, each with its table.

    Arguments:
        revision: as of which.
    """
    expected = declaration.at(revision)
    indexes = {index.name: name for name, table in expected.items() for index in table.indexes}
    return indexes | {name.partition(".")[2]: name for name in _OURS}


def indexes_of_another_shape(found: dict[str, catalog.Table], newest: str) -> Iterator[Finding]:
    """Find valid indexes of another shape where one is built online, which keeps what is valid.

    Arguments:
        found: our tables, by `schema.table`.
        newest: where the upgrade goes.
    """
    expected = declaration.at(newest)
    for name in (name for name in _OURS if name in found):
        for index in expected[name].indexes:
            there = found[name].index(index.name)
            if index.name in tables.INDEXED_SINCE and there and there.valid and there != index:
                yield Finding(
                    "index-differs",
                    f"public.{index.name}",
                    there.definition,
                    f"the name free, or {index.definition}",
                    f"rename it: ALTER INDEX public.{index.name} RENAME TO {index.name}_before",
                )


def half_made(name: str, found: dict[str, catalog.Table]) -> Iterator[Finding]:
    """Find what is not ours in an app table: what an interrupted run leaves is continued.

    Arguments:
        name: of the app table, `schema.table`.
        found: our tables and the app's, by `schema.table`; this one is among them.
    """
    expected, table = declaration.at(tables.LINKS)[name], found[name]
    link = table.column(tables.LINK_COLUMN)
    if link is None:
        if any(table.index(index.name) for index in expected.indexes):
            yield from _in_our_way(expected, table)
        needed = {constraint.name for constraint in expected.constraints}
        for constraint in table.constraints:
            if constraint.name in needed:
                yield Finding(
                    "name-taken",
                    f"{name}: {constraint.name}",
                    constraint.definition,
                    f"the name free for the foreign key of {tables.LINK_COLUMN}",
                    f"rename it: ALTER TABLE {name} RENAME CONSTRAINT {constraint.name}"
                    f" TO {constraint.name}_before",
                )
        return
    if link in expected.columns and not any(our in found for our in _OURS):
        yield Finding(
            "column-unexpected",
            f"{name}.{tables.LINK_COLUMN}",
            "links, but none of the tables that they lead to",
            "no column of that name before the upgrade adds it",
            "DROP TABLE … CASCADE leaves it behind, and what it then holds leads nowhere:\n"
            f"ALTER TABLE {name} DROP COLUMN {tables.LINK_COLUMN}\n"
            "a column of the app's own is renamed:\n"
            f"ALTER TABLE {name} RENAME COLUMN {tables.LINK_COLUMN} TO {tables.LINK_COLUMN}_before",
        )
        return
    for finding in _in_our_way(expected, table):
        left_by_interruption = finding.code == "index-missing" or finding.found.endswith(" INVALID")
        if not left_by_interruption:
            yield finding


def policies_too_early(found: dict[str, catalog.Table]) -> Iterator[Finding]:
    """Find policies of our names before the revision that creates them.

    Arguments:
        found: our tables and the app's, by `schema.table`.
    """
    further = [*_further(found, tables.LINKS)]
    if further:
        yield from further
        return
    for policy in access.at(tables.POLICIES, access.POLICIES):
        there = _policy(found, policy)
        if there:
            yield Finding(
                "policy-unexpected",
                f"public.{policy.table}: {policy.name}",
                f"a policy of that name, USING {there.using} WITH CHECK {there.check}",
                "none before revision " + tables.POLICIES,
                f'DROP POLICY "{policy.name}" ON public.{policy.table}',
            )


def policies_to_replace(found: dict[str, catalog.Table]) -> Iterator[Finding]:
    """Find policies that are not the plan's any more: replacing them could open or close rows.

    Arguments:
        found: our tables and the app's, by `schema.table`.
    """
    further = [*_further(found, tables.POLICIES)]
    if further:
        yield from further
        return
    for policy in access.at(tables.POLICIES, access.POLICIES):
        there = _policy(found, policy)
        expected = catalog.Policy(
            policy.name, policy.command, policy.permissive, policy.roles, policy.using, policy.check
        )
        if there != expected and f"public.{policy.table}" in found:
            drop = f'DROP POLICY "{policy.name}" ON public.{policy.table};\n' if there else ""
            yield Finding(
                "policy-differs" if there else "policy-missing",
                f"public.{policy.table}: {policy.name}",
                differences.described(there) if there else "nothing",
                differences.described(expected),
                "keep a policy of your own under another name, and restore the plan's:\n"
                f"{drop}{access.create_policy(policy)};",
            )


def _policy(found: dict[str, catalog.Table], policy: access.Policy) -> catalog.Policy | None:
    table = found.get(f"public.{policy.table}")
    return next((p for p in table.policies if p.name == policy.name), None) if table else None
