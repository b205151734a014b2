"""The database of a test, its users and its catalog, and the commands that run on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from alembic.config import Config

from langfuse_schema._history.chain import History, config_file
from langfuse_schema._postgres import catalog
from langfuse_schema.tables import APP_TABLES, LINK_COLUMN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.engine import URL

    from langfuse_schema._postgres.objects import Table

CHECKOUT = Path(__file__).parents[2]
PLAN = CHECKOUT / "tests" / "plan"

AOI = "a0000000-0000-4000-8000-000000000001"
BEN = "a0000000-0000-4000-8000-000000000002"
MIO = "a0000000-0000-4000-8000-000000000003"
"""Users of the Supabase stub."""

SUPERUSER = "supabase_admin"

FAST_SETTINGS = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
"""Settings of a server whose data need not survive a crash of the machine."""

HISTORY = History.of(Config(config_file()))
REVISIONS = HISTORY.revisions
PLAN_REVISIONS = HISTORY.plan
HEAD = HISTORY.head


def revision_of(slug: str) -> str:
    """Return the id of the revision with this slug in its file name."""
    (found,) = (script.revision for script in HISTORY.scripts if slug in script.path)
    return found


def langfuse_tables() -> list[str]:
    """Return the tables that the revisions create, as `schema.table`."""
    return [name for name, table in HISTORY.schema(HEAD).items() if not table.partial]


CORE = revision_of("add_langfuse_core")
LINKS = revision_of("add_langfuse_denormalized_columns")
POLICIES = revision_of("add_langfuse_rls_policies")
HARDENED = revision_of("harden_langfuse_access")
HOT_PATHS = revision_of("index_hot_paths")
"""Revisions that a test names. The tests of the history use `REVISIONS` and `HEAD`."""


_SCHEMAS = """
    SELECT n.nspname, pg_get_userbyid(n.nspowner) || ': ' || coalesce(
        (SELECT string_agg(e.grantee::regrole::text || ' ' || e.privilege_type, ', '
                           ORDER BY e.grantee::regrole::text, e.privilege_type)
         FROM aclexplode(n.nspacl) AS e), '')
    FROM pg_namespace AS n
    WHERE n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'
"""

_FUNCTIONS = """
    SELECT p.oid::regprocedure::text, pg_get_userbyid(p.proowner) || ': '
           || coalesce(p.proacl::text, '') || ' ' || pg_get_functiondef(p.oid)
    FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
    WHERE n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema' AND p.prokind <> 'a'
    AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.objid = p.oid AND d.deptype = 'e')
"""


@dataclass(frozen=True)
class Catalog:
    """The objects of a database outside the system schemas."""

    tables: dict[str, Table]
    schemas: dict[str, str]
    functions: dict[str, str]


@dataclass(frozen=True)
class Database:
    """One database of the test server."""

    url: URL
    """The URL of the migrating role `postgres`, which is not a superuser."""

    @property
    def text(self) -> str:
        return self.url.render_as_string(hide_password=False)

    def as_user(self, user: str) -> URL:
        return self.url.set(username=user)

    @contextmanager
    def connect(self, user: str = "postgres") -> Iterator[sa.Connection]:
        """Connect in autocommit mode."""
        engine = sa.create_engine(
            self.as_user(user), poolclass=sa.NullPool, isolation_level="AUTOCOMMIT"
        )
        with engine.connect() as connection:
            yield connection

    def execute(self, sql: str, user: str = "postgres") -> list[tuple[Any, ...]]:
        """Run statements in autocommit mode, and return the rows of the last one."""
        with self.connect(user) as connection:
            result = connection.exec_driver_sql(sql.replace("%", "%%"))
            return [tuple(row) for row in result] if result.returns_rows else []

    def catalog(self) -> Catalog:
        """Return the catalog of all schemas, as a superuser reads it."""
        # `catalog.read` sets search_path for its transaction, so autocommit mode is not possible.
        engine = sa.create_engine(self.as_user(SUPERUSER), poolclass=sa.NullPool)
        with engine.connect() as connection:
            tables = catalog.read(connection)
            schemas, functions = (
                {row[0]: row[1] for row in connection.execute(sa.text(query))}
                for query in (_SCHEMAS, _FUNCTIONS)
            )
            return Catalog(tables, schemas, functions)

    @contextmanager
    def signed_in(self, role: str, user_id: str | None = None) -> Iterator[sa.Connection]:
        """Yield a connection that acts as a role of the Data API, and roll back at the end."""
        engine = sa.create_engine(self.as_user("authenticator"), poolclass=sa.NullPool)
        with engine.connect() as connection:
            connection.execute(sa.text(f"SET LOCAL ROLE {role}"))
            claims = json.dumps({"sub": user_id, "role": role} if user_id else {"role": role})
            connection.execute(
                sa.text("SELECT set_config('request.jwt.claims', :claims, true)"),
                {"claims": claims},
            )
            yield connection
            connection.rollback()


@dataclass(frozen=True)
class Outcome:
    """The exit code and the output of a command."""

    code: int
    stdout: str
    stderr: str


def environment(**changes: str) -> dict[str, str]:
    """Return the environment of this process without variables that choose a database."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name != "DATABASE_URL" and not name.startswith(("PG", "ALEMBIC"))
    }
    return kept | changes


def run(
    *command: str,
    cwd: Path = CHECKOUT,
    stdin: str | None = None,
    timeout: float = 300,
    **variables: str,
) -> Outcome:
    """Run a command to its end, for at most `timeout` seconds."""
    ended = subprocess.run(
        command,
        cwd=cwd,
        env=environment(**variables),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Outcome(ended.returncode, ended.stdout, ended.stderr)


def alembic(database: Database | None, *arguments: str, **variables: str) -> Outcome:
    """Run `alembic` in the checkout, against a database by DATABASE_URL."""
    if database is not None:
        variables["DATABASE_URL"] = database.text
    return run(sys.executable, "-m", "alembic", *arguments, **variables)


def langfuse_schema(database: Database | None, *arguments: str, **variables: str) -> Outcome:
    """Run `langfuse-schema`, against a database by DATABASE_URL."""
    if database is not None:
        variables["DATABASE_URL"] = database.text
    return run(sys.executable, "-m", "langfuse_schema", *arguments, **variables)


def run_script(psql: str, database: Database, script: str) -> None:
    """Run a script with psql, which stops at the first error."""
    url = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    outcome = run(psql, url, "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", stdin=script)
    assert outcome.code == 0, outcome.stderr


def plan_sql(*revisions: str) -> str:
    """Return the SQL of the plan for these revisions."""
    return "\n".join(next(PLAN.glob(f"{revision}_*.sql")).read_text() for revision in revisions)


def drop_langfuse_objects(database: Database) -> None:
    """Drop the Langfuse tables and link columns, but keep the recorded revision."""
    database.execute(f"DROP TABLE {', '.join(langfuse_tables())} CASCADE")
    for table in APP_TABLES:
        database.execute(f"ALTER TABLE public.{table} DROP {LINK_COLUMN}")


@contextmanager
def not_member(database: Database, role: str) -> Iterator[None]:
    """Revoke a membership of postgres for the block, because roles belong to the server."""
    database.execute(f"REVOKE {role} FROM postgres", SUPERUSER)
    try:
        yield
    finally:
        database.execute(f"GRANT {role} TO postgres", SUPERUSER)


def wait_until(database: Database, condition: str, seconds: float = 60) -> None:
    """Wait until a query returns a true value."""
    deadline = time.monotonic() + seconds
    with database.connect(SUPERUSER) as connection:
        while not connection.exec_driver_sql(condition).scalar():
            assert time.monotonic() < deadline, condition
            time.sleep(0.01)


RUNNER_SESSION = "application_name = 'langfuse-schema' AND datname = current_database()"
RUNNER_SESSIONS = f"SELECT FROM pg_stat_activity WHERE {RUNNER_SESSION}"

WAITING = (
    "SELECT EXISTS (SELECT FROM pg_stat_activity"
    f" WHERE wait_event_type = 'Lock' AND {RUNNER_SESSION})"
)
"""Whether a runner waits for a lock, or an index build of it for a transaction."""

BUILDING = WAITING.replace(
    "WHERE", "AS a JOIN pg_stat_progress_create_index AS p USING (pid, datname) WHERE", 1
)
"""Whether an index build of a runner waits for the transaction of another session."""


def signal_build(
    database: Database, start: Callable[[], subprocess.Popen[str]], number: int
) -> tuple[float, int, str]:
    """Send a signal to a runner whose index build waits for a transaction.

    Arguments:
        start: a function that starts the runner.
        number: the number of the signal.

    Returns:
        The seconds until the runner ended, its exit code, and its output on stderr.
    """
    with database.connect() as reader:
        reader.exec_driver_sql("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM pg_class")
        process = start()
        wait_until(database, BUILDING)
        began = time.monotonic()
        process.send_signal(number)
        _, printed = process.communicate()
        exited_after = time.monotonic() - began
        reader.exec_driver_sql("ROLLBACK")
    return exited_after, process.returncode, printed


TRACE = "b0000000-0000-4000-8000-00000000000{}"
"""The trace ids of `insert_example_rows`. Trace 1 belongs to Aoi, and trace 2 to Ben."""


def insert_example_rows(database: Database) -> None:
    """Insert a trace and a score for each of two users, a batch run and a rate limit entry."""
    database.execute(
        f"""
        INSERT INTO langfuse_traces (trace_id, entity_type, entity_id, user_id, input, output)
        SELECT trace_id::uuid, 'ai_coach_message', gen_random_uuid(), user_id::uuid, 'in', 'out'
        FROM (VALUES ('{TRACE.format(1)}', '{AOI}'), ('{TRACE.format(2)}', '{BEN}'))
             AS example (trace_id, user_id);
        INSERT INTO langfuse_scores (trace_id, score_name, value)
        SELECT trace_id, 'user_feedback', 1 FROM langfuse_traces;
        INSERT INTO langfuse_batch_runs (id, batch_name, started_at)
        VALUES (gen_random_uuid(), 'nightly', now());
        INSERT INTO rate_limit_logs (user_id, endpoint, window_start)
        VALUES ('{AOI}', '/chat', now());
        """
    )
