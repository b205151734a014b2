"""`export` writes SQL files for the Supabase CLI, which test_supabase_cli runs with the CLI."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

import pytest

from langfuse_schema import migrations
from langfuse_schema.verify import verify
from tests.helpers.databases import (
    HISTORY,
    PLAN,
    PLAN_REVISIONS,
    POLICIES,
    REVISIONS,
    Database,
    langfuse_schema,
    plan_sql,
    run,
)

if TYPE_CHECKING:
    from pathlib import Path


NOTHING_FOLLOWS = "No revision follows head. Nothing to do."


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    directory = tmp_path_factory.mktemp("export") / "supabase" / "migrations"
    outcome = langfuse_schema(None, "export", str(directory), "--one-transaction")
    assert outcome.code == 0, outcome.stderr
    return {path.name: path.read_text() for path in sorted(directory.iterdir())}


@pytest.mark.parametrize(("after", "files"), [("head", 0), ("base", len(REVISIONS))])
def test_export_after_revision_writes_later_files_only(
    tmp_path: Path, after: str, files: int
) -> None:
    outcome = langfuse_schema(None, "export", str(tmp_path), "--after", after)
    assert outcome.code == 0
    assert len(list(tmp_path.iterdir())) == files
    *_, last = outcome.stdout.splitlines()
    assert last == (f"Wrote {files} files to {tmp_path}." if files else NOTHING_FOLLOWS)


def rollback(content: str) -> str:
    """Return the rollback SQL in the comment of a file."""
    _, _, commented = content.partition("-- Rollback:\n--\n")
    lines = []
    for line in commented.splitlines():
        if not line.startswith("--"):
            break
        lines.append(line.removeprefix("--").removeprefix(" "))
    return "\n".join(lines)


def run_as_one_transaction(database: Database, sql: str) -> None:
    """Run all statements in one implicit transaction, as the SQL Editor does."""
    database.execute(sql)


def test_export_builds_indexes_online_by_default(
    database: Database, psql: str, tmp_path: Path
) -> None:
    assert langfuse_schema(None, "export", str(tmp_path)).code == 0
    url = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    for path in sorted(tmp_path.iterdir()):
        content = path.read_text()
        assert not re.search(r"^(BEGIN|COMMIT)\b.*;$", content, re.MULTILINE)
        assert "set_config('statement_timeout', '0', false)" in content
        built_online = "CREATE INDEX CONCURRENTLY IF NOT EXISTS" in content
        revision = path.name.partition("_")[0]
        assert built_online == (not HISTORY.is_one_transaction(revision))
        # After an interruption, the user runs the same file again.
        for _ in range(2 if built_online else 1):
            outcome = run(psql, "-v", "ON_ERROR_STOP=1", "-q", "-f", str(path), url)
            assert outcome.code == 0, outcome.stderr
    migrations.stamp(database.url, "head")
    assert verify(database.url) == []


def test_export_writes_one_file_per_revision_with_names_of_plan(exported: dict[str, str]) -> None:
    assert [name.partition("_")[0] for name in exported] == list(REVISIONS)
    of_plan = sorted(path.name for path in PLAN.glob("2*.sql"))
    assert list(exported)[: len(of_plan)] == of_plan


def test_exported_files_create_schema_and_rollbacks_remove_it(
    any_world: Database, exported: dict[str, str]
) -> None:
    before = any_world.catalog()
    snapshots = []
    for content in exported.values():
        snapshots.append(any_world.catalog())
        run_as_one_transaction(any_world, content)
    migrations.stamp(any_world.url, "head")
    assert verify(any_world.url) == []
    any_world.execute("DROP SCHEMA langfuse_migrations CASCADE")
    for content, snapshot in zip(reversed(exported.values()), reversed(snapshots), strict=True):
        run_as_one_transaction(any_world, rollback(content))
        assert any_world.catalog() == snapshot
    assert any_world.catalog() == before


def test_exported_files_omit_transaction_and_version_statements(exported: dict[str, str]) -> None:
    for content in exported.values():
        assert not re.search(r"\balembic_version\b|^(BEGIN|COMMIT)\b.*;$", content, re.MULTILINE)
        statements = re.sub("^--.*$", "", content, flags=re.MULTILINE)
        assert "CONCURRENTLY" not in statements


def test_exported_file_restores_lock_timeout_after_transaction(
    database: Database, exported: dict[str, str]
) -> None:
    with database.connect() as connection:
        before = connection.exec_driver_sql("SHOW lock_timeout").scalar()
        connection.exec_driver_sql(next(iter(exported.values())).replace("%", "%%"))
        assert connection.exec_driver_sql("SHOW lock_timeout").scalar() == before


def test_export_refuses_to_replace_different_file_without_force(tmp_path: Path) -> None:
    def export(*options: str) -> tuple[int, str]:
        outcome = langfuse_schema(None, "export", str(tmp_path), *options)
        return outcome.code, outcome.stderr

    assert export() == (0, "")
    again = langfuse_schema(None, "export", str(tmp_path))
    assert again.stdout.splitlines()[-1] == "All files are current. Nothing to do."
    first, *_, last = sorted(tmp_path.iterdir())
    written = first.read_text()
    first.write_text("-- the plan's own\n")
    last.unlink()
    code, message = export()
    assert code == 2
    assert "file-differs" in message
    assert f"files in {tmp_path} exist with other content" in message
    command = f"langfuse-schema export {shlex.quote(str(tmp_path))}"
    assert f"\n {command} --after {REVISIONS[0]}\n" in re.sub(" +", " ", message)
    assert f"\n {command} --force\n" in re.sub(" +", " ", message)
    assert first.read_text() == "-- the plan's own\n"
    assert not last.exists()
    assert export("--after", POLICIES) == (0, "")
    assert last.exists()
    assert first.read_text() == "-- the plan's own\n"
    assert export("--force") == (0, "")
    assert first.read_text() == written
    assert export("--after", "nonsense")[0] == 2


def test_export_warns_about_newer_files_of_project(tmp_path: Path) -> None:
    (tmp_path / "20270101000000_later.sql").write_text("SELECT 1;\n")
    (tmp_path / "20240101000000_earlier.sql").write_text("SELECT 1;\n")
    outcome = langfuse_schema(None, "export", str(tmp_path))
    assert outcome.code == 0
    assert "20270101000000_later.sql" in outcome.stderr
    assert "--include-all" in outcome.stderr


def test_export_reports_unusable_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    outcome = langfuse_schema(None, "export", str(tmp_path / "file"))
    assert outcome.code == 2
    assert "directory-unusable" in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_later_exported_files_upgrade_plan_run_by_hand(
    legacy_database: Database, exported: dict[str, str]
) -> None:
    legacy_database.execute(plan_sql(*PLAN_REVISIONS))
    for name, content in exported.items():
        if name.partition("_")[0] not in PLAN_REVISIONS:
            run_as_one_transaction(legacy_database, content)
    migrations.stamp(legacy_database.url, "head")
    assert verify(legacy_database.url) == []


def test_second_export_writes_identical_files(exported: dict[str, str], tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert langfuse_schema(None, "export", str(again), "--one-transaction").code == 0
    assert {path.name: path.read_text() for path in sorted(again.iterdir())} == exported
