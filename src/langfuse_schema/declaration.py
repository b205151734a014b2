"""What `tables` and `access` declare, in the values of `catalog`, at any revision.

Expected and found then have one form, and comparing them is comparing values.
"""

from __future__ import annotations

from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from langfuse_schema import access, catalog, tables

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

PLAN = (tables.CORE, tables.LINKS, tables.POLICIES)
"""The revisions that are the plan's own files, oldest first."""

REVISIONS = (*PLAN, tables.HARDENED, tables.HOT_PATHS)
"""All revisions, oldest first."""

_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call] # SQLAlchemy leaves it untyped


@cache
def at(revision: str) -> Mapping[str, catalog.Table]:
    """Say what a database holds at a revision, if nobody else touched it.

    Arguments:
        revision: one of our revision ids.

    Returns:
        Our tables, and the app's tables with nothing but what we add to them, by
        `schema.table`; without owners.
    """
    # Not copies as in `declared_metadata`: nobody changes these, and copying takes milliseconds.
    declared = {name: tables.metadata.tables[name] for name in access.TABLES}
    if revision >= tables.LINKS:
        declared |= tables.linked_tables(sa.MetaData())
    return MappingProxyType(
        {f"public.{name}": _table(table, revision) for name, table in declared.items()}
    )


def _table(table: sa.Table, revision: str) -> catalog.Table:
    protected = [found.table for found in access.at(revision, access.ROW_SECURITY)]
    return catalog.Table(
        schema="public",
        name=table.name,
        row_security=table.name in protected,
        columns=tuple(_column(column) for column in table.columns),
        constraints=tuple(sorted(_constraints(table), key=lambda found: found.name)),
        indexes=tuple(sorted(_indexes(table, revision), key=lambda found: found.name)),
        policies=tuple(_policies(table.name, revision)),
        grants=frozenset(_grants(table.name, revision)),
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
            # As it is written: to resolve it, the other table would have to be copied too.
            place, _, target = constraint.elements[0].target_fullname.rpartition(".")
            place = place if "." in place else f"public.{place}"
            definition = (
                f"FOREIGN KEY ({columns}) REFERENCES {place}({target})"
                f" ON DELETE {constraint.ondelete}"
            )
        elif isinstance(constraint, sa.CheckConstraint):
            definition = f"CHECK (({constraint.sqltext}))"
        else:  # pragma: no cover - a kind of constraint that `tables` has no use for
            raise TypeError(constraint)
        yield catalog.Constraint(str(constraint.name), definition)


def _indexes(table: sa.Table, revision: str) -> Iterator[catalog.Index]:
    for constraint in table.constraints:
        if isinstance(constraint, sa.PrimaryKeyConstraint | sa.UniqueConstraint):
            columns = [column.name for column in constraint.columns]
            if columns:
                yield _index(table, str(constraint.name), columns, unique=True)
    for index in table.indexes:
        if tables.INDEXED_SINCE.get(str(index.name), tables.CORE) > revision:
            continue
        columns = [column.name for column in index.columns]
        where = index.dialect_options["postgresql"]["where"]
        tail = "" if where is None else f" WHERE ({where})"
        yield _index(table, str(index.name), columns, unique=bool(index.unique), tail=tail)


def _index(
    table: sa.Table, name: str, columns: Iterable[str], *, unique: bool, tail: str = ""
) -> catalog.Index:
    kind = "UNIQUE INDEX" if unique else "INDEX"
    place = f"public.{table.name} USING btree ({', '.join(columns)})"
    return catalog.Index(name, f"CREATE {kind} {name} ON {place}{tail}")


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


def _grants(table: str, revision: str) -> Iterator[catalog.Grant]:
    for grant in access.at(revision, access.GRANTS):
        if grant.table == table:
            for privilege in grant.privileges:
                for column in grant.columns or (None,):
                    yield catalog.Grant(grant.role, privilege, column)
