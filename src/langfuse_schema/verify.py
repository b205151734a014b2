"""Compare a database with the revisions after an upgrade. Nothing is changed."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from alembic.util import CommandError

from langfuse_schema._checks import checklist, drift
from langfuse_schema._history.chain import History
from langfuse_schema._postgres import catalog
from langfuse_schema._postgres.errors import errors_as_findings
from langfuse_schema._postgres.findings import counted
from langfuse_schema._postgres.sessions import SCRIPT
from langfuse_schema._runtime import settings
from langfuse_schema._runtime.caller import nested_command
from langfuse_schema._runtime.target import Target

if TYPE_CHECKING:
    from collections.abc import Iterator

    import sqlalchemy as sa
    from sqlalchemy.engine import URL

    from langfuse_schema._postgres.findings import Finding, Report


def verify(target: str | URL | sa.Engine | sa.Connection, revision: str = "head") -> list[Finding]:
    """Compare a database with the revisions, as `langfuse-schema verify` does.

    Arguments:
        target: the URL of the database, an engine, or a connection without an open transaction.
        revision: the expected revision: `head`, or a revision id.

    Returns:
        The differences and warnings; empty if there is none.

    Raises:
        SchemaError: the database cannot be reached or read, or a migration is running.
        CommandError: there is no such revision.
    """
    database = Target.of(target)
    with nested_command(only_reading=True):
        return list(report(database, History.packaged(), revision).findings)


def report(target: Target, history: History, revision: str, *, verbose: bool = False) -> Report:
    """Run `verify` on a target, with the facts of its JSON form.

    With `verbose`, all differences are listed, those of one cause too.
    """
    expected = history.resolve(revision)
    if expected is None:
        raise CommandError(f"verify compares with a revision, not with {revision}")
    with (
        target.connect(only_reading=True, bare=True) as connection,
        errors_as_findings(connection),
        _read_only(connection, target.options.lock_timeout),
    ):
        return drift.report(connection, history, expected, verbose=verbose)


@contextmanager
def _read_only(connection: sa.Connection, lock_timeout: float) -> Iterator[None]:
    """Run a transaction that sees one state and can change nothing, on a standby too."""
    connection.rollback()
    driver: Any = connection.connection.dbapi_connection
    mode = "ISOLATION LEVEL REPEATABLE READ READ ONLY"
    # An engine in autocommit mode begins no transaction by itself.
    begin = f"BEGIN {mode}" if driver.autocommit else f"SET TRANSACTION {mode}"
    values = settings.session_settings(lock_timeout) | catalog.PINNED
    script = f"{begin}; {settings.local_script(values)}"
    connection.exec_driver_sql(script, execution_options=SCRIPT)
    try:
        yield
    finally:
        if driver.autocommit:
            connection.exec_driver_sql("ROLLBACK")
        connection.rollback()


def as_text(report: Report) -> str:
    """Return a report as text: the checklist, then the differences.

    Before the first upgrade, it is one line with the command to run.
    """
    if not report.facts["migrated"] and len(report.findings) == 1:
        (only,) = report.findings
        return f"{only.severity}[{only.code}]: {only.message}; run `{only.fix[-1]}`"
    lines = [checklist.shown(check) for check in report.facts["checks"]]
    lines += [str(finding) for finding in report.findings]
    facts = report.facts
    revision = report.revision or ("none" if facts["revision_readable"] else "not readable")
    lines.append(
        f"PostgreSQL {facts['server']}, database {facts['database']}, role {facts['role']},"
        f" revision {revision}, read in {facts['elapsed_milliseconds']} ms"
    )
    for fact in ("extra_indexes", "column_order", "additional_row_security", "other_grants"):
        if facts[fact]:
            lines.append(f"{fact.replace('_', ' ')}: {', '.join(facts[fact])}")
    warnings = sum(one.severity == "warning" for one in report.findings)
    conclusion = counted(len(report.findings) - warnings, "difference")
    if warnings:
        conclusion += f", {counted(warnings, 'warning')}"
    return "\n".join([*lines, conclusion])
