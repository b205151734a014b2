"""Compare a database with the revisions after an upgrade. Nothing is changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from langfuse_schema._checks import checklist

if TYPE_CHECKING:
    import sqlalchemy as sa
    from sqlalchemy.engine import URL

    from langfuse_schema._postgres.findings import Finding, Report


def verify(target: str | URL | sa.Engine | sa.Connection, revision: str = "head") -> list[Finding]:
    """Compare a database with the revisions, as `langfuse-schema verify` does.

    Arguments:
        target: the URL of the database, an engine, or a connection without an open transaction.
        revision: the expected revision: `head`, or a revision id.

    Returns:
        The differences; empty if there is none.

    Raises:
        SchemaError: the database cannot be reached or read, or a migration is running.
        CommandError: there is no such revision.
    """
    from langfuse_schema import migrations

    return list(migrations.verify_report(migrations.config_for(target), revision).findings)


def as_text(report: Report) -> str:
    """Return a report as text: the checklist, then one line for each difference."""
    lines = [checklist.shown(check) for check in report.facts["checks"]]
    lines += [finding.line() for finding in report.findings]
    facts = report.facts
    revision = report.revision or ("none" if facts["revision_readable"] else "not readable")
    lines.append(
        f"PostgreSQL {facts['server']}, database {facts['database']}, role {facts['role']},"
        f" revision {revision}, read in {facts['elapsed_milliseconds']} ms"
    )
    for fact in ("extra_indexes", "column_order", "other_grants"):
        if facts[fact]:
            lines.append(f"{fact.replace('_', ' ')}: {', '.join(facts[fact])}")
    number = len(report.findings)
    lines.append(f"{number} {'difference' if number == 1 else 'differences'}")
    return "\n".join(lines)
