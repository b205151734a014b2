"""The stored schema after a revision: JSON with one object on each line.

A snapshot holds the tables that the revisions created, complete, and of the app's tables the
parts that the revisions added. Owners, and the privileges of owners, are left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any

from langfuse_schema._postgres.objects import Column, Constraint, Grant, Index, Policy, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Tables = Mapping[str, Table]
"""Tables by `schema.table`, each after the tables that it refers to."""

_PARTS: dict[str, Callable[..., Any]] = {
    "columns": Column,
    "constraints": Constraint,
    "indexes": Index,
    "policies": Policy,
    "grants": Grant,
}
_KINDS = {part: item.__name__.lower() for part, item in _PARTS.items()}
_PARTS_BY_KIND = {kind: part for part, kind in _KINDS.items()}


def parse(text: str) -> Tables:
    """Read a snapshot.

    Arguments:
        text: the content of a file, from `render`.
    """
    tables: dict[str, dict[str, Any]] = {}
    for line in json.loads(text)["objects"]:
        name, kind = line.pop("table"), line.pop("kind")
        if kind == "table":
            schema, _, relation = name.partition(".")
            tables[name] = {"schema": schema, "name": relation, **line}
            tables[name] |= {part: [] for part in _PARTS}
        else:
            if "roles" in line:
                line["roles"] = tuple(line["roles"])
            part = _PARTS_BY_KIND[kind]
            tables[name][part].append(_PARTS[part](**line))
    return {name: _table(values) for name, values in tables.items()}


def _table(values: dict[str, Any]) -> Table:
    grants = frozenset(values.pop("grants"))
    parts: dict[str, Any] = {p: tuple(values.pop(p)) for p in _PARTS if p != "grants"}
    return Table(**values, **parts, grants=grants)


def render(revision: str, tables: Tables) -> str:
    """Write a snapshot.

    Arguments:
        revision: the id of the revision.
        tables: from `added`.

    Returns:
        The content of the file. The same tables give the same text.
    """
    lines: list[dict[str, Any]] = []
    for name, table in tables.items():
        of_table = {flag: True for flag in ("partial", "row_security") if getattr(table, flag)}
        lines.append({"kind": "table", "table": name, **of_table})
        for part in _PARTS:
            items: Iterable[Any] = getattr(table, part)
            if part == "grants":
                items = sorted(items, key=str)
            lines += [{"kind": _KINDS[part], "table": name, **_compact(item)} for item in items]
    objects = ",\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    return f'{{"revision": "{revision}", "objects": [\n{objects}\n]}}\n'


def _compact(item: Any) -> dict[str, Any]:  # noqa: ANN401 - any dataclass of `objects`
    defaults = {field.name: field.default for field in fields(item)}
    return {name: value for name, value in asdict(item).items() if value != defaults[name]}


def added(before: Tables, after: Tables) -> Tables:
    """Return the schema that revisions added to a database.

    Arguments:
        before: the tables before the first revision.
        after: the tables now, in the order of their creation.

    Returns:
        New tables, complete; then of the existing ones the new parts.
    """
    new = [_without_owner(table) for name, table in after.items() if name not in before]
    new = [table for table in new if table.kind != "S"]
    extended = [_new_parts(before[name], table) for name, table in after.items() if name in before]
    ordered = [*_referenced_first(new), *(table for table in extended if table is not None)]
    return {table.qualified_name: table for table in ordered}


def _without_owner(table: Table) -> Table:
    grants = frozenset(grant for grant in table.grants if grant.role != table.owner)
    return replace(table, owner="", grants=grants)


def _new_parts(before: Table, after: Table) -> Table | None:
    parts: dict[str, Any] = {
        part: tuple(item for item in getattr(after, part) if item not in getattr(before, part))
        for part in _PARTS
    }
    if not any(parts.values()):
        return None
    grants = frozenset(grant for grant in parts.pop("grants") if grant.role != after.owner)
    return Table(after.schema, after.name, partial=True, **parts, grants=grants)


def _referenced_first(tables: list[Table]) -> list[Table]:
    """Sort tables so that each follows the tables that its foreign keys refer to."""
    ordered: list[Table] = []
    waiting = list(tables)
    while waiting:
        names = {table.qualified_name for table in waiting}
        free = (
            table
            for table in waiting
            if names.isdisjoint({item.references for item in table.constraints}
                                - {table.qualified_name})
        )  # fmt: skip
        chosen = next(free, waiting[0])
        waiting.remove(chosen)
        ordered.append(chosen)
    return ordered
