"""The plan's checklist (検証項目) and what goes beyond it, ticked off by what was found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langfuse_schema import access, tables

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from langfuse_schema import catalog
    from langfuse_schema.findings import Finding

_Tables = dict[str, "catalog.Table"]


def checks(
    expected: _Tables, found: _Tables, revision: str | None, findings: Collection[Finding]
) -> list[dict[str, Any]]:
    """Tick off the plan's eight items, in its order, then what goes beyond.

    Arguments:
        expected: the tables as they should be, by `schema.table`.
        found: those that there are.
        revision: what the version table says; None if nothing, or if it cannot be read.
        findings: all of the report.

    Returns:
        For each item: `check`, what it is about; `ok`; `found`, in words.
    """
    failed = {_item(finding) for finding in findings}

    def check(title: str, item: str, shown: str, complete: bool = True) -> dict[str, Any]:
        return {"check": title, "ok": complete and item not in failed, "found": shown}

    def counted(title: str, item: str, *parts: tuple[str, int, int]) -> dict[str, Any]:
        shown = ", ".join(_counted(*part) for part in parts)
        return check(title, item, shown, all(there == all_ for _, there, all_ in parts))

    results = [
        check(f"{name} exists", f"public.{name}", _contents(found.get(f"public.{name}")))
        for name in access.TABLES
    ]
    protected = [name for name, table in expected.items() if table.row_security]
    secured = [name for name in protected if name in found and found[name].row_security]
    results += [
        counted(
            f"app tables have {tables.LINK_COLUMN}",
            "links",
            ("column", *_equal(expected, found, _links)),
        ),
        counted(
            "RLS policies are right",
            "policies",
            ("policy", *_equal(expected, found, lambda table: table.policies)),
            ("table with row level security", len(secured), len(protected)),
        ),
        counted("indexes exist", "indexes", ("index", *_equal(expected, found, _indexes))),
        counted(
            "foreign keys are right",
            "foreign keys",
            ("foreign key", *_equal(expected, found, _foreign_keys)),
        ),
        check("grants are right", "grants", _grants(found)),
        check("one owner", "owner", _owners(found)),
        check("nothing attached", "attached", _attached(found)),
        check("revision", "revision", revision or "none, or not readable"),
    ]
    return results


def shown(check: dict[str, Any]) -> str:
    """Write an item as the plan's own list has it."""
    return f"[{'x' if check['ok'] else ' '}] {check['check']} … {check['found']}"


_ITEMS = {
    "policy": "policies",
    "row-level-security": "policies",
    "index": "indexes",
    "grant": "grants",
    "owner": "owner",
    "trigger": "attached",
    "rule": "attached",
    "inheritance": "attached",
    "revision": "revision",
}


def _item(finding: Finding) -> str:
    """Say which item a finding unticks."""
    if not finding.object.startswith("public."):
        return "revision"
    kind = finding.code.rpartition("-")[0]
    if kind in _ITEMS:
        return _ITEMS[kind]
    if kind == "constraint" and "FOREIGN KEY" in finding.expected + finding.found:
        return "foreign keys"
    table = finding.object.split(":")[0].split(".")[1]
    return "links" if table in tables.APP_TABLES else f"public.{table}"


def _counted(noun: str, there: int, all_: int) -> str:
    number = str(there) if there == all_ else f"{there} of {all_}"
    return f"{number} {_plural(noun, all_)}"


def _plural(noun: str, number: int) -> str:
    if number == 1:
        return noun
    head, with_, rest = noun.partition(" with ")
    irregular = {"index": "indexes", "policy": "policies"}
    return irregular.get(head, f"{head}s") + with_ + rest


def _equal(
    expected: _Tables,
    found: _Tables,
    part: Callable[[catalog.Table], Collection[catalog.Named]],
) -> tuple[int, int]:
    """Count what stands there as it should, and all that should."""
    wanted = [(name, item) for name, table in expected.items() for item in part(table)]
    there = {(name, item) for name, table in found.items() for item in part(table)}
    return sum(item in there for item in wanted), len(wanted)


def _links(table: catalog.Table) -> list[catalog.Named]:
    if table.name not in tables.APP_TABLES:
        return []
    return [column for column in table.columns if column.name == tables.LINK_COLUMN]


def _indexes(table: catalog.Table) -> tuple[catalog.Index, ...]:
    return table.indexes


def _foreign_keys(table: catalog.Table) -> list[catalog.Constraint]:
    return [
        constraint
        for constraint in table.constraints
        if constraint.definition.startswith("FOREIGN KEY")
    ]


def _contents(table: catalog.Table | None) -> str:
    if table is None:
        return "nothing"
    parts = (
        ("column", len(table.columns)),
        ("constraint", len(table.constraints)),
        ("index", len(table.indexes)),
    )
    return ", ".join(f"{number} {_plural(noun, number)}" for noun, number in parts)


def _ours(found: _Tables) -> Iterator[catalog.Table]:
    return (found[f"public.{name}"] for name in access.TABLES if f"public.{name}" in found)


def _grants(found: _Tables) -> str:
    parts = []
    for role in ("PUBLIC", *access.API_ROLES):
        reached = [
            table.name
            for table in _ours(found)
            if any(grant.role == role for grant in table.grants)
        ]
        parts.append(f"{role} on {_counted_tables(len(reached))}")
    return ", ".join(parts)


def _counted_tables(number: int) -> str:
    return f"{number or 'no'} {_plural('table', number)}"


def _owners(found: _Tables) -> str:
    return ", ".join(sorted({table.owner for table in _ours(found)})) or "nobody"


def _attached(found: _Tables) -> str:
    triggers = sum(len(table.triggers) for table in _ours(found))
    rules = sum(len(table.rules) for table in _ours(found))
    related = sum(len(table.parents) + len(table.children) for table in _ours(found))
    return (
        f"{_none_or(triggers, 'trigger')}, {_none_or(rules, 'rule')},"
        f" {_none_or(related, 'inheriting table')}"
    )


def _none_or(number: int, noun: str) -> str:
    return f"{number or 'no'} {_plural(noun, number)}"
