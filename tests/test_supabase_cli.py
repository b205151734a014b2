"""The real Supabase CLI runs what `export` wrote, and both histories find each other again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from langfuse_schema import migrations
from langfuse_schema.verify import verify
from tests.helpers.databases import REVISIONS, Database, Outcome, langfuse_schema, run
from tests.helpers.npm import QUIET, connection_string

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Project:
    """An app's project folder with `supabase/migrations`, and its database."""

    folder: Path
    database: Database
    program: Path

    @property
    def migrations(self) -> Path:
        return self.folder / "supabase" / "migrations"

    def supabase(self, *command: str) -> Outcome:
        return run(
            str(self.program),
            *command,
            *(f"--remote={connection_string(self.database, 'postgres')}", "--yes"),
            cwd=self.folder,
            HOME=str(self.folder),
            # The CLI unpacks a library of its own there, and leaves it.
            TMPDIR=str(self.folder),
            **QUIET,
        )

    def history(self) -> list[tuple[str, str]]:
        """What `migration list` shows: the versions here, and those in the database."""
        listed = self.supabase("migration", "list")
        assert listed.code == 0, listed.stderr
        rows = [line.split("|") for line in listed.stdout.splitlines() if "`" in line]
        return [(row[0].strip(" `"), row[1].strip(" `")) for row in rows]


@pytest.fixture
def project(any_world: Database, tmp_path: Path, clients: Path) -> Project:
    outcome = langfuse_schema(None, "export", str(tmp_path / "supabase" / "migrations"))
    assert outcome.code == 0, outcome.stderr
    return Project(tmp_path, any_world, clients / ".bin" / "supabase")


def test_files_applied_by_supabase_cli_are_adopted_by_stamp(project: Project) -> None:
    applied = project.supabase("migration", "up")
    assert applied.code == 0, applied.stderr
    assert project.history() == [(revision, revision) for revision in REVISIONS]
    migrations.stamp(project.database.url, "head")
    assert verify(project.database.url) == []


def test_supabase_cli_skips_files_after_upgrade_and_migration_repair(project: Project) -> None:
    migrations.upgrade(project.database.url)
    repaired = project.supabase("migration", "repair", "--status", "applied", *REVISIONS)
    assert repaired.code == 0, repaired.stderr
    assert project.history() == [(revision, revision) for revision in REVISIONS]
    again = project.supabase("migration", "up")
    assert again.code == 0
    assert "Applying migration" not in again.stdout + again.stderr
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


def test_supabase_cli_rolls_back_file_that_fails(project: Project) -> None:
    project.database.execute("ALTER TABLE public.reflections RENAME TO kept")
    assert project.supabase("migration", "up").code != 0
    assert project.database.execute(
        "SELECT count(*) FROM information_schema.columns WHERE column_name = 'langfuse_trace_id'"
    ) == [(0,)]
    project.database.execute("ALTER TABLE public.kept RENAME TO reflections")
    assert project.supabase("migration", "up").code == 0
    migrations.stamp(project.database.url, "head")
    assert verify(project.database.url) == []
