"""What we tell users: one shape for every message, as text and as JSON.

A finding says what was found, what was expected, and what to type next. The wording of each
stands where it is found; how it looks stands here.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from alembic.util import CommandError

if TYPE_CHECKING:
    from collections.abc import Sequence

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be.

    `object` is `public.table`, `public.table.column`, `public.index_name`,
    `public.table: constraint or policy name`, or what else was looked at.
    """

    code: str
    object: str
    found: str
    expected: str
    remedy: str
    severity: Severity = "error"

    def __str__(self) -> str:
        """The finding as four lines of text."""
        return (
            f"{self.severity}: {self.code}: {self.object}\n"
            f"  found:    {_indented(self.found)}\n"
            f"  expected: {_indented(self.expected)}\n"
            f"  remedy:   {_indented(self.remedy)}"
        )

    def line(self) -> str:
        """The finding as one line: code, object, found, expected, remedy."""
        found, expected, remedy = map(_on_one_line, (self.found, self.expected, self.remedy))
        return f"{self.code}  {self.object}  found: {found}  expected: {expected}  remedy: {remedy}"


@dataclass(frozen=True)
class Report:
    """The findings of one look at a database, with what is only worth knowing."""

    revision: str | None
    findings: tuple[Finding, ...]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether no finding is an error."""
        return not any(finding.severity == "error" for finding in self.findings)

    def as_json(self) -> str:
        """The report as JSON, in a stable shape: ok, revision, facts, findings."""
        return json.dumps(
            {
                "ok": self.ok,
                "revision": self.revision,
                "facts": self.facts,
                "findings": [asdict(finding) for finding in self.findings],
            },
            indent=2,
        )

    def as_text(self) -> str:
        """The report as text for people: findings, then facts."""
        lines = [str(finding) for finding in self.findings]
        lines += [f"{name}: {value}" for name, value in self.facts.items()]
        errors = sum(finding.severity == "error" for finding in self.findings)
        warnings = len(self.findings) - errors
        lines.append(f"{_counted(errors, 'error')}, {_counted(warnings, 'warning')}")
        return "\n".join(lines)


class SchemaError(CommandError):
    """Findings that stopped a command; `alembic` shows them without a traceback.

    Arguments:
        findings: at least one.
    """

    def __init__(self, findings: Sequence[Finding]) -> None:
        """Make one message of all findings."""
        super().__init__("\n".join(["", *(str(finding) for finding in findings)]))
        self.findings = tuple(findings)


def _on_one_line(value: str) -> str:
    return " ".join(line.strip() for line in value.splitlines())


def _indented(value: str) -> str:
    return value.replace("\n", "\n            ")


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
