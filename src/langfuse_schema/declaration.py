"""What `tables` and `access` declare, in the values of `catalog`, at any revision.

Expected and found then have one form, and comparing them is comparing values.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from langfuse_schema import access, catalog, tables
from langfuse_schema.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PLAN = (tables.CORE, tables.LINKS, tables.POLICIES)
"""The revisions that are the plan's own files, oldest first."""

_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call] # SQLAlchemy leaves it untyped


def at(revision: str) -> dict[str, catalog.Table]:
    """Say what a database holds at a revision, if nobody else touched it.

    Arguments:
        revision: one of our revision ids.

    Returns:
        Our tables, and the app's tables with nothing but what we add to them, by
        `schema.table`; without owners and grants.
    """
    declared = tables.declared_metadata(revision)
    names = [*access.TABLES, *(name for name in tables.APP_TABLES if name in declared.tables)]
    return {f"public.{name}": _table(declared.tables[name], revision) for name in names}


def _table(table: sa.Table, revision: str) -> catalog.Table:
    protected = [found.table for found in access.at(revision, access.ROW_SECURITY)]
    return catalog.Table(
        schema="public",
        name=table.name,
        row_security=table.name in protected,
        columns=tuple(_column(column) for column in table.columns),
        constraints=tuple(sorted(_constraints(table), key=lambda found: found.name)),
        indexes=tuple(sorted(_indexes(table), key=lambda found: found.name)),
        policies=tuple(_policies(table.name, revision)),
    )


def _column(column: sa.Column[object]) -> catalog.Column:
    default = column.server_default
    return catalog.Column(
        name=column.name,
        type=column.type.compile(dialect=_DIALECT).lower(),
        nullable=bool(column.nullable),
        default=str(default.arg) if isinstance(default, sa.DefaultClause) else None,
    )


def _constraints(table: sa.Table) -> Iterator[catalog.Constraint]:
    for constraint in table.constraints:
        columns = ", ".join(column.name for column in getattr(constraint, "columns", ()))
        if isinstance(constraint, sa.PrimaryKeyConstraint):
            if not columns:
                continue
            definition = f"PRIMARY KEY ({columns})"
        elif isinstance(constraint, sa.UniqueConstraint):
            definition = f"UNIQUE ({columns})"
        elif isinstance(constraint, sa.ForeignKeyConstraint):
            target = constraint.elements[0].column
            definition = (
                f"FOREIGN KEY ({columns}) REFERENCES {_qualified(target.table)}({target.name})"
                f" ON DELETE {constraint.ondelete}"
            )
        elif isinstance(constraint, sa.CheckConstraint):
            definition = f"CHECK (({constraint.sqltext}))"
        else:  # pragma: no cover - a kind of constraint that `tables` has no use for
            raise TypeError(constraint)
        yield catalog.Constraint(str(constraint.name), definition)


def _indexes(table: sa.Table) -> Iterator[catalog.Index]:
    for constraint in table.constraints:
        if isinstance(constraint, sa.PrimaryKeyConstraint | sa.UniqueConstraint):
            columns = [column.name for column in constraint.columns]
            if columns:
                yield _index(table, str(constraint.name), columns, unique=True)
    for index in table.indexes:
        columns = [column.name for column in index.columns]
        where = index.dialect_options["postgresql"]["where"]
        tail = "" if where is None else f" WHERE ({where})"
        yield _index(table, str(index.name), columns, unique=bool(index.unique), tail=tail)


def _index(
    table: sa.Table, name: str, columns: Iterable[str], *, unique: bool, tail: str = ""
) -> catalog.Index:
    kind = "UNIQUE INDEX" if unique else "INDEX"
    place = f"{_qualified(table)} USING btree ({', '.join(columns)})"
    return catalog.Index(name, f"CREATE {kind} {name} ON {place}{tail}")


def _qualified(table: sa.FromClause) -> str:
    assert isinstance(table, sa.Table)
    return f"{table.schema or 'public'}.{table.name}"


def _policies(table: str, revision: str) -> Iterator[catalog.Policy]:
    for policy in sorted(access.at(revision, access.POLICIES), key=lambda policy: policy.name):
        if policy.table == table:
            yield catalog.Policy(
                name=policy.name,
                command=policy.command,
                permissive=policy.permissive,
                roles=policy.roles,
                using=policy.using,
                check=policy.check,
            )


def differences(expected: catalog.Table, found: catalog.Table) -> Iterator[Finding]:
    """Compare what stands in a database with what should, all but owners and grants.

    Of one of the app's tables only what we add is compared; indexes that others added are
    nobody's fault.

    Arguments:
        expected: from `at`.
        found: the table of the same name, from `catalog.read`.

    Returns:
        A finding for each object that differs, is missing, or should not be there.
    """
    name = expected.qualified_name
    whole = expected.name not in tables.APP_TABLES
    if found.kind != expected.kind:
        kind = RELATION_KINDS.get(found.kind, found.kind)
        yield _differs("table", name, f"a {kind}", "a table")
        return
    if whole and found.persistence != expected.persistence:
        yield _differs("table", name, "an unlogged table", "a logged table")
    yield from _named("column", expected.columns, found.columns, name + ".{}", extra=whole)
    order = tuple(column.name for column in found.columns)
    if whole and sorted(order) == sorted(column.name for column in expected.columns):
        wanted = tuple(column.name for column in expected.columns)
        if order != wanted:
            yield _differs("column-order", name, ", ".join(order), ", ".join(wanted))
    yield from _named(
        "constraint", expected.constraints, found.constraints, name + ": {}", extra=whole
    )
    yield from _named("index", expected.indexes, found.indexes, "public.{}", extra=False)
    if whole:
        yield from _named("policy", expected.policies, found.policies, name + ": {}", extra=True)
        if (found.row_security, found.force_row_security) != (expected.row_security, False):
            yield _differs(
                "row-level-security",
                name,
                _row_security(found),
                _row_security(replace(expected, force_row_security=False)),
            )


RELATION_KINDS = {
    "r": "table",
    "p": "partitioned table",
    "v": "view",
    "m": "materialized view",
    "f": "foreign table",
    "S": "sequence",
}
"""What pg_class.relkind means."""

_Named = catalog.Column | catalog.Constraint | catalog.Index | catalog.Policy


def _named(
    kind: str, expected: Iterable[_Named], found: Iterable[_Named], place: str, *, extra: bool
) -> Iterator[Finding]:
    wanted = {item.name: item for item in expected}
    there = {item.name: item for item in found}
    for name, item in wanted.items():
        if name not in there:
            yield _differs(kind, place.format(name), "nothing", described(item), "missing")
        elif there[name] != item:
            yield _differs(kind, place.format(name), described(there[name]), described(item))
    if extra:
        for name in there.keys() - wanted.keys():
            yield _differs(
                kind, place.format(name), described(there[name]), "nothing", "unexpected"
            )


def described(item: _Named) -> str:
    """Describe a part of a table in SQL, for a finding."""
    if isinstance(item, catalog.Column):
        default = f" DEFAULT {item.default}" if item.default else ""
        return f"{item.type}{'' if item.nullable else ' NOT NULL'}{default}"
    if isinstance(item, catalog.Constraint):
        return item.definition + ("" if item.validated else " NOT VALID")
    if isinstance(item, catalog.Index):
        return item.definition + ("" if item.valid else " INVALID")
    rule = f"FOR {item.command} TO {', '.join(item.roles)}"
    rule += f" USING {item.using}" if item.using else ""
    return rule + (f" WITH CHECK {item.check}" if item.check else "")


def _row_security(table: catalog.Table) -> str:
    enabled = "enabled" if table.row_security else "disabled"
    return f"row level security {enabled}" + (" and forced" if table.force_row_security else "")


def _differs(kind: str, place: str, found: str, expected: str, how: str = "differs") -> Finding:
    return Finding(
        f"{kind}-{how}",
        place,
        found,
        expected,
        "change it to what is expected, or move it out of the way under another name",
    )
