"""Render differences as findings: the code, the object, and both values in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from langfuse_schema._postgres.compare import (
    Difference,
    caused_by,
    grants_of,
    is_another_table,
    missing_grants,
)
from langfuse_schema._postgres.findings import counted, finding
from langfuse_schema._postgres.objects import Column, Constraint, Index, Named, Policy, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from langfuse_schema._postgres.findings import Finding
    from langfuse_schema._postgres.objects import Grant

RELATION_KINDS = {
    "r": "table",
    "p": "partitioned table",
    "v": "view",
    "m": "materialized view",
    "f": "foreign table",
    "S": "sequence",
}
"""pg_class.relkind in words."""

_CODES = {
    "table": "table-missing",
    "kind": "table-differs",
    "persistence": "table-differs",
    "row-level-security": "row-level-security-differs",
    "owner": "owner-differs",
    "parent": "inheritance-unexpected",
    "child": "inheritance-unexpected",
}


def findings_of(
    differences: Iterable[Difference],
    repair: Callable[[Difference], tuple[str, ...]],
    *,
    verbose: bool = False,
) -> Iterator[Finding]:
    """Yield the findings of differences, with the SQL that repairs them.

    One cause gives one finding. Another object with the name of a table is the first one.
    Privileges that differ on several tables are the last one: they have one cause, such as default
    privileges.

    Arguments:
        differences: in an order in which they can be repaired.
        repair: returns the SQL that repairs a difference.
        verbose: list all differences that another object causes.
    """
    remaining = list(differences)
    for one in () if verbose else tuple(remaining):
        if one in remaining and one.actual and is_another_table(one.table, one.actual):
            caused = caused_by(remaining, one.table)
            remaining = [other for other in remaining if other not in caused]
            yield _taken(one.table, one.actual, len(caused), repair)
    grants = [one for one in remaining if one.aspect == "grant"]
    merged = len({one.table.qualified_name for one in grants}) > 1
    for one in remaining:
        if not (merged and one.aspect == "grant"):
            yield finding_of(one, repair(one))
    if merged:
        yield _access(grants, repair)


def name_taken(place: str, found: str, needed: str, fix: Sequence[str], advice: str) -> Finding:
    """Return the finding of an object with the name of a new one."""
    values = {"found": found, "needed": needed, "advice": advice}
    return finding("name-taken", place, **values, fix=fix)


def _taken(
    table: Table, actual: Table, number: int, repair: Callable[[Difference], tuple[str, ...]]
) -> Finding:
    kind = RELATION_KINDS.get(actual.kind, "relation")
    columns, needed = (", ".join(c.name for c in one.columns) for one in (actual, table))
    return name_taken(
        table.qualified_name,
        f"a {kind} ({columns}), with {counted(number, 'difference')}",
        f"a table ({needed})",
        repair(Difference("kind", table, actual)),
        "Rename it. Then compare again:",
    )


def _access(grants: list[Difference], repair: Callable[[Difference], tuple[str, ...]]) -> Finding:
    fix = tuple(statement for one in grants for statement in repair(one))
    tables = ", ".join(dict.fromkeys(one.table.qualified_name for one in grants))
    expected, found = zip(*map(grants_of, grants), strict=True)
    places = list(map(place, grants))
    values = {"found": _shared(places, found), "expected": _shared(places, expected)}
    return finding("access-differs", tables, **values, fix=fix)


def _shared(places: list[str], grants: Iterable[Collection[Grant]]) -> str:
    """Return one line for each role and set of privileges, with the objects that have it."""
    objects: dict[tuple[str, str], list[str]] = {}
    for name, given in zip(places, grants, strict=True):
        for role in sorted({grant.role for grant in given}):
            of_role = [grant for grant in given if grant.role == role]
            objects.setdefault((role, _privileges(of_role)), []).append(name)
    lines = (f"{role}: {what} on {', '.join(on)}" for (role, what), on in objects.items())
    return "\n".join(lines) or "nothing"


def finding_of(difference: Difference, fix: tuple[str, ...]) -> Finding:
    """Return the finding of a difference, with the statements that repair it."""
    found, expected = _described(difference)
    advice = "Run:"
    if difference.aspect == "table" and difference.table.partial:
        # The app creates its own tables.
        advice = "Connect to the app's database, or run the app's own migrations first."
        fix = ()
    values = {"found": found, "expected": expected, "advice": advice, "fix": fix}
    return finding(code(difference), place(difference), **values)


def code(difference: Difference) -> str:
    """Return the stable code: the kind of object, and how it differs."""
    aspect = difference.aspect
    if aspect in _CODES:
        return _CODES[aspect]
    missing, unexpected = difference.found is None, difference.expected is None
    if aspect == "grant":
        expected, found = grants_of(difference)
        missing, unexpected = bool(missing_grants(difference)), bool(found - expected)
    if missing == unexpected:
        return f"{aspect}-differs"
    return f"{aspect}-missing" if missing else f"{aspect}-unexpected"


def place(difference: Difference) -> str:
    """Return the name of the object that differs."""
    table, name = difference.table, difference.table.qualified_name
    item = difference.expected or difference.found
    if isinstance(item, frozenset):
        grant = next(iter(item))
        return grant.sequence or (f"{name}.{grant.column}" if grant.column else name)
    if isinstance(item, Column):
        return f"{name}.{item.name}"
    if isinstance(item, Index):
        return f"{table.schema}.{item.name}"
    return f"{name}: {item.name}" if isinstance(item, Named) else name


def _described(difference: Difference) -> tuple[str, str]:
    """Return the actual and the expected value in words."""
    table, actual = difference.table, difference.actual
    if actual is None:
        columns = ", ".join(column.name for column in table.columns)
        app_table = f"a table of the app, with {columns}"
        return "nothing", app_table if table.partial else f"a table ({columns})"
    if difference.aspect == "grant":
        expected, found = grants_of(difference)
        role = next(iter(expected | found)).role
        return f"{role}: {_privileges(found)}", f"{role}: {_privileges(expected)}"
    how = "a partition of" if actual.is_partition else "inherits from"
    child = f"{difference.found} inherits from it: its rows appear here"
    whole: dict[str, tuple[str, str]] = {
        "kind": (f"a {RELATION_KINDS.get(actual.kind, actual.kind)}", "a table"),
        "persistence": ("an unlogged table", "a logged table"),
        "row-level-security": (_row_security(actual), _row_security(table)),
        "owner": (str(difference.found), str(difference.expected)),
        "parent": (f"{how} {difference.found}", "a table by itself"),
        "child": (child, "a table by itself"),
    }
    return whole.get(difference.aspect, (_item(difference.found), _item(difference.expected)))


def _row_security(table: Table) -> str:
    enabled = "enabled" if table.row_security else "disabled"
    return f"row level security {enabled}" + (" and forced" if table.force_row_security else "")


def _privileges(grants: Collection[Grant]) -> str:
    option = " with grant option"
    shown = sorted(grant.privilege + (option if grant.grantable else "") for grant in grants)
    return ", ".join(shown) or "nothing"


def _item(item: object) -> str:
    return definition(item) if isinstance(item, Named) else "nothing"


def definition(item: Named) -> str:
    """Return the definition of a part of a table in the words of PostgreSQL."""
    if isinstance(item, Column):
        generated = f" (generated: {item.generated})" if item.generated else ""
        default = f" DEFAULT {item.default}" if item.default else ""
        return f"{item.type}{'' if item.nullable else ' NOT NULL'}{default}{generated}"
    if isinstance(item, Constraint):
        validated = "" if item.validated else " NOT VALID"
        return item.definition + validated + ("" if item.enforced else " (triggers disabled)")
    if isinstance(item, Index):
        return item.definition + ("" if item.valid else " INVALID")
    if isinstance(item, Policy):
        kind = "" if item.permissive else "AS RESTRICTIVE "
        rule = f"{kind}FOR {item.command} TO {', '.join(item.roles)}"
        rule += f" USING {item.using}" if item.using else ""
        return rule + (f" WITH CHECK {item.check}" if item.check else "")
    return item.definition
