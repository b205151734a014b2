"""The runner in any Alembic environment, with its options, connections and revisions."""

from __future__ import annotations

import re
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from alembic import command

from langfuse_schema import migrations
from langfuse_schema._history.chain import VERSION_TABLE
from langfuse_schema._postgres.findings import SchemaError
from langfuse_schema._runtime.runner_lock import RunnerLock
from langfuse_schema.verify import verify
from tests.helpers import projects
from tests.helpers.databases import (
    BUILDING,
    CHECKOUT,
    SUPERUSER,
    WAITING,
    Database,
    signal_build,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.helpers.projects import Project

IMPORTS = """
import time
import sqlalchemy as sa
from alembic import op
from langfuse_schema import operations
"""

QUICK = "lock_timeout=0.1, lock_deadline=0.5"


def revision(name: str, below: str | tuple[str, ...] | None, up: str, down: str = "pass") -> str:
    return (
        f"{IMPORTS}\nrevision, down_revision, branch_labels, depends_on ="
        f" {name!r}, {below!r}, None, None\n\n\n"
        f"def upgrade():\n    {up}\n\n\ndef downgrade():\n    {down}\n"
    )


def table(name: str, below: str | tuple[str, ...] | None = None) -> str:
    """Return a revision that creates a table with the name of the revision."""
    return revision(
        name,
        below,
        f'op.execute("CREATE TABLE {name} (id int)")',
        f'op.execute("DROP TABLE {name}")',
    )


def call(options: str) -> str:
    return f"run_migrations(context, connection, {options})"


every_driver = pytest.mark.parametrize(
    "driver", ["psycopg2", pytest.param("psycopg", marks=pytest.mark.slow)]
)


@pytest.fixture
def create(tmp_path: Path) -> Callable[..., Project]:
    """Return a function that creates a project of `alembic init` with revisions by name."""

    def run(options: str = "target_metadata=target_metadata", **revisions: str) -> Project:
        return projects.create(tmp_path, call(options), **revisions)

    return run


def recorded(database: Database, name: str = "alembic_version") -> list[str]:
    query = f"SELECT version_num FROM {name} ORDER BY 1"
    return [row[0] for row in database.execute(query, SUPERUSER)]


def tables(database: Database, *names: str) -> set[str]:
    return {name for name in names if f"public.{name}" in database.catalog().tables}


def assert_no_advisory_lock(database: Database) -> None:
    query = (
        "SELECT count(*) FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database"
        " WHERE l.locktype = 'advisory' AND d.datname = current_database()"
    )
    assert database.execute(query) == [(0,)]


def test_history_with_branches_runs_in_both_directions(
    database: Database, create: Callable[..., Project]
) -> None:
    names = ("a", "b", "c", "m")
    project = create(a=table("a"), b=table("b", "a"), c=table("c", "a"))
    project.migrate(database, "heads")
    assert recorded(database) == ["b", "c"]
    assert tables(database, *names) == {"a", "b", "c"}
    project.migrate(database, "c@-1", downgrade=True)
    assert recorded(database) == ["b"]
    project.migrate(database, "c")
    (project.env.parent / "versions" / "m.py").write_text(table("m", ("b", "c")))
    project.migrate(database, "head")
    assert recorded(database) == ["m"]
    command.stamp(project.config(database), ["b", "c"], purge=True)
    assert recorded(database) == ["b", "c"]
    command.stamp(project.config(database), "m")
    project.migrate(database, "base", downgrade=True)
    assert (recorded(database), tables(database, *names)) == ([], set())
    assert_no_advisory_lock(database)


FAILS_ONCE = """
calls = []


def fail_once(ctx, **_):
    calls.append(1)
    if len(calls) == 2:
        ctx.connection.exec_driver_sql(
            "DO $$ BEGIN RAISE EXCEPTION 'locked' USING ERRCODE = '55P03'; END $$"
        )


def run_migrations_online"""


def test_retried_stamp_keeps_revisions_that_it_has_recorded(
    database: Database, create: Callable[..., Project]
) -> None:
    project = create("on_version_apply=fail_once", a=table("a"), b=table("b"))
    text = project.env.read_text()
    project.env.write_text(text.replace("def run_migrations_online", FAILS_ONCE))
    command.stamp(project.config(database), ["a", "b"], purge=True)
    assert recorded(database) == ["a", "b"]


def test_run_keeps_options_of_configure(
    database: Database, create: Callable[..., Project], capsys: pytest.CaptureFixture[str]
) -> None:
    database.execute('CREATE SCHEMA "Ops"')
    options = (
        "version_table='Revisions', version_table_schema='Ops', version_table_pk=False,"
        " on_version_apply=lambda **keywords: print('applied', keywords['heads'])"
    )
    project = create(options, a=table("a"))
    project.migrate(database, "head")
    assert "applied {'a'}" in capsys.readouterr().out
    assert recorded(database, '"Ops"."Revisions"') == ["a"]
    assert not database.catalog().tables["Ops.Revisions"].constraints
    assert "public.alembic_version" not in database.catalog().tables


def test_read_only_commands_take_no_lock_and_write_nothing(
    database: Database, create: Callable[..., Project]
) -> None:
    only_a = "include_name=lambda name, kind, parents: kind != 'table' or name == 'a'"
    project = create(f"target_metadata=sa.MetaData(), {only_a}", a=table("a"))
    env = project.env
    env.write_text("import sqlalchemy as sa\n" + env.read_text())
    versions = str(env.parent / "versions")
    before = database.catalog()
    config = project.config(database)
    with database.connect() as other:
        assert project.lock.try_twice(other)
        command.current(config)
        command.history(config, indicate_current=True)
        with pytest.raises(Exception, match="not up to date"):
            command.check(config)
    assert database.catalog() == before
    project.migrate(database, "head")
    database.execute("DROP TABLE a")
    with database.connect() as other:
        assert project.lock.try_twice(other)
        command.check(config)
        command.revision(config, autogenerate=True, rev_id="b", version_path=versions)
        command.upgrade(config, "a")
    assert list(env.parent.glob("versions/b_*.py"))


def test_runner_lock_belongs_to_version_table(
    database: Database, create: Callable[..., Project]
) -> None:
    project = create(QUICK, a=table("a"))
    other_locks = [
        RunnerLock.of(VERSION_TABLE.schema, VERSION_TABLE.name),
        RunnerLock.of("other", "alembic_version"),
        RunnerLock.of("public", "other"),
    ]
    assert len({lock.key for lock in (*other_locks, project.lock)}) == len(other_locks) + 1
    with database.connect() as other:
        for lock in other_locks:
            assert lock.try_twice(other)
        project.migrate(database, "head")
    with database.connect() as other:
        assert project.lock.try_twice(other)
        migrations.upgrade(database.url, lock_deadline=0.1)
        with pytest.raises(SchemaError, match="another-runner") as refused:
            project.migrate(database, "base", downgrade=True)
        (query,) = refused.value.findings[0].fix
        (holder,) = database.execute(query)
        assert holder[0] == other.exec_driver_sql("SELECT pg_backend_pid()").scalar()


def test_version_table_is_found_by_search_path(
    database: Database, create: Callable[..., Project]
) -> None:
    database.execute("CREATE SCHEMA tenant")
    name = database.url.database
    database.execute(f'ALTER DATABASE "{name}" SET search_path TO tenant, public')
    project = create(QUICK, a=table("a"))
    with database.connect() as other:
        assert RunnerLock.of("tenant", "alembic_version").try_twice(other)
        with pytest.raises(SchemaError, match="another-runner"):
            project.migrate(database, "head")
    project.migrate(database, "head")
    assert "tenant.a" in database.catalog().tables
    assert "tenant.alembic_version" in database.catalog().tables


@pytest.mark.slow
def test_retried_revision_runs_its_python_code_again(
    database: Database, create: Callable[..., Project]
) -> None:
    project = create(
        "lock_timeout=0.1",
        a=table("a"),
        b=revision("b", "a", "print('code of b'); op.execute('ALTER TABLE a ADD b int')"),
        c=table("c", "b"),
    )
    project.migrate(database, "a")
    with database.connect() as holder:
        holder.exec_driver_sql("BEGIN; SELECT * FROM a")
        process = project.start(database, "upgrade", "+1", stdout=subprocess.PIPE)
        wait_until(database, WAITING)
        time.sleep(1.5)
        holder.exec_driver_sql("ROLLBACK")
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert stdout.count("code of b") >= 2
    assert recorded(database) == ["b"], "the retry passed its relative target"
    # The env.py of `alembic init` disables existing loggers, and prints only warnings.
    assert "public.a is locked; retrying for 600 s. Blocked by pid" in stderr
    assert stderr.count("Running upgrade a -> b") == 1


ALTER = "ALTER TABLE a ADD c int"


def test_run_stops_at_lock_deadline_and_keeps_completed_revisions(
    database: Database, create: Callable[..., Project], capsys: pytest.CaptureFixture[str]
) -> None:
    project = create(
        QUICK,
        a=table("a"),
        b=table("b", "a"),
        c=revision("c", "b", f"print('computed'); time.sleep(0.6); op.execute('{ALTER}')"),
    )
    project.migrate(database, "a")
    with database.connect() as holder:
        holder.exec_driver_sql("BEGIN; SELECT 'payroll' FROM a")
        with pytest.raises(SchemaError) as stopped:
            project.migrate(database, "head")
    (finding,) = stopped.value.findings
    assert (finding.code, finding.object) == ("table-locked", "public.a")
    assert "payroll" in str(finding.cause)
    assert finding.state == "the database is at b; completed steps are kept"
    assert capsys.readouterr().out.count("computed") > 1, (
        "the deadline included the time of the computation"
    )
    project.migrate(database, "head")
    assert recorded(database) == ["c"]


LIMITED = "ALTER ROLE {role} SET idle_in_transaction_session_timeout = '300ms'"
COMPUTES = "op.execute('CREATE TABLE a (id int)'); time.sleep(1); op.execute('SELECT 1')"


@pytest.fixture
def limited_role(database: Database) -> Any:
    """Yield the database for a role whose sessions end if a transaction is idle."""
    role = f"limited_{database.url.database}"
    database.execute(f"CREATE ROLE {role} LOGIN IN ROLE postgres", SUPERUSER)
    database.execute(LIMITED.format(role=role), SUPERUSER)
    database.execute(f"GRANT ALL ON SCHEMA public TO {role}", SUPERUSER)
    yield Database(database.as_user(role))
    database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}", SUPERUSER)


@every_driver
def test_idle_limit_of_role_ends_run_without_longer_limit(
    limited_role: Database, tmp_path: Path, driver: str
) -> None:
    database = Database(limited_role.url.set(drivername=f"postgresql+{driver}"))
    default, longer = tmp_path / "default", tmp_path / "longer"
    default.mkdir()
    longer.mkdir()
    with pytest.raises(SchemaError) as stopped:
        projects.create(default, call(""), a=revision("a", None, COMPUTES)).migrate(
            database, "head"
        )
    (finding,) = stopped.value.findings
    assert finding.code == "session-timed-out"
    advised = re.findall(r"\w+=\d+", str(finding.advice))
    assert advised == ["idle_in_transaction_timeout=3600"]
    project = projects.create(longer, call(*advised), a=revision("a", None, COMPUTES))
    project.migrate(database, "head")
    assert recorded(limited_role) == ["a"]


@pytest.mark.slow
def test_idle_limit_below_pause_does_not_end_run(
    limited_role: Database, create: Callable[..., Project]
) -> None:
    project = create(
        "lock_timeout=0.1, idle_session_timeout=0.5, idle_in_transaction_timeout=0",
        a=table("a"),
        b=revision("b", "a", "op.execute('ALTER TABLE a ADD b int')"),
    )
    project.migrate(limited_role, "a")
    with limited_role.connect(SUPERUSER) as holder:
        holder.exec_driver_sql("BEGIN; SELECT * FROM a")
        run = threading.Thread(target=project.migrate, args=(limited_role, "head"))
        run.start()
        time.sleep(2.5)
        holder.exec_driver_sql("ROLLBACK")
    run.join()
    assert recorded(limited_role) == ["b"]


@pytest.mark.slow
def test_data_migration_with_pause_of_30_seconds_runs_once(
    database: Database, create: Callable[..., Project]
) -> None:
    project = create(
        "target_metadata=None",
        a=revision("a", None, COMPUTES.replace("sleep(1)", "sleep(30)")),
    )
    runners = [project.start(database, "upgrade", "head") for _ in range(2)]
    printed = [runner.communicate()[1] for runner in runners]
    assert [runner.returncode for runner in runners] == [0, 0], printed
    assert len([text for text in printed if "Running upgrade" in text]) == 1
    assert recorded(database) == ["a"]


SEEN = "CREATE TABLE seen AS SELECT current_setting('lock_timeout')"
CONCURRENTLY = """with op.get_context().autocommit_block():
        op.create_index("a_id", "a", ["id"], postgresql_concurrently=True)"""


@every_driver
def test_concurrent_statement_of_any_revision_waits_for_long_transactions(
    database: Database, create: Callable[..., Project], driver: str
) -> None:
    project = create(
        "lock_timeout=0.1",
        a=table("a"),
        b=revision("b", "a", f"{CONCURRENTLY}\n    op.execute({SEEN!r})"),
    )
    project.migrate(database, "a")
    driver_database = Database(database.url.set(drivername=f"postgresql+{driver}"))
    with database.connect() as reader:
        reader.exec_driver_sql("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM pg_class")
        run = threading.Thread(target=project.migrate, args=(driver_database, "head"))
        run.start()
        wait_until(database, BUILDING)
        time.sleep(0.5)
        reader.exec_driver_sql("ROLLBACK")
    run.join()
    assert recorded(database) == ["b"]
    valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'a_id'::regclass"
    assert database.execute(valid) == [(True,)]
    assert database.execute("SELECT * FROM seen") == [("100ms",)]


TWO_DATABASES = """
    from sqlalchemy import create_engine
    for url in os.environ["URLS"].split():
        with create_engine(url).connect() as connection:
            run_migrations(context, connection)
"""


def test_env_py_runs_revisions_on_several_databases(
    database: Database,
    second_database: Database,
    create: Callable[..., Project],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    project = create(a=table("a"), b=table("b", "a"))
    env = project.env
    text = env.read_text()
    start = text.index("    connectable = ")
    env.write_text(f"{text[:start]}{TWO_DATABASES}\nrun_migrations_online()\n")
    monkeypatch.setenv("URLS", f"{database.text} {second_database.text}")
    project.migrate(database, "+1")
    assert (recorded(database), recorded(second_database)) == (["a"], ["a"])
    project.migrate(database, "base", downgrade=True)
    assert (recorded(database), recorded(second_database)) == ([], [])


REFUSED_OPTIONS = {
    "one transaction": ("transaction_per_migration=False", "option-invalid", "Remove transaction"),
    "no transactions": ("transactional_ddl=False", "option-invalid", "Remove transactional_ddl"),
    "lock_timeout": ("lock_timeout=0", "option-invalid", "lock_timeout=0.5"),
    "idle limit": ("idle_session_timeout=-1", "option-invalid", "idle_session_timeout=60"),
    "typing error": ("locktimeout=3", "option-invalid", "Write it as lock_timeout."),
    "SQL": ("as_sql=True", "option-invalid", "Remove as_sql"),
    "lock_deadline": ("lock_deadline=0", "option-invalid", "lock_deadline=600"),
}


@pytest.mark.parametrize(
    ("options", "code", "advice"), REFUSED_OPTIONS.values(), ids=REFUSED_OPTIONS
)
def test_invalid_option_is_refused(
    database: Database, create: Callable[..., Project], options: str, code: str, advice: str
) -> None:
    before = database.catalog()
    with pytest.raises(SchemaError) as refused:
        create(options, a=table("a")).migrate(database, "head")
    assert refused.value.findings[0].code == code
    assert advice in str(refused.value.findings[0].advice)
    assert database.catalog() == before


@pytest.mark.slow
def test_offline_call_is_refused_and_offline_part_prints_script(
    database: Database, create: Callable[..., Project]
) -> None:
    project = create(a=table("a"))
    assert "CREATE TABLE a" in project.alembic(database, "upgrade", "head", "--sql").stdout
    env = project.env
    env.write_text(env.read_text().replace("if context.is_offline_mode():", "if False:"))
    outcome = project.alembic(database, "upgrade", "head", "--sql")
    assert outcome.code != 0
    assert "option-invalid" in outcome.stdout
    assert "Traceback" not in outcome.stderr


CONNECTIONS = {
    "in a transaction": ("connectable.begin()", "connection-in-transaction"),
    "autocommit": (
        "connectable.execution_options(isolation_level='AUTOCOMMIT').connect()",
        "connection-in-transaction",
    ),
    "engine": ("contextlib.nullcontext(connectable)", "option-invalid"),
    "SQLite": ("sa.create_engine('sqlite://').connect()", "url-not-postgresql"),
    "asyncpg": ("contextlib.nullcontext(asynchronous())", "driver-unsupported"),
}

OPENED = """
import contextlib
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine


def asynchronous():
    url = sa.make_url(config.get_main_option("sqlalchemy.url")).set(drivername="postgresql+asyncpg")
    return sa.Connection(create_async_engine(url).sync_engine, connection=object())


"""


@pytest.mark.parametrize(("opened", "code"), CONNECTIONS.values(), ids=CONNECTIONS)
def test_unusable_connection_is_refused(
    database: Database, create: Callable[..., Project], opened: str, code: str
) -> None:
    before = database.catalog()
    project = create(a=table("a"))
    env = project.env
    text = env.read_text().replace("connectable.connect()", opened)
    env.write_text(text.replace("def run_migrations_online", f"{OPENED}def run_migrations_online"))
    with pytest.raises(SchemaError) as refused:
        project.migrate(database, "head")
    assert refused.value.findings[0].code == code
    assert database.catalog() == before


ORDERS = """
from alembic import op

revision, down_revision = "1a", None


def upgrade():
    op.execute("CREATE TABLE public.orders (id int)")


def downgrade():
    pass
"""


def test_documented_env_py_and_revision_run_in_both_directions(
    database: Database, create: Callable[..., Project]
) -> None:
    page = (CHECKOUT / "docs" / "how-to" / "your-migrations.md").read_text()
    env, documented = re.findall(r"^```python\n(.*?)```", page, re.MULTILINE | re.DOTALL)
    project = create(a=ORDERS, b=documented)
    project.env.write_text(env)

    def has_column_and_index() -> tuple[bool, bool]:
        orders = database.catalog().tables["public.orders"]
        names = {column.name for column in orders.columns}
        return "email" in names, "orders_email" in {index.name for index in orders.indexes}

    project.migrate(database, "head")
    assert has_column_and_index() == (True, True)
    project.migrate(database, "-1", downgrade=True)
    assert has_column_and_index() == (False, False)
    database.execute("ALTER TABLE orders ADD email text")
    project.migrate(database, "base", downgrade=True)
    assert has_column_and_index() == (False, False), "discard_partial_upgrade did not run"


def test_error_of_revision_reaches_caller_unchanged(
    database: Database, create: Callable[..., Project]
) -> None:
    project = create(a=table("a"), b=revision("b", "a", "op.execute('SELECT 1 / 0')"))
    with pytest.raises(sa.exc.DataError, match="SELECT 1 / 0"):
        project.migrate(database, "head")
    assert recorded(database) == ["a"]
    assert_no_advisory_lock(database)


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_run_exits_within_one_second_of_signal(
    database: Database, create: Callable[..., Project], driver: str, number: int, code: int
) -> None:
    project = create(a=table("a"), b=revision("b", "a", CONCURRENTLY))
    project.migrate(database, "a")
    driver_database = Database(database.url.set(drivername=f"postgresql+{driver}"))
    exited_after, returned, printed = signal_build(
        database, lambda: project.start(driver_database, "upgrade", "head"), number
    )
    began = time.monotonic()
    assert project.alembic(database, "current").code == 0
    # On a busy machine, the limit is the duration of a process that does nothing.
    assert exited_after <= max(1.0, time.monotonic() - began)
    assert returned == code
    assert "interrupted; the database is at a; run the same command again" in printed
    assert "Traceback" not in printed


NESTED = """with op.get_context().autocommit_block():
        migrations.upgrade(os.environ["DATABASE_URL"])
    op.execute('CREATE TABLE a (id int)')"""


def test_revision_under_runner_upgrades_langfuse_tables(
    database: Database, create: Callable[..., Project]
) -> None:
    # The runner of the app and the runner inside the revision hold different locks.
    nested = "import os\nfrom langfuse_schema import migrations\n" + revision("a", None, NESTED)
    project = create(a=nested)
    outcome = project.alembic(database, "upgrade", "head")
    assert outcome.code == 0, outcome.stderr
    assert recorded(database) == ["a"]
    assert tables(database, "a", "langfuse_traces") == {"a", "langfuse_traces"}
    assert verify(database.url) == []
    assert_no_advisory_lock(database)


def test_record_of_revision_that_commits_is_kept(
    database: Database, create: Callable[..., Project]
) -> None:
    commits = "op.execute('CREATE TABLE b (id int)')\n    op.get_bind().commit()"
    project = create(a=table("a"), b=revision("b", "a", commits))
    project.migrate(database, "head")
    assert recorded(database) == ["b"]


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_session_ended_by_server_is_reported_as_lost(
    database: Database, create: Callable[..., Project], driver: str
) -> None:
    ends = "op.execute('SELECT pg_terminate_backend(pg_backend_pid())')"
    project = create(a=table("a"), b=revision("b", "a", ends))
    through = Database(database.url.set(drivername=f"postgresql+{driver}"))
    with pytest.raises(SchemaError) as stopped:
        project.migrate(through, "head")
    assert [one.code for one in stopped.value.findings] == ["connection-lost"]
    assert recorded(database) == ["a"]
