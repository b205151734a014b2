"""The form of every message: one problem as text and as JSON.

The wording is in `messages.ini`, one section for each code.
"""

from __future__ import annotations

import json
import textwrap
from configparser import RawConfigParser
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from alembic.util import CommandError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Severity = Literal["error", "warning"]

DOCS = "docs/reference/errors.md"

NOT_IN_RIGHT_STATE, CANNOT_RUN = 1, 2
"""Exit codes: the database is not as it must be; the command could not run."""


@dataclass(frozen=True)
class Finding:
    """One problem.

    Attributes:
        code: stable, in lower case with hyphens.
        object: the object in question, such as `public.table.column`.
        message: a full clause: the failed action, or the difference.
        severity: an error stops a command, a warning does not.
        found: the actual value.
        expected: the expected value.
        cause: the reason, if no two values differ.
        state: the state of the database, if a run stopped after it changed something.
        advice: the way to fix it, in the imperative.
        fix: commands of a shell or SQL statements, to be run in this order.
        sqlstate: the SQLSTATE of PostgreSQL.
    """

    code: str
    object: str
    message: str
    severity: Severity = "error"
    found: str | None = None
    expected: str | None = None
    cause: str | None = None
    state: str | None = None
    advice: str | None = None
    fix: tuple[str, ...] = ()
    sqlstate: str | None = None

    @property
    def docs(self) -> str:
        """The place in the reference that explains the code."""
        return f"{DOCS}#{self.code}"

    def __str__(self) -> str:
        """Return the finding as text."""
        commands = (textwrap.indent(command, "  ") for command in self.fix)
        fix = "\n".join([*filter(None, [self.advice]), *commands])
        values = {name: getattr(self, name) for name in ("cause", "found", "expected", "state")}
        values |= {"fix": fix, "docs": self.docs}
        lines = {label: value for label, value in values.items() if value}
        width = max(map(len, lines)) + 2
        code = f"{self.code} {self.sqlstate}" if self.sqlstate else self.code
        text = [f"{self.severity}[{code}]: {self.message}"]
        for label, value in lines.items():
            indented = value.replace("\n", "\n  " + " " * width)
            text.append(f"  {f'{label}:':{width}}{indented}")
        return "\n".join(text)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields of the JSON form."""
        return asdict(self) | {"docs": self.docs}


def finding(code: str, place: str, **values: Any) -> Finding:  # noqa: ANN401 - values of any type are formatted
    """Return the finding of a code, worded by the catalogue.

    Arguments:
        code: a section of the catalogue.
        place: the object in question.
        values: of the placeholders. `fix` (a sequence), `severity` and `sqlstate` replace those
            of the catalogue. Other fields of `Finding` apply if the catalogue has none.
    """
    section = catalogue()[code]
    fields: dict[str, Any] = {}
    for name in ("message", "found", "expected", "cause", "state", "advice"):
        if name in values or name in section:
            template = section.get(name, "{" + name + "}")
            fields[name] = template.format(place=place, **values)
    fix = values.get("fix", section.get("fix", "").format(place=place, **values).splitlines())
    severity = values.get("severity", section.get("severity", "error"))
    sqlstate = values.get("sqlstate")
    return Finding(code, place, severity=severity, fix=tuple(fix), sqlstate=sqlstate, **fields)


@cache
def catalogue() -> Mapping[str, Mapping[str, str]]:
    """Return the sections of the catalogue by code."""
    parser = RawConfigParser()
    parser.read_string(Path(__file__).with_name("messages.ini").read_text(encoding="utf-8"))
    return {code: dict(parser[code]) for code in parser.sections()}


def exit_code(findings: Sequence[Finding]) -> int:
    """Return the exit code of a command that these findings stopped."""
    codes = {int(catalogue()[one.code].get("exit", NOT_IN_RIGHT_STATE)) for one in findings}
    return max(codes, default=NOT_IN_RIGHT_STATE)


@dataclass(frozen=True)
class Report:
    """The findings on a database, and facts that are no findings."""

    revision: str | None
    findings: tuple[Finding, ...]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether no finding is an error."""
        return not any(finding.severity == "error" for finding in self.findings)

    def as_json(self) -> str:
        """Return the report as JSON: ok, revision, facts, findings."""
        fields = {"ok": self.ok, "revision": self.revision, "facts": self.facts}
        findings = [finding.as_dict() for finding in self.findings]
        return json.dumps(fields | {"findings": findings}, indent=2)

    def as_text(self) -> str:
        """Return a report of preflight as text: facts, the plan, findings, then one line."""
        lines = [
            f"{name.replace('_', ' ')}: {_listed(value)}"
            for name, value in self.facts.items()
            if name not in _PLAN
        ]
        lines += [line for one in self.facts.get("pending", ()) for line in _planned(**one)]
        tables: dict[str, dict[str, Any]] = self.facts.get("tables", {})
        lines += ["affected tables:"] if tables else []
        lines += [_affected(name, table["rows"], table["bytes"]) for name, table in tables.items()]
        return "\n".join([*lines, *map(str, self.findings), self._conclusion()])

    def _conclusion(self) -> str:
        errors = sum(finding.severity == "error" for finding in self.findings)
        if errors:
            warnings = counted(len(self.findings) - errors, "warning")
            return f"Not ready: {counted(errors, 'error')}, {warnings}."
        pending = self.facts.get("pending", ())
        if pending:
            return f"Ready: {counted(len(pending), 'revision')} to apply."
        return f"Already at {self.revision} (head). Nothing to do."


_PLAN = ("pending", "tables")
"""The facts of a report that are the plan of an upgrade."""

_LARGEST_SHOWN = 9999.5


def _listed(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return "; ".join(f"{key}: {one}" for key, one in value.items()) or "none"
    return ", ".join(value) if isinstance(value, list) else str(value)


def _planned(revision: str, title: str, locks: str) -> list[str]:
    """Return the lines of one pending revision."""
    text = textwrap.wrap(locks, 90, initial_indent="  locks: ", subsequent_indent="         ")
    return [f"{revision} {title}", *text]


def _affected(name: str, rows: int | None, size: int) -> str:
    """Return the line of one table, with the rows that PostgreSQL estimates."""
    number = "an unknown number of" if rows is None else f"about {rows:,}"
    return f"  {name}: {number} {'row' if rows == 1 else 'rows'}, {_size(size)}"


def _size(number: float) -> str:
    """Return a number of bytes in the smallest unit in which it has at most four digits."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < _LARGEST_SHOWN:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:,.0f} TB"


class SchemaError(CommandError):
    """Findings that stopped a command.

    Arguments:
        findings: at least one.

    Attributes:
        findings: the same.
    """

    def __init__(self, *findings: Finding) -> None:
        """Join the findings to one message."""
        super().__init__("\n".join(["", *(str(finding) for finding in findings)]))
        self.findings = findings


def counted(number: int, noun: str) -> str:
    """Return a number with its noun in the right form."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
