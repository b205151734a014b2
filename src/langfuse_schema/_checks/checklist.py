"""The plan's checklist (検証項目), and the lines beyond it.

A line is ticked only if its objects were compared and are right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langfuse_schema._postgres.findings import counted
from langfuse_schema.tables import API_ROLES

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from langfuse_schema._history.snapshots import Tables
    from langfuse_schema._postgres.compare import Difference
    from langfuse_schema._postgres.objects import Part, Table

    Concerns = Callable[[Difference], bool]

UNKNOWN = "the recorded revision is unknown"
NO_TABLES = "none of the tables exists"


@dataclass(frozen=True)
class Checklist:
    """The checklist of one comparison.

    Attributes:
        expected: the schema at the target.
        found: the actual tables.
        differences: of the tables; None if nothing was compared.
        revision: the recorded revision.
        revision_is_right: whether it and the version table are as expected.
    """

    expected: Tables
    found: Tables
    differences: Collection[Difference] | None
    revision: str | None
    revision_is_right: bool

    def lines(self) -> list[dict[str, Any]]:
        """Return the plan's eight lines in its order, then the lines beyond it.

        Returns:
            Of each line: `check`, its title; `ok`, None if it was not checked; `found`, the
            actual state, or the reason.
        """
        complete = [table for table in self.expected.values() if not table.partial]
        partial = [table for table in self.expected.values() if table.partial]
        links = sorted({column.name for table in partial for column in table.columns})
        secured = [t.qualified_name for t in complete if t.row_security]
        actual = sum(n in self.found and self.found[n].row_security for n in secured)
        tables = "table with row level security", "tables with row level security"
        return [
            *map(self._table, complete),
            self._parts(
                f"app tables have {', '.join(links) or 'the link column'}",
                _is_link,
                lambda t: t.columns * t.partial,
            ),
            self._parts(
                "RLS policies are right",
                lambda d: d.aspect in ("policy", "row-level-security"),
                lambda t: t.policies,
                f", {_of(actual, len(secured), *tables)}",
                complete=actual == len(secured),
            ),
            self._parts("indexes exist", lambda d: d.aspect == "index", lambda t: t.indexes),
            self._parts(
                "foreign keys are right",
                _is_foreign_key,
                lambda t: [item for item in t.constraints if item.references],
            ),
            self._line("grants are right", lambda d: d.aspect == "grant", self._grants()),
            self._line("one owner", lambda d: d.aspect == "owner", self._owners()),
            self._line("nothing attached", _is_attached, self._attached()),
            {
                "check": "revision",
                "ok": self.revision_is_right and bool(self.revision),
                "found": self.revision or "none, or not readable",
            },
        ]

    def _existing(self) -> list[Table]:
        """Return the actual tables that belong to the schema."""
        names = [name for name, table in self.expected.items() if not table.partial]
        return [self.found[name] for name in names if name in self.found]

    def _line(self, title: str, concerns: Concerns, shown: str, ok: bool = True) -> dict[str, Any]:
        """Return a line that these differences untick."""
        if self.differences is None or not self._existing():
            reason = UNKNOWN if self.differences is None else NO_TABLES
            return {"check": title, "ok": None, "found": reason}
        return {
            "check": title,
            "ok": ok and not any(map(concerns, self.differences)),
            "found": shown,
        }

    def _table(self, expected: Table) -> dict[str, Any]:
        table = self.found.get(expected.qualified_name)
        parts = "nothing"
        if table is not None:
            columns, constraints = len(table.columns), len(table.constraints)
            parts = f"{counted(columns, 'column')}, {counted(constraints, 'constraint')}"
            parts += f", {_of(len(table.indexes), len(table.indexes), 'index', 'indexes')}"

        def concerns(difference: Difference) -> bool:
            return difference.table == expected and _is_of_table(difference)

        line = self._line(f"{expected.name} exists", concerns, parts, table is not None)
        return line if line["found"] != NO_TABLES else line | {"ok": False, "found": parts}

    def _parts(
        self,
        title: str,
        concerns: Concerns,
        parts: Callable[[Table], Iterable[Part]],
        more: str = "",
        *,
        complete: bool = True,
    ) -> dict[str, Any]:
        """Return a line with the number of correct parts, and of all of them."""
        expected = [(name, part) for name, table in self.expected.items() for part in parts(table)]
        if not expected:
            return {"check": title, "ok": None, "found": "the revision has none"}
        correct = sum(n in self.found and part in self.found[n].parts() for n, part in expected)
        noun, nouns = _NOUNS.get(type(expected[0][1]).__name__, ("part", "parts"))
        if concerns is _is_foreign_key:
            noun, nouns = "foreign key", "foreign keys"
        shown = _of(correct, len(expected), noun, nouns) + more
        return self._line(title, concerns, shown, complete and correct == len(expected))

    def _grants(self) -> str:
        tables = self._existing()
        counts = {
            role: sum(any(grant.role == role for grant in table.grants) for table in tables)
            for role in ("PUBLIC", *API_ROLES)
        }
        return ", ".join(f"{role} on {_none(number, 'table')}" for role, number in counts.items())

    def _owners(self) -> str:
        return ", ".join(sorted({table.owner for table in self._existing()}))

    def _attached(self) -> str:
        tables = self._existing()
        related = sum(len(table.parents) + len(table.children) for table in tables)
        triggers, rules = (sum(len(getattr(t, p)) for t in tables) for p in ("triggers", "rules"))
        parts = (triggers, "trigger"), (rules, "rule"), (related, "inheriting table")
        return ", ".join(_none(*part) for part in parts)


def shown(line: dict[str, Any]) -> str:
    """Return a line in the form of the plan's own list."""
    if line["ok"] is None:
        return f"[-] {line['check']} … not checked: {line['found']}"
    return f"[{'x' if line['ok'] else ' '}] {line['check']} … {line['found']}"


_NOUNS = {
    "Column": ("column", "columns"),
    "Index": ("index", "indexes"),
    "Policy": ("policy", "policies"),
    "Constraint": ("foreign key", "foreign keys"),
}


def _of(correct: int, all_: int, noun: str, nouns: str) -> str:
    number = str(correct) if correct == all_ else f"{correct} of {all_}"
    return f"{number} {noun if all_ == 1 else nouns}"


def _none(number: int, noun: str) -> str:
    return counted(number, noun) if number else f"no {noun}s"


def _is_of_table(difference: Difference) -> bool:
    """Whether it is a difference of the table itself, its columns or its other constraints."""
    aspects = ("table", "kind", "persistence", "column", "constraint")
    return difference.aspect in aspects and not _is_foreign_key(difference)


def _is_link(difference: Difference) -> bool:
    return difference.table.partial and _is_of_table(difference)


def _is_foreign_key(difference: Difference) -> bool:
    items = (difference.expected, difference.found)
    return any(getattr(item, "references", None) for item in items)


def _is_attached(difference: Difference) -> bool:
    return difference.aspect in ("trigger", "rule", "parent", "child")
