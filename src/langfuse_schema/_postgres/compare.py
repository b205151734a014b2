"""Compare expected tables with actual ones. The results are neutral values, without wording."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from langfuse_schema._postgres.objects import Constraint, Grant, Index, Named, Table

Aspect = Literal[
    "table", "kind", "persistence", "row-level-security", "owner", "parent", "child",
    "column", "constraint", "index", "policy", "trigger", "rule", "grant",
]  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """One object that differs between the expected `table` and the `actual` one, if it exists.

    `expected` and `found` are a named part, a set of grants, or the name of an owner, parent or
    child. Each is None if the object must not exist or does not exist; for a whole table, both are.
    """

    aspect: Aspect
    table: Table
    actual: Table | None
    expected: Named | frozenset[Grant] | str | None = None
    found: Named | frozenset[Grant] | str | None = None


def compare(
    expected: Mapping[str, Table],
    found: Mapping[str, Table],
    roles: Collection[str],
    owner: str | None,
) -> Iterator[Difference]:
    """Yield the differences of tables, in an order in which they can be repaired.

    Arguments:
        expected: the tables by `schema.table`.
        found: the actual tables of the same names.
        roles: the roles whose grants are compared, PUBLIC included.
        owner: the expected owner of complete tables; None if it is unknown.
    """
    for name, table in expected.items():
        actual = found.get(name)
        if actual is None:
            yield Difference("table", table, None)
            continue
        if owner and actual.owner != owner and not table.partial:
            yield Difference("owner", table, actual, owner, actual.owner)
        yield from compare_table(table, actual)
        if actual.kind == table.kind:
            if not table.partial:
                yield from _attached(table, actual)
            yield from _grants(table, actual, roles)


def compare_table(expected: Table, found: Table) -> Iterator[Difference]:
    """Yield the differences of one table, without its grants, owner, triggers, rules and relatives.

    Additional row level security is never a difference, and an additional index only if it is
    unique. In a partial table, additional parts are none either, except for constraints and unique
    indexes on the expected columns.
    """
    if found.kind != expected.kind:
        yield Difference("kind", expected, found, expected.kind, found.kind)
        return
    complete = not expected.partial
    if complete and found.persistence != expected.persistence:
        yield Difference("persistence", expected, found, expected.persistence, found.persistence)
    yield from _named("column", expected, found, expected.columns, found.columns, extra=complete)
    constraints = [item for item in found.constraints if complete or _concerns(expected, item)]
    yield from _named("constraint", expected, found, expected.constraints, constraints)
    # The repair of a constraint repairs its index too.
    differing = {item.name for item in expected.constraints if item not in found.constraints}
    indexes = [index for index in expected.indexes if index.name not in differing]
    yield from _named("index", expected, found, indexes, found.indexes, extra=False)
    for index in additional_indexes(expected, found):
        if index.unique and (complete or _concerns(expected, index)):
            yield Difference("index", expected, found, None, index)
    secured = found.row_security >= expected.row_security and not found.force_row_security
    if complete and not secured:
        yield Difference("row-level-security", expected, found)
    yield from _named("policy", expected, found, expected.policies, found.policies, extra=complete)


def is_another_table(expected: Table, found: Table) -> bool:
    """Return whether an actual table only has the name of an expected one.

    It is no table, or has at most half of the columns.
    """
    common = sum(found.column(column.name) is not None for column in expected.columns)
    few = 2 * common <= len(expected.columns)
    return not expected.partial and (found.kind not in (expected.kind, "p") or few)


def caused_by(differences: Sequence[Difference], table: Table) -> list[Difference]:
    """Return the differences of a table, and of parts of other tables that need it."""
    name = table.qualified_name
    return [one for one in differences if name in (one.table.qualified_name, *_needed_by(one))]


def _needed_by(difference: Difference) -> set[str]:
    """Return the tables that a missing foreign key or policy of an existing table needs."""
    if difference.found is not None or difference.actual is None:
        return set()
    part = difference.expected
    texts = (getattr(part, name, None) for name in ("references", "using", "check"))
    return {name for text in texts for name in re.findall(r"\w+\.\w+", text or "")}


def additional_indexes(expected: Table, found: Table) -> list[Index]:
    """List the indexes of a table that are neither expected nor of a constraint."""
    constraints = {constraint.name for constraint in (*found.constraints, *expected.constraints)}
    return [
        index
        for index in found.indexes
        if index.name not in constraints and expected.index(index.name) is None
    ]


def same_column_order(expected: Table, found: Table) -> bool:
    """Return whether the columns that both tables have are in the same order."""
    common = [column.name for column in expected.columns if found.column(column.name)]
    return common == [column.name for column in found.columns if expected.column(column.name)]


def _concerns(expected: Table, part: Constraint | Index) -> bool:
    """Return whether a part is on an expected column, or has the name of a constraint."""
    own_side, _, _ = part.definition.partition(" REFERENCES ")
    names = "|".join(re.escape(column.name) for column in expected.columns)
    on_column = bool(names) and re.search(rf"\b({names})\b", own_side)
    return bool(on_column) or part.name in {item.name for item in expected.constraints}


def _named(  # noqa: PLR0913 - the two tables and their parts
    aspect: Aspect,
    table: Table,
    actual: Table,
    expected: Sequence[Named],
    found: Sequence[Named],
    *,
    extra: bool = True,
) -> Iterator[Difference]:
    expected_names = {item.name for item in expected}
    found_by_name = {item.name: item for item in found}
    if extra:
        for name, item in found_by_name.items():
            if name not in expected_names:
                yield Difference(aspect, table, actual, None, item)
    for item in expected:
        if found_by_name.get(item.name) != item:
            yield Difference(aspect, table, actual, item, found_by_name.get(item.name))


def _attached(expected: Table, found: Table) -> Iterator[Difference]:
    yield from _named("trigger", expected, found, expected.triggers, found.triggers)
    yield from _named("rule", expected, found, expected.rules, found.rules)
    for parent in found.parents:
        yield Difference("parent", expected, found, None, parent)
    for child in found.children:
        yield Difference("child", expected, found, None, child)


def _grants(expected: Table, found: Table, roles: Collection[str]) -> Iterator[Difference]:
    compared = set(roles) - {found.owner}
    actual = {grant for grant in found.grants if grant.role in compared}
    # Where a column is missing, its repair grants the privileges on it again.
    required = {
        grant
        for grant in expected.grants
        if grant.role in compared and (grant.column is None or found.column(grant.column))
    }
    if expected.partial:
        actual &= required
    if not any(column.uses_sequence for column in expected.columns):
        # The repair of the column drops the sequence.
        actual = {grant for grant in actual if grant.sequence is None}
    for place in sorted({_place(grant) for grant in actual ^ required}):
        required_here = frozenset(grant for grant in required if _place(grant) == place)
        actual_here = frozenset(grant for grant in actual if _place(grant) == place)
        yield Difference("grant", expected, found, required_here, actual_here)


def _place(grant: Grant) -> tuple[str, str, str]:
    return grant.sequence or "", grant.column or "", grant.role


def missing_grants(difference: Difference) -> frozenset[Grant]:
    """Return the expected grants that are absent, with and without grant option."""
    expected, found = grants_of(difference)
    return frozenset(
        grant for grant in expected - found if replace(grant, grantable=True) not in found
    )


def grants_of(difference: Difference) -> tuple[frozenset[Grant], frozenset[Grant]]:
    """Return the expected and the actual grants of a difference of aspect `grant`."""
    assert isinstance(difference.expected, frozenset)
    assert isinstance(difference.found, frozenset)
    return difference.expected, difference.found
