"""The real Supabase CLI runs the exported files, and both histories are reconciled."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from langfuse_schema import migrations
from langfuse_schema.tables import APP_TABLES
from langfuse_schema.verify import verify
from tests.helpers.databases import (
    AOI,
    REVISIONS,
    SUPERUSER,
    Database,
    Outcome,
    environment,
    langfuse_schema,
    run,
    wait_until,
)
from tests.helpers.npm import QUIET, connection_string
from tests.helpers.probes import probes

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

ROWS = 1_000_000
LOCK_TIMEOUT = 0.5  # seconds, in the exported files


@dataclass(frozen=True)
class Project:
    """The project folder of an app with `supabase/migrations`, and its database."""

    folder: Path
    database: Database
    program: Path

    @property
    def migrations(self) -> Path:
        return self.folder / "supabase" / "migrations"

    def command(self, *command: str) -> list[str]:
        remote = f"--remote={connection_string(self.database, 'postgres')}"
        return [str(self.program), *command, remote, "--yes"]

    @property
    def variables(self) -> dict[str, str]:
        # The CLI unpacks a library into TMPDIR, and does not delete it.
        return {"HOME": str(self.folder), "TMPDIR": str(self.folder), **QUIET}

    def supabase(self, *command: str) -> Outcome:
        return run(*self.command(*command), cwd=self.folder, **self.variables)

    def history(self) -> list[tuple[str, str]]:
        """Return the local and the remote versions that `migration list` prints."""
        listed = self.supabase("migration", "list")
        assert listed.code == 0, listed.stderr
        rows = [line.split("|") for line in listed.stdout.splitlines() if "`" in line]
        return [(row[0].strip(" `"), row[1].strip(" `")) for row in rows]


def new_project(database: Database, folder: Path, clients: Path) -> Project:
    outcome = langfuse_schema(None, "export", str(folder / "supabase" / "migrations"))
    assert outcome.code == 0, outcome.stderr
    return Project(folder, database, clients / ".bin" / "supabase")


@pytest.fixture
def project(any_world: Database, tmp_path: Path, clients: Path) -> Project:
    return new_project(any_world, tmp_path, clients)


def test_files_applied_by_supabase_cli_are_adopted_by_stamp(project: Project) -> None:
    applied = project.supabase("migration", "up")
    assert applied.code == 0, applied.stderr
    assert project.history() == [(revision, revision) for revision in REVISIONS]
    migrations.stamp(project.database.url, "head")
    assert verify(project.database.url) == []


def test_supabase_cli_applies_files_of_one_transaction(project: Project) -> None:
    outcome = langfuse_schema(
        None, "export", str(project.migrations), "--one-transaction", "--force"
    )
    assert outcome.code == 0, outcome.stderr
    applied = project.supabase("migration", "up")
    assert applied.code == 0, applied.stderr
    migrations.stamp(project.database.url, "head")
    assert verify(project.database.url) == []


def test_supabase_cli_applies_files_under_load_and_short_statement_timeout(
    database: Database, tmp_path: Path, clients: Path
) -> None:
    project = new_project(database, tmp_path, clients)
    name = database.url.database
    database.execute(f"ALTER ROLE postgres IN DATABASE \"{name}\" SET statement_timeout = '200ms'")
    for table in APP_TABLES:
        database.execute(
            f"INSERT INTO {table} (user_id, body)"
            f" SELECT '{AOI}', 'x' FROM generate_series(1, {ROWS})",
            SUPERUSER,
        )
    with probes(database) as watching:
        time.sleep(2.0)
        baseline = max(probe.worst for probe in watching.values())
        applied = project.supabase("migration", "up")
        worst = {table: probe.worst for table, probe in watching.items()}
    assert applied.code == 0, applied.stderr
    print(f"longest statements: baseline {baseline:.3f} s, {worst}")
    assert max(worst.values()) <= baseline + LOCK_TIMEOUT
    migrations.stamp(database.url, "head")
    assert verify(database.url) == []


def test_second_run_of_supabase_cli_completes_killed_run(
    database: Database, tmp_path: Path, clients: Path
) -> None:
    project = new_project(database, tmp_path, clients)
    invalid = "SELECT EXISTS (SELECT FROM pg_index WHERE NOT indisvalid)"
    building = "SELECT pid FROM pg_stat_progress_create_index WHERE datname = current_database()"
    with database.connect() as reader:
        reader.exec_driver_sql("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM pg_class")
        process = subprocess.Popen(
            project.command("migration", "up"),
            cwd=project.folder,
            env=environment(**project.variables),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_until(database, invalid)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        database.execute(f"SELECT pg_terminate_backend(pid) FROM ({building}) AS build", SUPERUSER)
        wait_until(database, f"SELECT NOT EXISTS ({building})")
        reader.exec_driver_sql("ROLLBACK")
    assert database.execute(invalid) == [(True,)]
    applied = project.supabase("migration", "up")
    assert applied.code == 0, applied.stderr
    migrations.stamp(database.url, "head")
    assert verify(database.url) == []


def test_supabase_cli_skips_files_after_upgrade_and_migration_repair(project: Project) -> None:
    migrations.upgrade(project.database.url)
    repaired = project.supabase("migration", "repair", "--status", "applied", *REVISIONS)
    assert repaired.code == 0, repaired.stderr
    assert project.history() == [(revision, revision) for revision in REVISIONS]
    second = project.supabase("migration", "up")
    assert second.code == 0
    assert "Applying migration" not in second.stdout + second.stderr
    assert verify(project.database.url) == []


def test_supabase_cli_needs_include_all_when_project_has_newer_files(project: Project) -> None:
    exported = {path.name: path.read_text() for path in project.migrations.iterdir()}
    for name in exported:
        (project.migrations / name).unlink()
    (project.migrations / "20270101000000_later.sql").write_text("CREATE TABLE later ();\n")
    assert project.supabase("migration", "up").code == 0
    for name, content in exported.items():
        (project.migrations / name).write_text(content)
    assert project.supabase("migration", "up").code != 0
    applied = project.supabase("migration", "up", "--include-all")
    assert applied.code == 0, applied.stderr
    migrations.stamp(project.database.url, "head")
    assert verify(project.database.url) == []


def test_second_run_of_supabase_cli_resumes_file_that_failed(project: Project) -> None:
    project.database.execute("ALTER TABLE public.reflections RENAME TO kept")
    assert project.supabase("migration", "up").code != 0
    project.database.execute("ALTER TABLE public.kept RENAME TO reflections")
    assert project.supabase("migration", "up").code == 0
    migrations.stamp(project.database.url, "head")
    assert verify(project.database.url) == []


APP = """
CREATE TABLE public.ai_coach_messages (id uuid PRIMARY KEY);
CREATE TABLE public.encouragement_messages (id uuid PRIMARY KEY);
CREATE TABLE public.reflections (id uuid PRIMARY KEY);
"""


@pytest.mark.parametrize("with_files", [True, False])
def test_db_reset_drops_version_table_and_runs_files(
    database: Database, tmp_path: Path, clients: Path, *, with_files: bool
) -> None:
    project = new_project(database, tmp_path, clients)
    migrations.upgrade(database.url)
    if not with_files:
        for file in project.migrations.glob("*.sql"):
            file.unlink()
    (project.migrations / "20250101000000_app.sql").write_text(APP)
    outcome = project.supabase("db", "reset")
    assert outcome.code == 0, outcome.stderr
    tables = database.catalog().tables
    assert "langfuse_migrations.alembic_version" not in tables
    assert ("public.langfuse_traces" in tables) is with_files
    if with_files:
        migrations.stamp(database.url, "head")
    else:
        migrations.upgrade(database.url)
    assert verify(database.url) == []
