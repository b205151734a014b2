"""The plan's checklist (検証項目), and the lines beyond it.

A line is ticked only if its objects were compared and are right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langfuse_schema.tables import API_ROLES

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from langfuse_schema._history.snapshots import Tables
    from langfuse_schema._postgres.compare import Difference
    from langfuse_schema._postgres.objects import Constraint, Named, Table

UNKNOWN = "the recorded revision is unknown"
NO_TABLES = "none of the tables exists"


@dataclass(frozen=True)
class Revision:
    """The recorded revision, and whether it and its table are correct."""

    recorded: str | None
    correct: bool


def checks(
    expected: Tables,
    found: Tables,
    differences: Collection[Difference] | None,
    revision: Revision,
) -> list[dict[str, Any]]:
    """Return the plan's eight lines in its order, then the lines beyond it.

    Arguments:
        expected: the schema at the target.
        found: the actual tables.
        differences: of the tables; None if nothing was compared.
        revision: of the database.

    Returns:
        Of each line: `check`, its title; `ok`, None if it was not checked; `found`, the actual
        state or the reason.
    """
    lines = _Lines(expected, found, differences)
    complete = [name for name, table in expected.items() if not table.partial]
    links = sorted({c.name for t in expected.values() if t.partial for c in t.columns})
    secured = [name for name in complete if expected[name].row_security]
    actual = [name for name in secured if name in found and found[name].row_security]
    return [
        *(lines.table(name) for name in complete),
        lines.counted(
            f"app tables have {', '.join(links) or 'no new column'}",
            _is_link,
            ("column", *lines.equal(lambda t: t.columns if t.partial else ())),
        ),
        lines.counted(
            "RLS policies are right",
            lambda d: d.aspect in ("policy", "row-level-security"),
            ("policy", *lines.equal(lambda t: t.policies)),
            ("table with row level security", len(actual), len(secured)),
        ),
        lines.counted(
            "indexes exist",
            lambda d: d.aspect == "index",
            ("index", *lines.equal(lambda t: t.indexes)),
        ),
        lines.counted(
            "foreign keys are right", _is_foreign_key, ("foreign key", *lines.equal(_foreign_keys))
        ),
        lines.line("grants are right", lambda d: d.aspect == "grant", lines.grants()),
        lines.line("one owner", lambda d: d.aspect == "owner", lines.owners()),
        lines.line("nothing attached", _is_attached, lines.attached()),
        {
            "check": "revision",
            "ok": revision.correct and bool(revision.recorded),
            "found": revision.recorded or "none, or not readable",
        },
    ]


def shown(check: dict[str, Any]) -> str:
    """Return a line in the form of the plan's own list."""
    if check["ok"] is None:
        return f"[-] {check['check']} … not checked: {check['found']}"
    return f"[{'x' if check['ok'] else ' '}] {check['check']} … {check['found']}"


class _Lines:
    """The lines of one comparison."""

    def __init__(
        self, expected: Tables, found: Tables, differences: Collection[Difference] | None
    ) -> None:
        self._expected = expected
        self._differences = differences
        self._found = {
            name: found[name]
            for name, table in expected.items()
            if name in found and not table.partial
        }
        self._all = found

    def line(
        self, title: str, concerns: Callable[[Difference], bool], shown: str, complete: bool = True
    ) -> dict[str, Any]:
        """Return a line that these differences, or missing objects, untick."""
        if self._differences is None:
            return {"check": title, "ok": None, "found": UNKNOWN}
        if not self._found:
            return {"check": title, "ok": None, "found": NO_TABLES}
        wrong = any(map(concerns, self._differences))
        return {"check": title, "ok": complete and not wrong, "found": shown}

    def table(self, name: str) -> dict[str, Any]:
        """Return the line of one table."""
        title = f"{name.partition('.')[2]} exists"
        if self._differences is None:
            return {"check": title, "ok": None, "found": UNKNOWN}
        table = self._found.get(name)
        wrong = any(_is_of_table(difference, name) for difference in self._differences)
        return {"check": title, "ok": table is not None and not wrong, "found": _contents(table)}

    def counted(
        self,
        title: str,
        concerns: Callable[[Difference], bool],
        *parts: tuple[str, int, int],
    ) -> dict[str, Any]:
        """Return a line with the number of correct objects, and of all of them."""
        shown = ", ".join(_counted(*part) for part in parts)
        return self.line(title, concerns, shown, all(correct == all_ for _, correct, all_ in parts))

    def equal(self, part: Callable[[Table], Iterable[Named]]) -> tuple[int, int]:
        """Count the parts that are as expected, and all expected parts."""
        wanted = [(name, item) for name, table in self._expected.items() for item in part(table)]
        correct = sum(item in _same_part(self._all.get(name), item) for name, item in wanted)
        return correct, len(wanted)

    def grants(self) -> str:
        """Return the number of tables on which each role has a privilege."""
        shown = []
        for role in ("PUBLIC", *API_ROLES):
            reached = sum(any(g.role == role for g in t.grants) for t in self._found.values())
            shown.append(f"{role} on {reached or 'no'} {_plural('table', reached)}")
        return ", ".join(shown)

    def owners(self) -> str:
        """Return the owners of the tables."""
        return ", ".join(sorted({table.owner for table in self._found.values()}))

    def attached(self) -> str:
        """Return the number of triggers, rules and inheriting tables."""
        tables = self._found.values()
        parts = (
            ("trigger", sum(len(table.triggers) for table in tables)),
            ("rule", sum(len(table.rules) for table in tables)),
            ("inheriting table", sum(len(t.parents) + len(t.children) for t in tables)),
        )
        return ", ".join(f"{number or 'no'} {_plural(noun, number)}" for noun, number in parts)


def _same_part(table: Table | None, item: Named) -> tuple[Named, ...]:
    if table is None:
        return ()
    parts = (table.columns, table.constraints, table.indexes, table.policies)
    return next((part for part in parts if part and isinstance(part[0], type(item))), ())


def _is_of_table(difference: Difference, name: str) -> bool:
    """Whether a difference is one of the table itself, its columns or its other constraints."""
    aspects = ("table", "kind", "persistence", "column", "constraint")
    return (
        difference.table.qualified_name == name
        and difference.aspect in aspects
        and not _is_foreign_key(difference)
    )


def _is_link(difference: Difference) -> bool:
    aspects = ("table", "kind", "column", "constraint")
    return (
        difference.table.partial
        and difference.aspect in aspects
        and not _is_foreign_key(difference)
    )


def _is_foreign_key(difference: Difference) -> bool:
    if difference.aspect != "constraint":
        return False
    items = (difference.expected, difference.found)
    return any("FOREIGN KEY" in getattr(item, "definition", "") for item in items)


def _foreign_keys(table: Table) -> list[Constraint]:
    return [constraint for constraint in table.constraints if constraint.references]


def _is_attached(difference: Difference) -> bool:
    return difference.aspect in ("trigger", "rule", "parent", "child")


def _contents(table: Table | None) -> str:
    if table is None:
        return "nothing"
    parts = (
        ("column", len(table.columns)),
        ("constraint", len(table.constraints)),
        ("index", len(table.indexes)),
    )
    return ", ".join(f"{number} {_plural(noun, number)}" for noun, number in parts)


def _counted(noun: str, correct: int, all_: int) -> str:
    number = str(correct) if correct == all_ else f"{correct} of {all_}"
    return f"{number} {_plural(noun, all_)}"


def _plural(noun: str, number: int) -> str:
    if number == 1:
        return noun
    head, with_, rest = noun.partition(" with ")
    irregular = {"index": "indexes", "policy": "policies"}
    return irregular.get(head, f"{head}s") + with_ + rest
