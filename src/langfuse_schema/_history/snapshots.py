"""The stored schema after a revision: JSON with one object on each line.

A snapshot holds the complete tables that the revisions created. Of the app's tables, it holds the
parts that the revisions added. Owners and their privileges are left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from langfuse_schema._postgres.objects import Column, Constraint, Grant, Index, Policy, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

Tables = Mapping[str, Table]
"""Tables by `schema.table`, each after the tables that it refers to."""

_PARTS: dict[str, tuple[str, Callable[..., Any]]] = {
    "column": ("columns", Column),
    "constraint": ("constraints", Constraint),
    "index": ("indexes", Index),
    "policy": ("policies", Policy),
    "grant": ("grants", Grant),
}
"""The attribute of a table, and the type of its items, by the kind of object."""


def parse(text: str) -> Tables:
    """Read the text of a snapshot."""
    tables: dict[str, dict[str, Any]] = {}
    for line in json.loads(text)["objects"]:
        name, kind = line.pop("table"), line.pop("kind")
        if kind == "table":
            schema, _, relation = name.partition(".")
            tables[name] = {"schema": schema, "name": relation, **line}
        else:
            if "roles" in line:
                line["roles"] = tuple(line["roles"])
            part, build = _PARTS[kind]
            tables[name][part] = (*tables[name].get(part, ()), build(**line))
    return {name: _table(**values) for name, values in tables.items()}


def _table(grants: Iterable[Grant] = (), **values: Any) -> Table:  # noqa: ANN401 - any field
    return Table(**values, grants=frozenset(grants))


def render(revision: str, tables: Tables) -> str:
    """Return the text of a snapshot, of tables from `added`."""
    lines: list[dict[str, Any]] = []
    for name, table in tables.items():
        of_table = {flag: True for flag in ("partial", "row_security") if getattr(table, flag)}
        lines.append({"kind": "table", "table": name, **of_table})
        for kind, (part, _) in _PARTS.items():
            items: Iterable[Any] = getattr(table, part)
            if kind == "grant":
                items = sorted(items, key=str)
            lines += [{"kind": kind, "table": name, **_compact(item)} for item in items]
    objects = ",\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    return f'{{"revision": "{revision}", "objects": [\n{objects}\n]}}\n'


def _compact(item: Any) -> dict[str, Any]:  # noqa: ANN401 - any dataclass of `objects`
    defaults = {field.name: field.default for field in fields(item)}
    return {name: value for name, value in vars(item).items() if value != defaults[name]}


def added(before: Tables, after: Tables) -> Tables:
    """Return the new tables of a database, then the new parts of existing tables.

    Arguments:
        before: the tables before the first revision.
        after: the tables now, in the order of their creation.
    """
    new, extended = [], []
    for name, table in after.items():
        grants = frozenset(grant for grant in table.grants if grant.role != table.owner)
        visible = replace(table, owner="", grants=grants)
        if name in before:
            extended += _new_parts(before[name], visible)
        elif table.kind != "S":
            new.append(visible)
    return {table.qualified_name: table for table in (*_referenced_first(new), *extended)}


def _new_parts(before: Table, after: Table) -> list[Table]:
    """Return a partial table with the new parts, or no table if no part is new."""
    parts: dict[str, Any] = {
        part: tuple(item for item in getattr(after, part) if item not in getattr(before, part))
        for part, _ in _PARTS.values()
    }
    table = _table(schema=after.schema, name=after.name, partial=True, **parts)
    return [table] if any(parts.values()) else []


def _referenced_first(tables: list[Table]) -> list[Table]:
    """Sort tables so that each follows the tables that its foreign keys refer to."""
    ordered = []
    waiting = {table.qualified_name: table for table in tables}
    while waiting:
        references = {
            name: {item.references for item in table.constraints} & waiting.keys() - {name}
            for name, table in waiting.items()
        }
        # Of tables that refer to each other, take the oldest.
        chosen = min(references, key=lambda name: bool(references[name]))
        ordered.append(waiting.pop(chosen))
    return ordered


def granted_to(tables: Tables, roles: Collection[str]) -> dict[str, Table]:
    """Return tables with the grants of these roles only."""
    return {
        name: replace(table, grants=frozenset(g for g in table.grants if g.role in roles))
        for name, table in tables.items()
    }


def names(tables: Tables) -> dict[str, str]:
    """Return the tables, as `schema.table`, by their own names and the names of their indexes."""
    indexes = {index.name: name for name, table in tables.items() for index in table.indexes}
    return indexes | {table.name: name for name, table in tables.items() if not table.partial}
