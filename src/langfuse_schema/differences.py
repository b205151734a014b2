"""What stands in a database against what should: a finding for each object that differs.

Both are values of `catalog`, so that comparing them is comparing values, and the text that
PostgreSQL prints is compared as it is.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from langfuse_schema import access, catalog, remedies, tables
from langfuse_schema.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

RELATION_KINDS = {
    "r": "table",
    "p": "partitioned table",
    "v": "view",
    "m": "materialized view",
    "f": "foreign table",
    "S": "sequence",
}
"""What pg_class.relkind means."""

ORDER_REMEDY = (
    "nothing of this package depends on the order of columns; to have it as declared, make the"
    " table anew: rename it, create it, and copy its rows"
)


def of_tables(
    expected: dict[str, catalog.Table],
    found: dict[str, catalog.Table],
    strangers: Collection[str],
    owner: str | None,
) -> Iterator[Finding]:
    """Compare the tables of a database, each with all that hangs on it.

    Arguments:
        expected: by `schema.table`, with grants.
        found: the tables of the same names that there are.
        strangers: PUBLIC and the roles whose privileges are ours to state.
        owner: who should own our tables; None if it is not known.
    """
    for name, table in expected.items():
        if name not in found:
            yield _missing_table(table, strangers)
            continue
        there = found[name]
        if owner and there.owner != owner and _is_ours(table):
            remedy = remedies.set_owner(there, owner, table.grants)
            yield Finding("owner-differs", name, there.owner, owner, remedy)
        yield from of_table(table, there)
        if _is_ours(table) and there.kind == table.kind:
            yield from _attached(there)
            yield from of_grants(table, there, strangers)


def _is_ours(table: catalog.Table) -> bool:
    return table.name not in tables.APP_TABLES


def _missing_table(table: catalog.Table, strangers: Collection[str]) -> Finding:
    if _is_ours(table):
        columns = ", ".join(column.name for column in table.columns)
        remedy = remedies.create_table(table, strangers)
        return Finding(
            "table-missing", table.qualified_name, "nothing", f"a table ({columns})", remedy
        )
    return Finding(
        "table-missing",
        table.qualified_name,
        "nothing",
        "a table of the app, with langfuse_trace_id",
        "connect to the app's database, or run the app's own migrations first",
    )


def of_table(expected: catalog.Table, found: catalog.Table) -> Iterator[Finding]:
    """Compare a table: its columns, constraints, indexes, policies and its kind.

    Of one of the app's tables only what we add is compared; indexes that others added are
    nobody's fault.

    Arguments:
        expected: from `declaration.at`.
        found: the table of the same name, from `catalog.read`.

    Returns:
        A finding for each object that differs, is missing, or should not be there.
    """
    name = expected.qualified_name
    ours = _is_ours(expected)
    if found.kind != expected.kind:
        kind = RELATION_KINDS.get(found.kind, found.kind)
        remedy = remedies.rename_table(found)
        yield Finding("table-differs", name, f"a {kind}", "a table", remedy)
        return
    if ours and found.persistence != expected.persistence:
        remedy = remedies.set_logged(found)
        yield Finding("table-differs", name, "an unlogged table", "a logged table", remedy)
    yield from _named(found, expected.columns, found.columns, name + ".{}", extra=ours)
    if ours:
        yield from _order(expected, found)
    constraints = [item for item in found.constraints if ours or _on_link(item)]
    yield from _named(found, expected.constraints, constraints, name + ": {}", extra=True)
    yield from _indexes(expected, found)
    if ours:
        yield from _row_security(expected, found)
        yield from _named(found, expected.policies, found.policies, name + ": {}", extra=True)


def _on_link(constraint: catalog.Constraint) -> bool:
    """Whether a constraint of an app table is about our column, or has the name of ours."""
    own_side, _, _ = constraint.definition.partition(" REFERENCES ")
    about = re.search(rf"\b{tables.LINK_COLUMN}\b", own_side)
    return bool(about) or constraint.name.endswith(f"_{tables.LINK_COLUMN}_fkey")


def _named(
    table: catalog.Table,
    expected: Iterable[catalog.Named],
    found: Iterable[catalog.Named],
    place: str,
    *,
    extra: bool,
) -> Iterator[Finding]:
    wanted = {item.name: item for item in expected}
    there = {item.name: item for item in found}
    if extra:
        for name, item in there.items():
            if name not in wanted:
                yield _named_finding(table, place.format(name), None, item)
    for name, item in wanted.items():
        if there.get(name) != item:
            yield _named_finding(table, place.format(name), item, there.get(name))


def _named_finding(
    table: catalog.Table,
    place: str,
    expected: catalog.Named | None,
    found: catalog.Named | None,
) -> Finding:
    kind = type(expected or found).__name__.lower()
    how = "missing" if found is None else "unexpected" if expected is None else "differs"
    return Finding(
        f"{kind}-{how}",
        place,
        described(found) if found else "nothing",
        described(expected) if expected else "nothing",
        remedies.change(table, expected, found),
    )


def _order(expected: catalog.Table, found: catalog.Table) -> Iterator[Finding]:
    """Name the columns that stand behind one that they should precede: those added later."""
    wanted = [column.name for column in expected.columns if found.column(column.name)]
    order = [column.name for column in found.columns if expected.column(column.name)]
    reached = 0
    for name in order:
        position = wanted.index(name)
        if position < reached:
            yield Finding(
                "column-order-differs",
                f"{expected.qualified_name}.{name}",
                ", ".join(order),
                ", ".join(wanted),
                ORDER_REMEDY,
            )
        reached = max(reached, position)


def _indexes(expected: catalog.Table, found: catalog.Table) -> Iterator[Finding]:
    """Compare indexes, but not those that follow a constraint which is not as it should be."""
    constraints = {constraint.name: constraint for constraint in found.constraints}
    follow = {
        constraint.name
        for constraint in expected.constraints
        if constraints.get(constraint.name) != constraint
    }
    wanted = [index for index in expected.indexes if index.name not in follow]
    yield from _named(found, wanted, found.indexes, f"{expected.schema}.{{}}", extra=False)


def extra_indexes(expected: catalog.Table, found: catalog.Table) -> list[str]:
    """Name the indexes that others added to a table; they are nobody's fault.

    Arguments:
        expected: from `declaration.at`.
        found: the table of the same name.
    """
    constraints = {constraint.name for constraint in found.constraints}
    return [
        f"{found.schema}.{index.name}"
        for index in found.indexes
        if expected.index(index.name) is None and index.name not in constraints
    ]


def _row_security(expected: catalog.Table, found: catalog.Table) -> Iterator[Finding]:
    if (found.row_security, found.force_row_security) != (expected.row_security, False):
        yield Finding(
            "row-level-security-differs",
            expected.qualified_name,
            _protection(found),
            _protection(expected),
            remedies.set_row_security(found, expected),
        )


def _protection(table: catalog.Table) -> str:
    enabled = "enabled" if table.row_security else "disabled"
    return f"row level security {enabled}" + (" and forced" if table.force_row_security else "")


def _attached(found: catalog.Table) -> Iterator[Finding]:
    """Find what somebody hung on a table of ours: triggers, rules, parents and children."""
    place = found.qualified_name + ": {}"
    yield from _named(found, (), found.triggers, place, extra=True)
    yield from _named(found, (), found.rules, place, extra=True)
    for parent in found.parents:
        yield Finding(
            "inheritance-unexpected",
            found.qualified_name,
            f"{'a partition of' if found.is_partition else 'inherits from'} {parent}",
            "a table by itself",
            remedies.leave_parent(found, parent),
        )
    for child in found.children:
        yield Finding(
            "inheritance-unexpected",
            found.qualified_name,
            f"{child} inherits from it: its rows show here",
            "a table by itself",
            remedies.drop_child(found, child),
        )


def of_grants(
    expected: catalog.Table, found: catalog.Table, strangers: Collection[str]
) -> Iterator[Finding]:
    """Compare the privileges on a table and on its columns.

    Arguments:
        expected: with the grants that should be there.
        found: the table of the same name.
        strangers: PUBLIC and the roles whose privileges are ours to state.
    """
    there = {
        grant for grant in found.grants if grant.role in strangers and grant.role != found.owner
    }
    wanted = {
        grant for grant in expected.grants if grant.role in strangers and grant.role != found.owner
    }
    # Where a column is missing, so are its privileges: the column's finding says it.
    wanted = {grant for grant in wanted if grant.column is None or found.column(grant.column)}
    places = {(grant.column or "", grant.role) for grant in there ^ wanted}
    for column, role in sorted(places):
        mine = {grant for grant in wanted if (grant.column or "", grant.role) == (column, role)}
        theirs = {grant for grant in there if (grant.column or "", grant.role) == (column, role)}
        missing = {grant for grant in mine - theirs if _grantable(grant) not in theirs}
        unexpected = theirs - mine
        how = "missing" if not unexpected else "unexpected" if not missing else "differs"
        yield Finding(
            f"grant-{how}",
            f"{found.qualified_name}{'.' if column else ''}{column}",
            f"{role}: {_privileges(theirs)}",
            f"{role}: {_privileges(mine)}",
            remedies.change_grants(found, missing, unexpected, wanted),
        )


def _grantable(grant: catalog.Grant) -> catalog.Grant:
    return catalog.Grant(grant.role, grant.privilege, grant.column, grantable=True)


def _privileges(grants: Collection[catalog.Grant]) -> str:
    return (
        ", ".join(
            sorted(
                grant.privilege + (" with grant option" if grant.grantable else "")
                for grant in grants
            )
        )
        or "nothing"
    )


def described(item: catalog.Named) -> str:
    """Describe a thing of a table in PostgreSQL's own words."""
    if isinstance(item, catalog.Column):
        generated = f" (generated: {item.generated})" if item.generated else ""
        default = f" DEFAULT {item.default}" if item.default else ""
        return f"{item.type}{'' if item.nullable else ' NOT NULL'}{default}{generated}"
    if isinstance(item, catalog.Constraint):
        validated = "" if item.validated else " NOT VALID"
        return item.definition + validated + ("" if item.enforced else " (triggers disabled)")
    if isinstance(item, catalog.Index):
        return item.definition + ("" if item.valid else " INVALID")
    if isinstance(item, catalog.Policy):
        kind = "" if item.permissive else "AS RESTRICTIVE "
        rule = f"{kind}FOR {item.command} TO {', '.join(item.roles)}"
        rule += f" USING {item.using}" if item.using else ""
        return rule + (f" WITH CHECK {item.check}" if item.check else "")
    return item.definition


STRANGERS = ("PUBLIC", *access.API_ROLES)
"""Whose privileges are ours to state, as far as the roles exist."""
