"""Each printed fix removes its problem, and opens no access."""

from __future__ import annotations

import ast
import importlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, get_args
from urllib.parse import quote

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from langfuse_schema import migrations, tables
from langfuse_schema._history.chain import VERSION_TABLE
from langfuse_schema._postgres import messages
from langfuse_schema._postgres.compare import Aspect
from langfuse_schema._postgres.findings import SchemaError, catalogue
from langfuse_schema._postgres.urls import connection_finding
from langfuse_schema._runtime.runner_lock import RunnerLock
from langfuse_schema.verify import verify
from tests.helpers.databases import (
    CHECKOUT,
    CORE,
    HARDENED,
    HEAD,
    LINKS,
    PLAN_REVISIONS,
    POLICIES,
    REVISIONS,
    SUPERUSER,
    Database,
    langfuse_tables,
    plan_sql,
)
from tests.helpers.effective_access import effective_access
from tests.helpers.fixes import (
    DECLARED,
    Terminal,
    commands,
    filled,
    follows,
    printed_commands,
    scripts_folder,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from langfuse_schema._postgres.findings import Finding
    from tests.conftest import TestServer


@pytest.fixture
def terminal(server: TestServer, tmp_path: Path) -> Terminal:
    if server.programs is None:
        pytest.skip("the programs of the configured server are unknown")
    return Terminal(tmp_path, (scripts_folder(), server.programs))


@pytest.fixture
def baseline(request: pytest.FixtureRequest, case: Case) -> set[str]:
    return baseline_access(request, case.target)


def baseline_access(request: pytest.FixtureRequest, revision: str) -> set[str]:
    """Return the effective access in a new database at a revision."""
    if revision not in _BASELINES:
        other: Database = request.getfixturevalue("second_database")
        migrations.upgrade(other.url, revision)
        _BASELINES[revision] = access(other)
    return _BASELINES[revision]


_BASELINES: dict[str, set[str]] = {}


def access(database: Database) -> set[str]:
    with database.connect(SUPERUSER) as superuser:
        return effective_access(superuser)


def with_former_names(access: set[str]) -> set[str]:
    """Return the access with the former names of renamed objects."""
    return {one.replace("_before", "") for one in access}


@dataclass(frozen=True)
class Case:
    """A problem with a fix.

    Attributes:
        code: the code of the finding.
        change: the statements that cause the problem.
        at: the revision of the database before the change.
        command: the command that reports the problem.
        by: the role that runs the change.
        target: the revision that `verify` compares with.
        user: the role that runs the fix, if the advice does not name it.
        values: the values for the placeholders of the fix.
        then: the statements before the next upgrade, from the advice of other findings.
        legacy: whether the API roles have privileges on new tables by default.
    """

    code: str
    change: str
    at: str | None = None
    command: str = "upgrade"
    by: str = SUPERUSER
    target: str = "head"
    user: str | None = None
    values: dict[str, str] = field(default_factory=dict)
    then: str = ""
    legacy: bool = False

    def findings(self, database: Database) -> Sequence[Finding]:
        """Run the command, and return its findings."""
        if self.command == "verify":
            return verify(database.url, self.target)
        if self.command == "preflight":
            return migrations.preflight(database.url).findings
        try:
            migrations.upgrade(database.url)
        except SchemaError as refused:
            return refused.findings
        return ()


VERSION = "langfuse_migrations.alembic_version"
TRACES = "public.langfuse_traces"
DROP_VERSION_TABLE = "DROP SCHEMA langfuse_migrations CASCADE"
OWN_TRACES = "Users can view their own traces"
ALL_TABLES = ", ".join(langfuse_tables())
LINK = "reflections_langfuse_trace_id_fkey"
OTHER_OWNER = (
    "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I OWNER TO supabase_admin', current_database());"
    " END $$"
)
MOVE_BACK = "; ".join(
    f"ALTER TABLE elsewhere.{table} SET SCHEMA public" for table in tables.APP_TABLES
)


def name_taken(change: str, at: str | None = None, then: str = "") -> Case:
    return Case("name-taken", change, at, by="postgres", then=then)


def record_sql(revisions: str) -> str:
    return f"DELETE FROM {VERSION}; INSERT INTO {VERSION} VALUES {revisions}"


DATABASE_CASES = (
    Case(
        "privilege-missing",
        "REVOKE ALL ON auth.users FROM postgres",
        user="supabase_auth_admin",
    ),
    Case("privilege-missing", "ALTER SCHEMA public OWNER TO supabase_admin"),
    Case(
        "privilege-missing",
        f"{OTHER_OWNER}; GRANT CREATE ON SCHEMA public TO postgres",
    ),
    Case(
        "privilege-missing",
        "CREATE SCHEMA langfuse_migrations; GRANT USAGE ON SCHEMA langfuse_migrations TO postgres",
        then="ALTER SCHEMA langfuse_migrations OWNER TO postgres",
    ),
    Case(
        "privilege-missing",
        f"ALTER TABLE {VERSION} OWNER TO supabase_admin; GRANT SELECT ON {VERSION} TO postgres",
        HARDENED,
        then=f"ALTER TABLE {VERSION} OWNER TO postgres",
    ),
    Case("schema-missing", "ALTER SCHEMA public RENAME TO elsewhere", then=MOVE_BACK),
    Case(
        "schema-missing",
        f"ALTER SCHEMA public RENAME TO elsewhere; {OTHER_OWNER};"
        " CREATE SCHEMA langfuse_migrations AUTHORIZATION postgres",
        then=MOVE_BACK,
    ),
    name_taken("CREATE TABLE public.langfuse_scores (id bigint)"),
    name_taken("CREATE VIEW public.rate_limit_logs AS SELECT 1 AS one"),
    name_taken("CREATE MATERIALIZED VIEW public.rate_limit_logs AS SELECT 1 AS one"),
    name_taken("CREATE SEQUENCE public.rate_limit_logs"),
    name_taken("CREATE TYPE public.rate_limit_logs AS ENUM ('a')"),
    name_taken("CREATE DOMAIN public.rate_limit_logs AS text"),
    name_taken(
        "CREATE TABLE public.langfuse_traces (id int);"
        " CREATE INDEX idx_langfuse_traces_user_id ON public.langfuse_traces (id)"
    ),
    Case("name-taken", "CREATE VIEW public.rate_limit_logs AS SELECT 1"),
    name_taken("CREATE INDEX idx_langfuse_scores_status ON public.reflections (body)"),
    name_taken("CREATE INDEX idx_reflections_langfuse_trace_id ON public.reflections (body)"),
    name_taken("ALTER TABLE public.reflections ADD langfuse_trace_id text"),
    name_taken(
        f"ALTER TABLE public.reflections ADD other uuid, ADD CONSTRAINT {LINK}"
        " FOREIGN KEY (other) REFERENCES auth.users (id)"
    ),
    name_taken(f'CREATE POLICY "{OWN_TRACES}" ON {TRACES} USING (true)', LINKS),
    Case(
        "constraint-missing",
        "ALTER TABLE public.reflections ADD langfuse_trace_id uuid",
        CORE,
        by="postgres",
    ),
    Case("policy-missing", f'DROP POLICY "{OWN_TRACES}" ON {TRACES}', POLICIES),
    Case("policy-differs", f'ALTER POLICY "{OWN_TRACES}" ON {TRACES} USING (true)', POLICIES),
    Case("plan-already-run", plan_sql(*PLAN_REVISIONS), by="postgres"),
    Case(
        "plan-already-run",
        plan_sql(*PLAN_REVISIONS).replace("'failed'", "'failed', 'lost'"),
        by="postgres",
    ),
    Case("revision-missing", DROP_VERSION_TABLE, HEAD),
    Case(
        "revision-missing",
        f"{DROP_VERSION_TABLE}; DROP INDEX public.idx_langfuse_traces_entity",
        HEAD,
    ),
    Case("revision-missing", f"{DROP_VERSION_TABLE}; DROP TABLE public.langfuse_scores", HEAD),
    Case("revision-behind", record_sql(f"('{POLICIES}')"), HEAD),
    Case("revision-unknown", record_sql(f"('{POLICIES}'), ('x')"), HEAD, values={"REVISION": HEAD}),
    Case("revision-without-tables", f"DROP TABLE {ALL_TABLES} CASCADE", HEAD),
    Case("revision-without-tables", f"DROP TABLE {ALL_TABLES}", CORE),
    Case("revision-without-tables", "DROP TABLE public.rate_limit_logs", HEAD),
    Case(
        "owner-differs",
        "ALTER TABLE public.rate_limit_logs OWNER TO service_role",
        HEAD,
        "verify",
        user="postgres",
    ),
    Case("uid-function-missing", "DROP FUNCTION auth.uid() CASCADE", HEAD, "verify"),
    Case("not-migrated", "SELECT 1", None, "verify"),
    Case("revision-behind", "SELECT 1", CORE, "verify"),
    Case("revision-ahead", "SELECT 1", HEAD, "verify", target=POLICIES),
    Case("version-table-missing", DROP_VERSION_TABLE, CORE, "verify"),
    Case("version-table-missing", plan_sql(*PLAN_REVISIONS), None, "verify", by="postgres"),
    Case("access-differs", plan_sql(*PLAN_REVISIONS), None, "verify", by="postgres"),
    Case("access-differs", plan_sql(*PLAN_REVISIONS), None, "verify", by="postgres", legacy=True),
    Case("plan-already-run", plan_sql(*PLAN_REVISIONS), by="postgres", legacy=True),
    Case(
        "name-taken",
        f"DROP TABLE {TRACES} CASCADE; CREATE TABLE {TRACES} (id bigint PRIMARY KEY, note text);"
        f" GRANT ALL ON {TRACES} TO anon",
        HEAD,
        "verify",
        by="postgres",
    ),
)


DECLARED.update(case.code for case in DATABASE_CASES)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", DATABASE_CASES, ids=[f"{case.code} {n}" for n, case in enumerate(DATABASE_CASES)]
)
def test_fix_removes_problem_and_opens_no_access(
    request: pytest.FixtureRequest, terminal: Terminal, baseline: set[str], case: Case
) -> None:
    database = request.getfixturevalue("legacy_database" if case.legacy else "database")
    allowed = set(baseline)
    if case.at:
        migrations.upgrade(database.url, case.at)
        allowed |= access(database)
    database.execute(case.change, case.by)
    allowed |= access(database)
    findings = case.findings(database)
    problems = {one.object for one in findings if one.code == case.code and one.fix}
    assert problems
    follow(terminal, database, findings, case)
    assert with_former_names(access(database)) - allowed == set()
    remaining = case.findings(database)
    assert not problems & {one.object for one in remaining if one.code == case.code}
    # Other findings have a fix or an advice.
    follow(terminal, database, remaining, case)
    if case.then:
        database.execute(case.then, SUPERUSER)
    if case.target == "head":
        migrations.upgrade(database.url)
    assert verify(database.url, case.target) == []
    assert of_langfuse(access(database)) == of_langfuse(baseline)


def follow(terminal: Terminal, database: Database, findings: Sequence[Finding], case: Case) -> None:
    """Follow the fixes in their order, except for one whose advice puts it last."""
    with_fix = [one for one in findings if one.fix]
    for finding in sorted(with_fix, key=lambda one: "below first" in str(one.advice)):
        terminal.follow(database, finding, case.user, case.values)
        if finding.code == "revision-without-tables" and "langfuse-schema verify" in finding.fix:
            follow(terminal, database, verify(database.url), case)


def of_langfuse(access: set[str]) -> set[str]:
    names = "|".join(name.partition(".")[2] for name in langfuse_tables())
    pattern = re.compile(rf"\b({names})\b")
    return {one for one in access if pattern.search(one)}


@pytest.mark.slow
@follows("revision-unknown")
def test_printed_stamp_records_one_of_several_revisions(
    database: Database, terminal: Terminal, request: pytest.FixtureRequest
) -> None:
    migrations.upgrade(database.url)
    database.execute(f"INSERT INTO {VERSION_TABLE} VALUES ('{CORE}')")
    with pytest.raises(SchemaError) as refused:
        migrations.upgrade(database.url)
    (finding,) = refused.value.findings
    terminal.follow(database, finding, values={"REVISION": HEAD})
    assert verify(database.url) == []
    assert access(database) == baseline_access(request, "head")


@pytest.mark.slow
@follows("another-runner")
def test_printed_query_finds_runner_that_blocks_upgrade(
    database: Database, terminal: Terminal
) -> None:
    migrations.upgrade(database.url, CORE)
    lock = RunnerLock.of(VERSION_TABLE.schema, VERSION_TABLE.name)
    with database.connect("postgres") as other:
        assert lock.try_twice(other)
        with pytest.raises(SchemaError) as refused:
            migrations.upgrade(database.url, lock_deadline=0.1)
        (finding,) = refused.value.findings
        pid, *_ = terminal.psql(database, "postgres", *commands(finding)).split("|")
        assert int(pid) == other.exec_driver_sql("SELECT pg_backend_pid()").scalar()
        terminal.psql(database, "postgres", f"SELECT pg_terminate_backend({pid});")
        migrations.upgrade(database.url)


@pytest.mark.slow
@follows("database-busy")
def test_printed_statement_ends_session_that_blocks_verify(
    database: Database, terminal: Terminal
) -> None:
    migrations.upgrade(database.url, CORE)
    with database.connect() as holder:
        holder.exec_driver_sql("BEGIN; LOCK TABLE langfuse_scores IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(SchemaError) as refused:
            verify(database.url, CORE)
        (finding,) = refused.value.findings
        terminal.follow(database, finding)
        assert verify(database.url, CORE) == []


@pytest.mark.slow
@follows("role-not-inherited")
def test_exported_option_sets_role_of_member(
    database: Database, terminal: Terminal, request: pytest.FixtureRequest
) -> None:
    role = f"login_{database.url.database}"
    database.execute(f"CREATE ROLE {role} LOGIN NOINHERIT IN ROLE postgres", SUPERUSER)
    try:
        allowed = access(database) | baseline_access(request, "head")
        url = database.as_user(role)
        with pytest.raises(SchemaError) as refused:
            migrations.upgrade(url)
        (finding,) = refused.value.findings
        variables = {"DATABASE_URL": url.render_as_string(hide_password=False)}
        second_run = terminal.type(*commands(finding), "langfuse-schema upgrade head", **variables)
        assert second_run.code == 0, second_run.stderr
        assert verify(database.url) == []
        assert access(database) - allowed == set()
    finally:
        database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}", SUPERUSER)


@pytest.mark.slow
@follows("server-unreachable")
def test_exported_url_of_session_pooler_connects(database: Database, terminal: Terminal) -> None:
    # The test server takes the place of Supabase's pooler.
    project = "abcdefghijklmnopqrst"
    role, pooler = f"postgres.{project}", "aws-0-REGION.pooler.supabase.com:5432/postgres"
    url = sa.make_url(f"postgresql://postgres:secret@db.{project}.supabase.co/postgres")
    finding = connection_finding(url, OperationalError("", {}, Exception("unknown host")))
    socket, port = (str(database.url.query[name]) for name in ("host", "port"))
    real = f"{quote(socket, safe='')}:{port}/{database.url.database}"
    (command,) = (filled(line, {pooler: real}) for line in commands(finding))
    database.execute(f'CREATE ROLE "{role}" LOGIN', SUPERUSER)
    try:
        outcome = terminal.type(command, "langfuse-schema current")
        assert outcome.code == 0, outcome.stderr
        assert role in outcome.stderr
    finally:
        database.execute(f'DROP ROLE "{role}"', SUPERUSER)


EXPORT = "langfuse-schema export 'supabase files'"


@pytest.mark.slow
@follows("file-differs")
@pytest.mark.parametrize("option", ["--after", "--force"])
def test_export_writes_files_with_printed_option(terminal: Terminal, option: str) -> None:
    assert terminal.type(EXPORT).code == 0
    written = sorted((terminal.folder / "supabase files").iterdir())
    for path, revision in zip(written, REVISIONS, strict=True):
        path.write_text("-- by hand\n") if revision in PLAN_REVISIONS else path.unlink()
    refused = terminal.type(EXPORT)
    assert refused.code == 2
    (command,) = {one for one in printed_commands(refused.stderr, "file-differs") if option in one}
    outcome = terminal.type(filled(command, {"REVISION": PLAN_REVISIONS[-1]}))
    assert outcome.code == 0, outcome.stderr
    kept = [path.read_text() == "-- by hand\n" for path in written]
    of_plan = [revision in PLAN_REVISIONS for revision in REVISIONS]
    assert kept == (of_plan if option == "--after" else [False] * len(written))


_DYNAMIC = {
    f"{aspect}-{how}" for aspect in get_args(Aspect) for how in ("missing", "differs", "unexpected")
} | set(messages._CODES.values())
"""The codes of differences between tables."""


def codes_with_fix() -> set[str]:
    """Return the codes that have a fix in the catalogue, or get one from the source code."""
    found = {code for code, section in catalogue().items() if "fix" in section}
    for path in (CHECKOUT / "src" / "langfuse_schema").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = [one for one in ast.walk(tree) if isinstance(one, ast.FunctionDef)]
        for function in functions:
            for call in ast.walk(function):
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "finding":
                    found |= codes_of(call, function)
    return found


def codes_of(call: ast.Call, function: ast.FunctionDef) -> set[str]:
    """Return the codes of a call of `finding`, if the call or a mapping has a fix."""
    keywords = {keyword.arg for keyword in call.keywords}
    passed_on = {ast.unparse(one.value) for one in call.keywords if one.arg is None}
    of_mapping = "fix" in passed_on or (passed_on and "'fix'" in ast.unparse(function))
    if "fix" not in keywords and not of_mapping:
        return set()
    literal = literal_codes(call.args[0])
    if literal:
        return literal
    if ast.unparse(call.args[0]) == "code(difference)":
        return _DYNAMIC & catalogue().keys()
    return literal_codes(function)


def literal_codes(tree: ast.AST) -> set[str]:
    """Return the codes in a part of the source. `revision-` is in both codes of the position."""
    texts = {str(one.value) for one in ast.walk(tree) if isinstance(one, ast.Constant)}
    if "revision-" in texts:
        texts |= {"revision-behind", "revision-ahead"}
    return texts & catalogue().keys()


def test_each_code_with_fix_has_a_test_that_follows_it() -> None:
    for path in (CHECKOUT / "tests").rglob("test_*.py"):
        if "@follows(" in path.read_text(encoding="utf-8"):
            name = path.relative_to(CHECKOUT).with_suffix("")
            importlib.import_module(".".join(name.parts))
    assert codes_with_fix() == DECLARED
