"""The expected permissions, written by hand.

A test proves them, and docs/reference/permissions.md shows them. The snapshots are
generated from the revisions, so they cannot prove that a revision is right. An action that is
not listed is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.helpers.databases import CORE, HARDENED, HISTORY, POLICIES, REVISIONS

TRACES, SCORES = "public.langfuse_traces", "public.langfuse_scores"
BATCH_RUNS, RATE_LIMITS = "public.langfuse_batch_runs", "public.rate_limit_logs"
LANGFUSE_TABLES = (TRACES, SCORES, BATCH_RUNS, RATE_LIMITS)
"""The tables with expected permissions. Add a new table here, with its rows in `ALLOWED`."""

VERSION = "langfuse_migrations.alembic_version"

INSERT_ALL = "INSERT with status and times"
READ_AND_WRITE = ("SELECT", "INSERT", INSERT_ALL, "UPDATE", "DELETE")
OWNER_ONLY = ("TRUNCATE", "MAINTAIN")
ACTIONS = (*READ_AND_WRITE, *OWNER_ONLY)

ROLES = {
    "anon": "`anon`, not signed in",
    "user": "`authenticated`, a signed-in user",
    "service_role": "`service_role`",
    "authenticator": "`authenticator` before SET ROLE",
    "owner": "the tables' owner",
}

OWN, ALL = "own rows", "all rows"


@dataclass(frozen=True)
class Allowed:
    """A permission of a role, from one revision until another."""

    role: str
    table: str
    action: str
    rows: str
    since: str
    until: str | None = None

    def applies_at(self, revision: str) -> bool:
        position = REVISIONS.index(revision)
        until = len(REVISIONS) if self.until is None else REVISIONS.index(self.until)
        return REVISIONS.index(self.since) <= position < until


ALLOWED = (
    Allowed("user", TRACES, "SELECT", OWN, POLICIES),
    Allowed("user", SCORES, "SELECT", OWN, POLICIES),
    Allowed("user", SCORES, "INSERT", OWN, POLICIES),
    Allowed("user", SCORES, INSERT_ALL, OWN, POLICIES, until=HARDENED),
    *(
        Allowed("service_role", table, action, ALL, CORE)
        for table in LANGFUSE_TABLES
        for action in READ_AND_WRITE
    ),
    *(
        Allowed("owner", table, action, ALL, CORE)
        for table in (*LANGFUSE_TABLES, VERSION)
        for action in ACTIONS
    ),
)


def expected(role: str, table: str, action: str, revision: str) -> str:
    """Return the rows that an action reaches, or 'refused'."""
    found = {
        allowed.rows
        for allowed in ALLOWED
        if (allowed.role, allowed.table, allowed.action) == (role, table, action)
        and allowed.applies_at(revision)
    }
    return found.pop() if found else "refused"


def render() -> str:
    """Return the tables of the page, one for each span of revisions with the same permissions."""
    spans: dict[str, list[str]] = {}
    for revision in REVISIONS:
        spans.setdefault(rows_at(revision), []).append(revision)
    heading = "| | " + " | ".join(ROLES.values()) + " |\n" + "|---" * (len(ROLES) + 1) + "|"
    sections = [
        f"## {' and '.join(span)} ({'now' if HISTORY.head in span else 'earlier'})\n\n"
        f"{heading}\n{rows}"
        for rows, span in spans.items()
    ]
    return "\n\n".join(reversed(sections))


def rows_at(revision: str) -> str:
    """Return the rows of one table of the page."""
    tables = [*(table for table in LANGFUSE_TABLES if table in HISTORY.schema(revision)), VERSION]
    return "\n".join(
        f"| `{table.removeprefix('public.')}` | "
        + " | ".join(cell(role, table, revision) for role in ROLES)
        + " |"
        for table in tables
    )


def cell(role: str, table: str, revision: str) -> str:
    """Return the permissions of a role on a table, as one cell."""
    by_rows: dict[str, list[str]] = {}
    for action in ACTIONS:
        rows = expected(role, table, action, revision)
        if rows != "refused":
            by_rows.setdefault(rows, []).append(action)
    if not by_rows:
        return "no access"
    return "; ".join(f"{joined(actions)}: {rows}" for rows, actions in by_rows.items())


def joined(actions: list[str]) -> str:
    if list(ACTIONS) == actions:
        return "all privileges"
    if "INSERT" in actions and INSERT_ALL not in actions:
        actions = ["INSERT without status and times" if a == "INSERT" else a for a in actions]
    return ", ".join(action for action in actions if action != INSERT_ALL)
