"""`verify` reports each change to a database, and its printed fix undoes the change."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
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
from tests.helpers.effective_access import effective_access
from tests.helpers.fixes import commands, follows, is_sql, user_of
from tests.helpers.hosted import add_platform_tables, enable_automatic_rls
from tests.helpers.mutations import (
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
    """An open connection for each role. New connections would take most of the time."""

    database: Database
    connections: dict[str, sa.Connection]

    def execute(self, sql: str, user: str = "postgres") -> None:
        self.connections[user].exec_driver_sql(sql.replace("%", "%%"))
        self.connections[user].commit()

    def access(self) -> set[str]:
        return effective_access(self.connections[SUPERUSER])

    def verify(self) -> list[Finding]:
        return verify(self.connections["postgres"])


@contextmanager
def open_sessions(database: Database) -> Iterator[Sessions]:
    with ExitStack() as stack:
        roles = ("postgres", "supabase_auth_admin", SUPERUSER)
        yield Sessions(
            database, {role: stack.enter_context(database.connect(role)) for role in roles}
        )


def follow(sessions: Sessions, findings: list[Finding]) -> None:
    """Run the fixes in the order in which they are printed, as the roles that they name."""
    for finding in findings:
        for line in commands(finding):
            if is_sql(line):
                sessions.execute(line, user_of(finding))
            else:
                outcome = langfuse_schema(sessions.database, *line.split()[1:])
                assert outcome.code == 0, outcome.stderr


def rebuild(sessions: Sessions) -> None:
    """Drop all objects, and upgrade again."""
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


def problem_with(sessions: Sessions, mutation: Mutation, baseline: set[str]) -> str | None:
    """Apply a change, follow the fixes of verify, and return the first problem."""
    sessions.execute(mutation.sql, mutation.user)
    # The objects of the mutation itself have privileges until the cleanup.
    allowed = baseline | sessions.access() if mutation.cleanup else baseline
    findings = sessions.verify()
    found = {finding.object for finding in findings}
    if found != mutation.objects:
        return f"found {sorted(found)}, expected {sorted(mutation.objects)}"
    if mutation.undo == REBUILD:
        return REBUILD
    if mutation.undo:
        sessions.execute(mutation.undo, mutation.user)
    else:
        follow(sessions, findings)
    access = sessions.access()
    if access - allowed:
        return f"access added by the fixes: {sorted(access - allowed)}"
    if mutation.cleanup:
        sessions.execute(mutation.cleanup, SUPERUSER)
        access = sessions.access()
    if access != baseline:
        return f"different access after the fixes: {sorted(access ^ baseline)}"
    remaining = sessions.verify()
    return (
        f"findings after the fixes: {[str(finding) for finding in remaining]}"
        if remaining
        else None
    )


def try_every_mutation(database: Database) -> tuple[int, int]:
    """Apply every change, and return the number of changes and of repaired changes."""
    with open_sessions(database) as sessions:
        rebuild(sessions)
        ((number,),) = database.execute("SHOW server_version_num")
        mutations = [one for one in MUTATIONS if one.since <= int(number) // 10000]
        problems, baseline = [], sessions.access()
        for mutation in mutations:
            try:
                problem = problem_with(sessions, mutation, baseline)
            except Exception as error:  # noqa: BLE001 - a failure must not skip the other mutations
                problem = repr(error)
            if problem:
                rebuild(sessions)
                baseline = sessions.access()
            if problem and problem != REBUILD:
                problems.append(f"{mutation.sql}\n  {problem}")
    assert not problems, "\n".join(problems)
    return len(mutations), sum(mutation.undo is None for mutation in mutations)


@follows(
    "access-missing",
    "column-differs",
    "column-missing",
    "column-unexpected",
    "constraint-differs",
    "constraint-missing",
    "constraint-unexpected",
    "grant-differs",
    "grant-missing",
    "grant-unexpected",
    "index-differs",
    "index-missing",
    "index-unexpected",
    "inheritance-unexpected",
    "owner-differs",
    "policy-differs",
    "policy-missing",
    "policy-unexpected",
    "revision-behind",
    "revision-unknown",
    "role-differs",
    "row-level-security-bypassed",
    "row-level-security-differs",
    "rule-unexpected",
    "table-differs",
    "table-missing",
    "trigger-unexpected",
    "uid-function-differs",
    "version-table-missing",
)
def test_verify_reports_every_mutation_with_fix_that_repairs_it(
    database: Database, record_property: Callable[[str, object], None]
) -> None:
    number, repaired = try_every_mutation(database)
    assert number >= 80
    record_property("mutations reported by verify", number)
    record_property("mutations repaired by the printed fix", repaired)


def test_verify_and_preflight_report_no_harmless_object_of_an_app(
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
