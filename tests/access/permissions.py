"""Who may do what, as it should come out: the one table, and its page in docs/permissions.md.

Written down apart from `langfuse_schema.access`, which says how it is brought about. What is not
listed is refused. `PYTHONPATH=tests python tests/access/permissions.py` renders it into the page.
"""

from __future__ import annotations

from dataclasses import dataclass

from support import CHECKOUT, CORE, HARDENED, POLICIES, REVISIONS

PAGE = CHECKOUT / "docs" / "permissions.md"
BEGIN, END = "<!-- permissions: generated -->", "<!-- permissions: end -->"

TRACES, SCORES = "public.langfuse_traces", "public.langfuse_scores"
BATCH_RUNS, RATE_LIMITS = "public.langfuse_batch_runs", "public.rate_limit_logs"
OURS = (TRACES, SCORES, BATCH_RUNS, RATE_LIMITS)
VERSION = "langfuse_migrations.alembic_version"

INSERT_ALL = "INSERT with status and times"
READ_AND_WRITE = ("SELECT", "INSERT", INSERT_ALL, "UPDATE", "DELETE")
OWNERS_ONLY = ("TRUNCATE", "MAINTAIN")
ACTIONS = (*READ_AND_WRITE, *OWNERS_ONLY)

ROLES = {
    "anon": "nobody signed in (`anon`)",
    "user": "a user (`authenticated`)",
    "service_role": "`service_role`",
    "authenticator": "`authenticator` itself",
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
        return self.since <= revision and (self.until is None or revision < self.until)


ALLOWED = (
    Allowed("user", TRACES, "SELECT", OWN, POLICIES),
    Allowed("user", SCORES, "SELECT", OWN, POLICIES),
    Allowed("user", SCORES, "INSERT", OWN, POLICIES),
    Allowed("user", SCORES, INSERT_ALL, OWN, POLICIES, until=HARDENED),
    *(
        Allowed("service_role", table, action, ALL, CORE)
        for table in OURS
        for action in READ_AND_WRITE
    ),
    *(
        Allowed("owner", table, action, ALL, CORE)
        for table in (*OURS, VERSION)
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
    bounds = sorted({allowed.since for allowed in ALLOWED} | {HARDENED})
    sections = []
    for bound in reversed(bounds):
        later = [other for other in bounds if other > bound]
        span = [revision for revision in REVISIONS if bound <= revision < min([*later, "3"])]
        title = "now" if not later else "earlier"
        lines = [
            f"### {' and '.join(span)} ({title})",
            "",
            "| | " + " | ".join(ROLES.values()) + " |",
            "|---" * (len(ROLES) + 1) + "|",
        ]
        for table in (*OURS, VERSION):
            cells = [cell(role, table, bound) for role in ROLES]
            lines.append(f"| `{table.removeprefix('public.')}` | " + " | ".join(cells) + " |")
        sections.append("\n".join(lines))
    return "\n\n".join(sections)


def cell(role: str, table: str, revision: str) -> str:
    """What a role may do with a table, in a few words."""
    by_rows: dict[str, list[str]] = {}
    for action in ACTIONS:
        rows = expected(role, table, action, revision)
        if rows != "refused":
            by_rows.setdefault(rows, []).append(action)
    if not by_rows:
        return "nothing"
    return "; ".join(f"{words(actions)}: {rows}" for rows, actions in by_rows.items())


def words(actions: list[str]) -> str:
    if list(ACTIONS) == actions:
        return "everything"
    if "INSERT" in actions and INSERT_ALL not in actions:
        actions = ["INSERT without status and times" if a == "INSERT" else a for a in actions]
    return ", ".join(action for action in actions if action != INSERT_ALL)


def page() -> str:
    """The page with its tables as they should be."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{render()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
