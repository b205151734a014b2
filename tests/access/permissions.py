"""The expected permissions, written by hand: a test proves them, and the docs render them.

The snapshots are generated from the revisions, so they cannot prove that a revision is right.
An action that is not listed is refused.
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
OWNERS_ONLY = ("TRUNCATE", "MAINTAIN")
ACTIONS = (*READ_AND_WRITE, *OWNERS_ONLY)

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
    """One thing that somebody may do, since one revision and until another."""

    role: str
    table: str
    action: str
    rows: str
    since: str
    until: str | None = None

    def at(self, revision: str) -> bool:
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
    """What comes out of an action: some rows, or 'refused'."""
    found = {
        allowed.rows
        for allowed in ALLOWED
        if (allowed.role, allowed.table, allowed.action) == (role, table, action)
        and allowed.at(revision)
    }
    return found.pop() if found else "refused"


def render() -> str:
    """The tables of the page, one for each span of revisions with the same permissions."""
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
    """The rows of one table of the page."""
    tables = [*(table for table in LANGFUSE_TABLES if table in HISTORY.schema(revision)), VERSION]
    return "\n".join(
        f"| `{table.removeprefix('public.')}` | "
        + " | ".join(cell(role, table, revision) for role in ROLES)
        + " |"
        for table in tables
    )


def cell(role: str, table: str, revision: str) -> str:
    """What a role may do with a table, in a few words."""
    by_rows: dict[str, list[str]] = {}
    for action in ACTIONS:
        rows = expected(role, table, action, revision)
        if rows != "refused":
            by_rows.setdefault(rows, []).append(action)
    if not by_rows:
        return "no access"
    return "; ".join(f"{words(actions)}: {rows}" for rows, actions in by_rows.items())


def words(actions: list[str]) -> str:
    if list(ACTIONS) == actions:
        return "all privileges"
    if "INSERT" in actions and INSERT_ALL not in actions:
        actions = ["INSERT without status and times" if a == "INSERT" else a for a in actions]
    return ", ".join(action for action in actions if action != INSERT_ALL)
