"""`export`: SQL files for the Supabase CLI; what the CLI makes of them is in test_supabase_cli."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from langfuse_schema import migrations
from langfuse_schema.verify import verify
from tests.support import (
    PLAN_REVISIONS,
    POLICIES,
    REVISIONS,
    Database,
    langfuse_schema,
    plan_sql,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    directory = tmp_path_factory.mktemp("export") / "supabase" / "migrations"
    outcome = langfuse_schema(None, "export", str(directory))
    assert outcome.code == 0, outcome.stderr
    return {path.name: path.read_text() for path in sorted(directory.iterdir())}


@pytest.mark.parametrize(("after", "files"), [("head", 0), ("base", len(REVISIONS))])
def test_after_the_newest_there_is_nothing(tmp_path: Path, after: str, files: int) -> None:
    outcome = langfuse_schema(None, "export", str(tmp_path), "--after", after)
    assert outcome.code == 0
    assert len(list(tmp_path.iterdir())) == files
    assert ("nothing to write" in outcome.stderr) == (files == 0)


def rollback(content: str) -> str:
    """What the comment says to undo a file with."""
    _, _, commented = content.partition("-- Rollback:\n--\n")
    lines = []
    for line in commented.splitlines():
        if not line.startswith("--"):
            break
        lines.append(line.removeprefix("--").removeprefix(" "))
    return "\n".join(lines)


def run_as_one_transaction(database: Database, sql: str) -> None:
    """As the Supabase CLI does: a string of many statements is one implicit transaction."""
    database.execute(sql)


def test_one_file_for_each_revision_under_the_names_of_the_plan(exported: dict[str, str]) -> None:
    assert [name.partition("_")[0] for name in exported] == list(REVISIONS)
    assert list(exported)[:3] == [
        "20251113000003_add_langfuse_core.sql",
        "20251113000004_add_langfuse_denormalized_columns.sql",
        "20251113000005_add_langfuse_rls_policies.sql",
    ]


def test_the_files_make_the_database_and_their_rollbacks_take_it_back(
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


def test_the_files_hold_one_transaction_and_no_version(exported: dict[str, str]) -> None:
    for content in exported.values():
        assert not re.search(r"\balembic_version\b|^(BEGIN|COMMIT)\b.*;$", content, re.MULTILINE)
        statements = re.sub("^--.*$", "", content, flags=re.MULTILINE)
        assert "CONCURRENTLY" not in statements


def test_lock_timeout_ends_with_the_transaction(
    database: Database, exported: dict[str, str]
) -> None:
    with database.connect() as connection:
        before = connection.exec_driver_sql("SHOW lock_timeout").scalar()
        connection.exec_driver_sql(next(iter(exported.values())).replace("%", "%%"))
        assert connection.exec_driver_sql("SHOW lock_timeout").scalar() == before


def test_a_file_that_differs_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    def export(*options: str) -> tuple[int, str]:
        outcome = langfuse_schema(None, "export", str(tmp_path), *options)
        return outcome.code, outcome.stderr

    assert export() == (0, "")
    first = tmp_path / "20251113000003_add_langfuse_core.sql"
    written = first.read_text()
    first.write_text("-- the plan's own\n")
    last = tmp_path / "20261123000002_index_hot_paths.sql"
    last.unlink()
    code, message = export()
    assert code == 2
    assert "file-differs" in message
    assert "--force" in message
    assert first.read_text() == "-- the plan's own\n"
    assert not last.exists()
    assert export("--after", POLICIES) == (0, "")
    assert last.exists()
    assert first.read_text() == "-- the plan's own\n"
    assert export("--force") == (0, "")
    assert first.read_text() == written
    assert export("--after", "nonsense")[0] == 2


def test_newer_files_of_the_project_are_pointed_out(tmp_path: Path) -> None:
    (tmp_path / "20270101000000_later.sql").write_text("SELECT 1;\n")
    (tmp_path / "20240101000000_earlier.sql").write_text("SELECT 1;\n")
    outcome = langfuse_schema(None, "export", str(tmp_path))
    assert outcome.code == 0
    assert "20270101000000_later.sql" in outcome.stderr
    assert "--include-all" in outcome.stderr


def test_what_cannot_be_written_to_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    outcome = langfuse_schema(None, "export", str(tmp_path / "file"))
    assert outcome.code == 2
    assert "directory-unusable" in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_the_plan_applied_by_its_own_files_goes_on_with_the_later_ones(
    legacy_database: Database, exported: dict[str, str]
) -> None:
    legacy_database.execute(plan_sql(*PLAN_REVISIONS))
    for name, content in exported.items():
        if name.partition("_")[0] not in PLAN_REVISIONS:
            run_as_one_transaction(legacy_database, content)
    migrations.stamp(legacy_database.url, "head")
    assert verify(legacy_database.url) == []


def test_statements_are_the_same_every_time(exported: dict[str, str], tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert langfuse_schema(None, "export", str(again)).code == 0
    assert {path.name: path.read_text() for path in sorted(again.iterdir())} == exported
