"""Every change that somebody can make is found, named, and its remedy, followed, undoes it."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from langfuse_schema import migrations
from langfuse_schema.verify import verify
from tests.helpers.databases import (
    HARDENED,
    Database,
    insert_example_rows,
    langfuse_schema,
    langfuse_tables,
)
from tests.helpers.effective_access import effective_access, user_of
from tests.helpers.hosted import add_platform_tables, enable_automatic_rls
from tests.helpers.mutations import (
    ACCESS_MUTATIONS,
    HARMLESS,
    MUTATIONS,
    REBUILD,
    SUPERUSER,
    Mutation,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import sqlalchemy as sa

    from langfuse_schema._postgres.findings import Finding


@dataclass(frozen=True)
class Sessions:
    """Connections that stay open, one for each role: connecting would take most of the time."""

    database: Database
    connections: dict[str, sa.Connection]

    def execute(self, sql: str, user: str = "postgres") -> None:
        self.connections[user].exec_driver_sql(sql.replace("%", "%%"))
        self.connections[user].commit()

    def verify(self) -> list[Finding]:
        return verify(self.connections["postgres"])


@contextmanager
def open_sessions(database: Database) -> Iterator[Sessions]:
    with database.connect() as postgres, database.connect(SUPERUSER) as superuser:
        yield Sessions(database, {"postgres": postgres, SUPERUSER: superuser})


def follow(sessions: Sessions, findings: list[Finding], user: str) -> None:
    """Type what the remedies say, in the order in which they are printed."""
    for finding in findings:
        for line in finding.fix:
            if line.startswith("langfuse-schema "):
                outcome = langfuse_schema(sessions.database, *line.split()[1:])
                assert outcome.code == 0, outcome.stderr
            else:
                sessions.execute(line, user)


def rebuild(sessions: Sessions) -> None:
    """Make everything anew, whatever there is."""
    sessions.execute(
        """
        DROP SCHEMA IF EXISTS langfuse_migrations CASCADE;
        DROP TABLE IF EXISTS """
        + ", ".join(langfuse_tables())
        + """ CASCADE;
        ALTER TABLE public.ai_coach_messages DROP COLUMN IF EXISTS langfuse_trace_id;
        ALTER TABLE public.encouragement_messages DROP COLUMN IF EXISTS langfuse_trace_id;
        CREATE TABLE IF NOT EXISTS public.reflections (id uuid PRIMARY KEY, body text);
        ALTER TABLE public.reflections DROP COLUMN IF EXISTS langfuse_trace_id;
        ALTER TABLE public.reflections OWNER TO postgres
        """,
        SUPERUSER,
    )
    migrations.upgrade(sessions.database.url)
    insert_example_rows(sessions.database)


def problem_with(sessions: Sessions, mutation: Mutation) -> str | None:
    """Make the change, look, follow the remedies, and look again."""
    of_access = mutation in ACCESS_MUTATIONS
    access = effective_access(sessions.connections[SUPERUSER]) if of_access else set()
    sessions.execute(mutation.sql, mutation.user)
    access |= effective_access(sessions.connections[SUPERUSER]) if of_access else set()
    findings = sessions.verify()
    found = {finding.object for finding in findings}
    if found != mutation.objects:
        return f"found {sorted(found)}, changed {sorted(mutation.objects)}"
    if mutation.undo == REBUILD:
        rebuild(sessions)
    elif mutation.undo:
        sessions.execute(mutation.undo, mutation.user)
    elif of_access:
        for finding in findings:
            named = finding.code in ("access-missing", "role-differs", "uid-function-differs")
            follow(sessions, [finding], user_of(finding) if named else mutation.user)
    else:
        follow(sessions, findings, mutation.user)
    opened = effective_access(sessions.connections[SUPERUSER]) - access if of_access else set()
    if mutation.cleanup:
        sessions.execute(mutation.cleanup, SUPERUSER)
    if opened:
        return f"opened by the remedies: {sorted(opened)}"
    left = sessions.verify()
    return f"left after the remedies: {[str(finding) for finding in left]}" if left else None


def try_every_mutation(database: Database) -> tuple[int, int]:
    """Make every change, one after the other; count the changes, and those that were undone."""
    with open_sessions(database) as sessions:
        rebuild(sessions)
        ((number,),) = database.execute("SHOW server_version_num")
        mutations = [one for one in MUTATIONS if one.since <= int(number) // 10000]
        problems = []
        for mutation in mutations:
            try:
                problem = problem_with(sessions, mutation)
            except Exception as error:  # noqa: BLE001 - every mutation is to be tried
                problem = repr(error)
            if problem:
                problems.append(f"{mutation.sql}\n  {problem}")
                rebuild(sessions)
    assert not problems, "\n".join(problems)
    return len(mutations), sum(mutation.undo is None for mutation in mutations)


def test_verify_reports_every_mutation_with_fix_that_repairs_it(
    database: Database, record_property: Callable[[str, object], None]
) -> None:
    number, repaired = try_every_mutation(database)
    assert number >= 80
    record_property("mutations of a database found by verify", number)
    record_property("of them undone by the printed remedy", repaired)


def test_verify_and_preflight_report_nothing_in_healthy_database_of_an_app(
    any_world: Database,
) -> None:
    migrations.upgrade(any_world.url, HARDENED)
    any_world.execute(HARMLESS, SUPERUSER)
    enable_automatic_rls(any_world)
    add_platform_tables(any_world)
    try:
        assert migrations.preflight(any_world.url).findings == ()
        migrations.upgrade(any_world.url)
        assert verify(any_world.url) == []
    finally:
        any_world.execute("DROP OWNED BY app_users; DROP ROLE app_users", SUPERUSER)


def test_every_mutation_without_repairing_fix_has_a_reason() -> None:
    assert all(bool(mutation.undo) == bool(mutation.no_repair_reason) for mutation in MUTATIONS)
