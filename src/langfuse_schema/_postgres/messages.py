"""Render differences as findings: the code, the object, and both values in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from langfuse_schema._postgres.compare import Difference, grants_of, missing_grants
from langfuse_schema._postgres.findings import Finding
from langfuse_schema._postgres.objects import Column, Constraint, Index, Named, Policy, Table
from langfuse_schema._postgres.repair_sql import repair_sql

if TYPE_CHECKING:
    from collections.abc import Collection

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

_CODES = {"kind": "table-differs", "persistence": "table-differs"}
_WHOLE_TABLE = ("row-level-security", "owner")


def finding(difference: Difference, roles: Collection[str] = ()) -> Finding:
    """Return the finding of a difference, with the SQL that repairs it.

    Arguments:
        difference: from `compare`.
        roles: the roles to which a missing table must be closed, PUBLIC included.
    """
    found, expected = described(difference)
    if difference.aspect == "table" and difference.table.partial:
        # The app creates its own tables.
        remedy = "connect to the app's database, or run the app's own migrations first"
    else:
        remedy = repair_sql(difference, roles)
    return Finding(code(difference), place(difference), found, expected, remedy)


def code(difference: Difference) -> str:
    """Return the stable code: the kind of object, and how it differs."""
    aspect = difference.aspect
    if aspect in _CODES:
        return _CODES[aspect]
    if aspect in ("parent", "child"):
        return "inheritance-unexpected"
    if aspect in _WHOLE_TABLE:
        return f"{aspect}-differs"
    if aspect == "grant":
        expected, found = grants_of(difference)
        missing, unexpected = bool(missing_grants(difference)), bool(found - expected)
    else:
        missing, unexpected = difference.found is None, difference.expected is None
        if not missing and not unexpected:
            return f"{aspect}-differs"
    how = "differs" if missing and unexpected else "missing" if missing else "unexpected"
    return f"{aspect}-missing" if aspect == "table" else f"{aspect}-{how}"


def place(difference: Difference) -> str:
    """Return the name of the object that differs."""
    name = difference.table.qualified_name
    item = difference.expected or difference.found
    if difference.aspect == "grant":
        return _place_of_grants(name, difference)
    if isinstance(item, Column):
        return f"{name}.{item.name}"
    if isinstance(item, Index):
        return f"{difference.table.schema}.{item.name}"
    return name if isinstance(item, str | None) else f"{name}: {getattr(item, 'name', '')}"


def _place_of_grants(name: str, difference: Difference) -> str:
    expected, found = grants_of(difference)
    grant = next(iter(expected | found))
    if grant.sequence:
        return grant.sequence
    return f"{name}.{grant.column}" if grant.column else name


def described(difference: Difference) -> tuple[str, str]:
    """Return the actual and the expected value in words."""
    table, actual = difference.table, difference.actual
    if actual is None:
        columns = ", ".join(column.name for column in table.columns)
        whose = "a table of the app, with" if table.partial else "a table"
        return "nothing", f"{whose} {columns}" if table.partial else f"{whose} ({columns})"
    if difference.aspect == "grant":
        expected, found = grants_of(difference)
        role = next(iter(expected | found)).role
        return f"{role}: {_privileges(found)}", f"{role}: {_privileges(expected)}"
    how = "a partition of" if actual.is_partition else "inherits from"
    kind = RELATION_KINDS.get(actual.kind, actual.kind)
    whole: dict[str, tuple[str, str]] = {
        "kind": (f"a {kind}", "a table"),
        "persistence": ("an unlogged table", "a logged table"),
        "row-level-security": (_row_security(actual), _row_security(table)),
        "owner": (str(difference.found), str(difference.expected)),
        "parent": (f"{how} {difference.found}", "a table by itself"),
        "child": (f"{difference.found} inherits from it: its rows show here", "a table by itself"),
    }
    items = _item(difference.found), _item(difference.expected)
    return whole.get(difference.aspect, items)


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
    """Return the definition of a part of a table in PostgreSQL's own words."""
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
